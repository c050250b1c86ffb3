"""Ops that look up and place values by integer indices. Indices are within range on every backend or the call fails."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.dtype import int32, int64
from zoo.core.errors import ShapeError
from zoo.core.prim import Kind, Meta, Prim, composite
from zoo.core.prims import infer


def _take_infer(x: Any, indices: Any) -> Meta:
    infer.integers(indices)
    if not x.shape:
        raise ShapeError("a scalar has no rows to take")
    return Meta((*indices.shape, *x.shape[1:]), x.dtype)


def _take_vjp(o: Any, g: Any, x: Any, indices: Any, y: Any) -> Any:
    zeros = o.full(shape=tuple(x.shape), value=0, dtype=x.dtype)
    return o.scatter_add(zeros, indices, g), None


def _gather_infer(x: Any, indices: Any, *, axis: int) -> Meta:
    infer.integers(indices)
    axis = infer.axis_index(axis, len(x.shape))
    same = len(x.shape) == len(indices.shape) and all(
        n == m for i, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis
    )
    if not same:
        raise ShapeError(
            f"indices {tuple(indices.shape)} must have x's shape {tuple(x.shape)} on every axis but {axis}",
            "To pick whole rows use take.",
        )
    return Meta(tuple(indices.shape), x.dtype)


def _gather_vjp(o: Any, g: Any, x: Any, indices: Any, y: Any, *, axis: int) -> Any:
    """Into a flat tensor: the position of x[..., i, ...] in memory order, row scatter-add there."""
    axis, shape = axis % len(x.shape), tuple(x.shape)
    flat = o.full(shape=tuple(indices.shape), value=0, dtype=int64)
    for i in range(len(shape)):
        stride = math.prod(shape[i + 1 :])
        along = indices if i == axis else o.iota(shape=tuple(indices.shape), axis=i, dtype=int64)
        flat = o.add(flat, o.mul(o.cast(along, dtype=int64), stride))
    zeros = o.full(shape=(math.prod(shape),), value=0, dtype=x.dtype)
    return o.reshape(o.scatter_add(zeros, flat, g), shape=shape), None


def _scatter_infer(x: Any, indices: Any, updates: Any) -> Meta:
    infer.integers(indices)
    infer.same_dtype(x, updates)
    if not x.shape:
        raise ShapeError("a scalar has no rows to add to")
    infer.need_shape("updates", updates, (*indices.shape, *x.shape[1:]), "One row of x for each index.")
    return Meta(tuple(x.shape), x.dtype)


def _update_infer(x: Any, update: Any, *, start: tuple[int, ...], donate: bool) -> Meta:
    infer.same_dtype(x, update)
    fits = len(x.shape) == len(update.shape) == len(start) and all(
        s >= 0 and s + m <= n for s, m, n in zip(start, update.shape, x.shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"{tuple(update.shape)} at {tuple(start)} does not lie within {tuple(x.shape)}")
    return Meta(tuple(x.shape), x.dtype)


def _update_vjp(o: Any, g: Any, x: Any, update: Any, y: Any, *, start: Any, donate: bool) -> Any:
    stop = tuple(s + n for s, n in zip(start, update.shape, strict=True))
    return (
        lambda: o.update_slice(
            g, o.full(shape=tuple(update.shape), value=0, dtype=update.dtype), start=start, donate=False
        ),
        lambda: o.slice(g, start=tuple(start), stop=stop, step=(1,) * len(stop)),
    )


def _topk_infer(x: Any, *, k: int) -> tuple[Meta, Meta]:
    if not x.shape or not 0 < k <= x.shape[-1]:
        raise ShapeError(f"k = {k}, but the last axis holds {x.shape[-1] if x.shape else 0} values")
    shape = (*x.shape[:-1], k)
    return Meta(shape, x.dtype), Meta(shape, int32)


def _topk_vjp(o: Any, g: Any, x: Any, y: Any, *, k: int) -> Any:
    values_g, (_, indices) = g[0], y
    return _gather_vjp(o, values_g, x, indices, None, axis=-1)[0]


INDEX = [
    # rows: take(x (n, ...), i (...)) -> x[i]
    Prim("take", Kind.INDEX, _take_infer, _take_vjp, keep="1"),
    Prim("gather", Kind.INDEX, _gather_infer, _gather_vjp, keep="1"),
    # rows: x[i] += updates, where an index may occur several times
    Prim("scatter_add", Kind.INDEX, _scatter_infer, keep="1",
         vjp=lambda o, g, x, i, u, y: (g, None, lambda: o.take(g, i))),
    # x with `update` written at `start`; donate=True allows the kernel to write into x's own memory
    Prim("update_slice", Kind.INDEX, _update_infer, _update_vjp, keep="", attrs={"donate": False}),
    # the k largest along the last axis, falling; of equals the first. -> values, int32 indices
    Prim("topk", Kind.INDEX, _topk_infer, _topk_vjp, keep="y"),
]  # fmt: skip


def _update_rows_infer(x: Any, update: Any, positions: Any, *, donate: bool) -> Meta:
    infer.same_dtype(x, update)
    infer.integers(positions)
    if len(x.shape) < 2:
        raise ShapeError(f"x is {tuple(x.shape)}; (B, S, ...) was expected")
    wanted = (x.shape[0], *update.shape[1:2], *x.shape[2:])
    infer.need_shape("update", update, wanted, "As x (B, S, ...), with another number of rows S.")
    infer.need_shape("positions", positions, x.shape[:1])
    return Meta(tuple(x.shape), x.dtype)


@composite(_update_rows_infer)
def update_rows(o, x, update, positions, *, donate=False):
    """x (B, S, ...) with update[b, l] as its row positions[b] + l; what would lie outside x is left out. donate=True
    allows the kernel to write into x's own memory."""
    (B, S), L = x.shape[:2], update.shape[1]
    if 0 in update.shape or S == 0:
        return x
    row = o.iota(shape=(B, S), axis=1, dtype=int32)
    at = o.sub(row, o.reshape(o.cast(positions, dtype=int32), shape=(B, 1)))  # the row of `update` that comes here
    there = o.logical_and(o.greater_equal(at, 0), o.less(at, L))
    text = o.iota(shape=(B, S), axis=0, dtype=int32)
    flat = o.reshape(update, shape=(B * L, *update.shape[2:]))
    rows = o.take(flat, o.add(o.mul(text, L), o.where(there, at, 0)))  # (B, S, ...)
    there = o.expand(o.reshape(there, shape=(B, S, *(1,) * len(x.shape[2:]))), shape=tuple(x.shape))
    return o.where(there, rows, x)


def _sort_infer(x: Any, *, descending: bool) -> Meta:
    infer.axis_index(-1, len(x.shape))
    return Meta(tuple(x.shape), x.dtype)


@composite(_sort_infer)
def sort(o, x, *, descending=False):
    """Sorted along the last axis."""
    if x.shape[-1] == 0:
        return x
    values, _ = o.topk(x, k=x.shape[-1])
    return values if descending else o.flip(values, axis=-1)
