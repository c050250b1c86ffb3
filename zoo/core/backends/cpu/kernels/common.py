"""What all families of kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu.pack import Packed
from zoo.core.dtype import bfloat16, float16

Kernels = dict[str, Callable[..., Any]]
F32 = np.dtype(np.float32)
# what a weight may be stored in, as numbered in csrc/gemm/table.h
WEIGHTS = {F32: 0, bfloat16: 1, float16: 2}
# as numbered in csrc/common.h
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def usable(*arrays: Any) -> bool:
    return all(a is None or (a.dtype is F32 and (type(a) is Packed or a.flags.aligned)) for a in arrays)


def bits(array: np.ndarray) -> np.ndarray:
    """The array as the kernels take it: half precision as uint16, for numpy's bfloat16 has no buffer protocol."""
    return array if array.dtype is F32 else array.view(np.uint16)


def contiguous(array: Any) -> Any:
    return None if array is None else np.ascontiguousarray(array)
