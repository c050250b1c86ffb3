"""Shape and dtype rules that several ops share. Arguments have .shape and .dtype, or are Python numbers or None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.core.dtype import bool_, int64, is_float
from zoo.core.errors import DtypeError, ShapeError
from zoo.core.prim import Meta

Shape = tuple[int, ...]


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The common shape by the array rules: aligned at the right, 1 stretches."""
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(
            "shapes are aligned at the right; on each axis the sizes must be equal or 1",
            "Reshape one of them, or insert an axis of size 1 where it should stretch.",
        ) from None


def elementwise(result: str) -> Callable[..., Meta]:
    def infer(*args: Any, **attrs: Any) -> Meta:
        tensors = [a for a in args if hasattr(a, "shape")]
        first = tensors[0]
        shape = first.shape if len(tensors) == 1 else broadcast([t.shape for t in tensors])
        return Meta(shape, bool_ if result == "bool" else first.dtype)

    return infer


def like(i: int) -> Callable[..., Meta]:
    """The result has the shape and dtype of argument i, which must be of floating point."""

    def infer(*args: Any, **attrs: Any) -> Meta:
        floats(args[i])
        return Meta(tuple(args[i].shape), args[i].dtype)

    return infer


def floats(*args: Any) -> None:
    for a in args:
        if a is not None and not is_float(a.dtype):
            raise DtypeError(f"{a.dtype.name} is not of floating point", "Cast it: x.astype(zoo.float32).")


def integers(a: Any) -> None:
    if not np.issubdtype(a.dtype, np.integer):
        raise DtypeError(f"indices are {a.dtype.name}; they must be integers", "Cast them: i.astype(zoo.int32).")


def axis_index(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        there = f"Axes run from {-ndim} to {ndim - 1}." if ndim else "It is a single number."
        raise ShapeError(f"axis {axis} does not exist in a tensor of {ndim} axes", there)
    return axis % ndim


def axes_tuple(axis: int | Sequence[int] | None, ndim: int) -> Shape:
    """Axes as a sorted tuple of non-negative numbers; None means all."""
    if axis is None:
        return tuple(range(ndim))
    listed = [axis] if isinstance(axis, int) else list(axis)
    axes = tuple(sorted(axis_index(a, ndim) for a in listed))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axis {axis} names one axis twice", "Name each axis once.")
    return axes


def reduced(shape: Shape, axes: Shape, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def representable(value: Any, dtype: np.dtype) -> None:
    """A number that fills a tensor of integers is not infinite, not NaN, and not too large."""
    if is_float(dtype) or dtype == bool_:
        return
    held = np.iinfo(dtype)
    if not held.min <= value <= held.max:
        raise DtypeError(f"{dtype.name} cannot hold {value}", "Use a wider dtype.")


def same_dtype(*args: Any) -> None:
    dtypes = {a.dtype for a in args if hasattr(a, "dtype")}
    if len(dtypes) > 1:
        raise DtypeError("dtypes differ: " + ", ".join(sorted(d.name for d in dtypes)), "Cast them to one dtype.")


def need_shape(what: str, got: Any, want: Shape, fix: str = "") -> None:
    if got is not None and tuple(got.shape) != tuple(want):
        raise ShapeError(f"{what} is {tuple(got.shape)}; {tuple(want)} was expected", fix)


def need_start(start: Any) -> None:
    """What is added to the offset of random numbers: one int64, or None."""
    need_shape("start", start, (1,))
    if start is not None and start.dtype != int64:
        raise DtypeError(f"start is {start.dtype.name}; it must be int64", "Cast it: start.astype(zoo.int64).")


def need_ndim(what: str, x: Any, ndim: int, layout: str) -> None:
    if len(x.shape) != ndim:
        raise ShapeError(f"{what} has {len(x.shape)} axes; {ndim} were expected: {layout}")
