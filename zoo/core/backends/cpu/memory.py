"""Where the kernels' results lie. Large ones take memory that was a result before (csrc/memory.cpp): fresh pages cost
as much as a kernel that runs at memory speed."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from threading import get_ident
from typing import Any

import numpy as np

LARGE = 1 << 16
"""Bytes from which on. Malloc gives much of what is smaller back to the system, too: with 1 << 20, a training step
of the digits' network met a thousand page faults, and took 5.4 instead of 4.1 ms."""


recorder: Any = None
"""Who records what the cpu does (recorder.py), and says where its results lie."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of anything, as np.empty."""
    if recorder is not None and recorder.thread == get_ident():
        return recorder.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _memory()(size))


@cache
def _memory() -> Any:
    return import_module("zoo.core.backends.cpu._native").Memory
