"""Memory of large results of the native kernels: used again as soon as nobody holds it, and not before."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.core.dtype import bfloat16, float32

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu.memory import empty  # noqa: E402

LARGE = 1 << 20  # far above what malloc keeps itself
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


PEAK = """
import numpy as np
from zoo.core.backends.cpu import _native as native
from zoo.core.backends.cpu.memory import empty

def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

before, kept = status("VmRSS"), empty((9, 1 << 20), np.dtype(np.uint8))
kept[:] = 7
for round in range(3):
    for sizes in ([100, 100, 100], [40, 57, 3, 75, 101], [20] * 15, [290], [33.3, 66.6, 199.9]):
        held = [empty((int(size * (1 << 20)),), np.dtype(np.uint8)) for size in sizes]
        for i, block in enumerate(held):
            block[:] = i
        assert all((block[:: 1 << 12] == i).all() and block[-1] == i for i, block in enumerate(held))
        del block
        held.clear()
assert (kept == 7).all()
print(status("VmHWM") - before, native.idle_memory() >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_idle_memory_raises_no_peak():
    """Results of ever other sizes: never more than what was in use at once, and pages that move keep their owner."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    peak, idle = map(float, done.stdout.split())
    assert 300 < peak < 345 and 250 < idle < 330, "316 MB in use at once, with sizes rounded up, and 9"


def test_what_cannot_be_had_is_a_memory_error():
    with pytest.raises(MemoryError):
        empty((1 << 40, LARGE), np.dtype(np.uint8))
