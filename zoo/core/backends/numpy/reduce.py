"""Reduction kernels. Half precision is accumulated in float32: a bfloat16 sum of ones would stop at 256."""

from __future__ import annotations

from typing import Any

from zoo.core.dtype import HALVES, float32, int32, sum_dtype
from zoo.core.prims.reduce import count


def _axis(axis: Any) -> Any:
    return tuple(axis) if isinstance(axis, list) else axis


def sum_(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    """By the ufunc itself: x.sum() is Python code of numpy's, whose overflow warnings would reach the user."""
    d, add = x.dtype, b.xp.add
    if d in HALVES:
        return add.reduce(x.astype(float32), axis=_axis(axis), keepdims=keepdims).astype(d)
    return add.reduce(x, axis=_axis(axis), keepdims=keepdims, dtype=sum_dtype(d))


def mean(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    if x.size == 0:
        return NotImplemented  # numpy warns about an empty mean; the body gives NaN quietly
    wide = x.astype(float32) if x.dtype in HALVES else x
    total = b.xp.add.reduce(wide, axis=_axis(axis), keepdims=keepdims)
    return (total / float(count(x.shape, axis))).astype(x.dtype)


def max_(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    return x.max(axis=_axis(axis), keepdims=keepdims)


def min_(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    return x.min(axis=_axis(axis), keepdims=keepdims)


def argmax(b: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
    return x.argmax(axis=axis, keepdims=keepdims).astype(int32)


def argmin(b: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
    return x.argmin(axis=axis, keepdims=keepdims).astype(int32)


def cumsum(b: Any, x: Any, *, axis: int) -> Any:
    d = x.dtype
    if d in HALVES:
        return x.astype(float32).cumsum(axis=axis).astype(d)
    return x.cumsum(axis=axis, dtype=sum_dtype(d))


KERNELS = {"sum": sum_, "mean": mean, "max": max_, "min": min_, "argmax": argmax, "argmin": argmin, "cumsum": cumsum}
