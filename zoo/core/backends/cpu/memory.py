"""Where the kernels' results lie. Large ones take memory that was a result before (csrc/memory.cpp): fresh pages cost
as much as a kernel that runs at memory speed."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

LARGE = 1 << 20  # bytes; smaller blocks malloc keeps itself


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of anything, as np.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _memory()(size))


@cache
def _memory() -> Any:
    return import_module("zoo.core.backends.cpu._native").Memory
