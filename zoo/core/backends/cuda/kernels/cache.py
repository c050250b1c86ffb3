"""Rows written into a cache at positions that lie on the device (cu/cache.cu)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import contiguous, run
from zoo.core.dtype import int32
from zoo.core.stats import count

THREADS = 256
WORDS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}


def update_rows(b: Any, x: Any, update: Any, positions: Any, *, donate: bool) -> Any:
    if len(x.shape) > 4 or 0 in x.shape or 0 in update.shape:
        return NotImplemented
    y = x if donate else _copied(b, x)
    positions = contiguous(b, b.ops.cast(positions, dtype=int32))
    (B, L), S = update.shape[:2], x.shape[1]
    M, N = (1, 1, *x.shape[2:])[-2:]
    kernel = b.driver.kernel("cache.cu", "update_rows", T=WORDS[x.dtype.itemsize])
    sizes = (np.int32(n) for n in (B, S, L, M, N))
    kernel((-(-math.prod(update.shape) // THREADS),), (THREADS,), *_walk(y), *_walk(update), positions, *sizes)
    count("cuda.update_rows")
    return y


def _copied(b: Any, x: Any) -> Any:
    y = run(b, "a", (x,), x.shape, x.dtype)
    return x.copy() if y is NotImplemented else y


def _walk(x: Any) -> tuple[Any, ...]:
    """The array, and its strides in numbers along batch, position, head and number; axes it has not are of length 1."""
    first, second, *rest = (np.int64(s // x.dtype.itemsize) for s in x.strides)
    return x, first, second, *((np.int64(0),) * (2 - len(rest))), *rest


KERNELS: dict[str, Callable[..., Any]] = {"update_rows": update_rows}
