"""Memory of large results of the native kernels: used again as soon as nobody holds it, and not before."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from zoo.core.dtype import bfloat16, float32

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu.memory import LARGE, empty  # noqa: E402

SHAPE = (5, LARGE // 4)  # 5 MiB


@pytest.fixture(autouse=True)
def nothing_idle():
    gc.collect()
    native.release_memory()


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_its_last_view_is_gone():
    first = empty(SHAPE, float32)
    first[:] = 1
    place, view = address(first), first[1:, ::3].T
    del first
    second = empty(SHAPE, float32)
    second[:] = 2
    assert address(second) != place and (view == 1).all()
    del view
    assert native.idle_memory() >= 5 * LARGE
    third = empty((5, LARGE // 4 - 7), float32)  # nearly as large
    assert address(third) == place and native.idle_memory() == 0


@pytest.mark.parametrize("dtype", [float32, bfloat16, np.dtype(np.int32)])
def test_it_is_an_array_like_any_other(dtype):
    a = empty((3, LARGE), dtype)
    assert a.shape == (3, LARGE) and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable
    assert address(a) % 64 == 0
    assert empty((0, LARGE), dtype).size == 0 and empty((), dtype).shape == ()


def test_idle_memory_is_limited_and_can_be_released():
    held = [empty((n, LARGE), np.dtype(np.uint8)) for n in range(1, 9)]
    assert native.idle_memory() == 0
    held.clear()
    assert native.idle_memory() >= 36 * LARGE
    native.release_memory()
    assert native.idle_memory() == 0


def test_what_cannot_be_had_is_a_memory_error():
    with pytest.raises(MemoryError):
        empty((1 << 40, LARGE), np.dtype(np.uint8))
