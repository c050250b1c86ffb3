"""Kernels that make values out of attributes."""

from __future__ import annotations

import math
from typing import Any

from zoo.core import philox
from zoo.core.dtype import float32


def full(b: Any, *, shape: Any, value: Any, dtype: Any) -> Any:
    return b.xp.full(shape, value, dtype=dtype)


def iota(b: Any, *, shape: Any, axis: int, dtype: Any) -> Any:
    if not shape:
        return b.xp.zeros((), dtype=dtype)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return b.xp.broadcast_to(b.xp.arange(shape[axis]).astype(dtype).reshape(along), shape)


def uniform(b: Any, start: Any = None, *, shape: Any, seed: int, offset: int, dtype: Any = float32) -> Any:
    offset += 0 if start is None else int(start[0])
    return philox.uniform(b.xp, seed, offset, math.prod(shape)).reshape(shape).astype(dtype)


def normal(b: Any, start: Any = None, *, shape: Any, seed: int, offset: int, dtype: Any = float32) -> Any:
    offset += 0 if start is None else int(start[0])
    return philox.normal(b.xp, seed, offset, math.prod(shape)).reshape(shape).astype(dtype)


KERNELS = {"full": full, "iota": iota, "uniform": uniform, "normal": normal}
