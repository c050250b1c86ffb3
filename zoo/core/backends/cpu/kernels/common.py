"""What all families of kernels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu.pack import Packed
from zoo.core.dtype import bfloat16, float16

Kernels = dict[str, Callable[..., Any]]
F32 = np.dtype(np.float32)
# what weights and activations may be stored in, as numbered in csrc/gemm/table.h
WEIGHTS = {F32: 0, bfloat16: 1, float16: 2}
BF16_PAIRS = 3
# as numbered in csrc/common.h
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def usable(*arrays: Any) -> bool:
    for a in arrays:  # a generator in all() would take twice as long
        if a is not None and (a.dtype is not F32 or not (type(a) is Packed or a.flags.aligned)):
            return False
    return True


def bits(array: np.ndarray) -> np.ndarray:
    """The array as the kernels take it: half precision as uint16, for numpy's bfloat16 has no buffer protocol."""
    return array if array.dtype is F32 else array.view(np.uint16)


def float_rows(b: Any, x: np.ndarray) -> np.ndarray:
    """x (..., K) as float32 (M, K), its rows contiguous."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if x.dtype is not F32:
        return b.ops.cast(np.ascontiguousarray(flat), dtype=F32)
    rows_fit = flat.flags.aligned and (flat.strides[-1] == 4 or flat.shape[-1] == 1)
    return flat if rows_fit else np.require(flat, F32, ("A", "C"))


def float_vector(array: np.ndarray | None) -> np.ndarray | None:
    """A bias as the kernels take it."""
    if array is None or (array.dtype is F32 and array.flags.c_contiguous and array.flags.aligned):
        return array
    return np.require(array, F32, ("A", "C"))


def contiguous(array: Any) -> Any:
    return None if array is None else np.ascontiguousarray(array)
