"""What all families of kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu.pack import Packed

Kernels = dict[str, Callable[..., Any]]
F32 = np.dtype(np.float32)
# as numbered in csrc/common.h
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def usable(*arrays: Any) -> bool:
    return all(a is None or (a.dtype is F32 and (type(a) is Packed or a.flags.aligned)) for a in arrays)


def contiguous(array: Any) -> Any:
    return None if array is None else np.ascontiguousarray(array)
