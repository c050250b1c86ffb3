"""Ops that move values and compute nothing. A result may share memory with its argument: values are immutable."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.errors import ShapeError
from zoo.core.prim import Kind, Meta, Prim
from zoo.core.prims import infer

Pads = tuple[tuple[int, int, int], ...]


def _reshape_infer(x: Any, *, shape: tuple[int, ...]) -> Meta:
    if math.prod(shape) != math.prod(x.shape):
        raise ShapeError(
            f"{tuple(x.shape)} holds {math.prod(x.shape)} values, {tuple(shape)} would hold {math.prod(shape)}",
            "One size may be -1: it is then worked out.",
        )
    return Meta(tuple(shape), x.dtype)


def _permute_infer(x: Any, *, axes: tuple[int, ...]) -> Meta:
    if sorted(axes) != list(range(len(x.shape))):
        raise ShapeError(f"axes {tuple(axes)} do not name each of the {len(x.shape)} axes once")
    return Meta(tuple(x.shape[a] for a in axes), x.dtype)


def _permute_vjp(o: Any, g: Any, x: Any, y: Any, *, axes: tuple[int, ...]) -> Any:
    return o.permute_dims(g, axes=tuple(axes.index(i) for i in range(len(axes))))


def _expand_infer(x: Any, *, shape: tuple[int, ...]) -> Meta:
    if len(shape) < len(x.shape) or any(n not in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False)):
        raise ShapeError(f"{tuple(x.shape)} cannot be stretched to {tuple(shape)}", "Only axes of size 1 stretch.")
    return Meta(tuple(shape), x.dtype)


def sum_to(o: Any, g: Any, shape: tuple[int, ...]) -> Any:
    """The reverse of broadcasting: sums the axes along which `shape` was stretched to g's."""
    if tuple(g.shape) == tuple(shape):
        return g
    extra = len(g.shape) - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    return o.reshape(o.sum(g, axis=axes, keepdims=False), shape=tuple(shape))


def _slice_infer(x: Any, *, start: tuple[int, ...], stop: tuple[int, ...], step: tuple[int, ...]) -> Meta:
    if not len(start) == len(stop) == len(step) == len(x.shape):
        raise ShapeError("start, stop and step need one number per axis")
    for i, n in enumerate(x.shape):
        if not (0 <= start[i] <= stop[i] <= n and step[i] > 0):
            raise ShapeError(f"{start[i]}:{stop[i]}:{step[i]} does not lie within axis {i} of size {n}")
    return Meta(tuple(-(-(e - b) // s) for b, e, s in zip(start, stop, step, strict=True)), x.dtype)


def _slice_vjp(o: Any, g: Any, x: Any, y: Any, *, start: Any, stop: Any, step: Any) -> Any:
    pads = []
    for n, b, s, taken in zip(x.shape, start, step, g.shape, strict=True):
        spanned = (taken - 1) * s + 1 if taken else 0
        pads.append((b, n - b - spanned, s - 1))
    return o.pad(g, pads=tuple(pads), value=0)


def padded(n: int, lo: int, hi: int, interior: int) -> int:
    return lo + hi + n + max(n - 1, 0) * interior


def _pad_infer(x: Any, *, pads: Pads, value: float) -> Meta:
    if len(pads) != len(x.shape):
        raise ShapeError(f"{len(pads)} pads for {len(x.shape)} axes", "Give (low, high, interior) for every axis.")
    infer.representable(value, x.dtype)
    shape = tuple(padded(n, *p) for n, p in zip(x.shape, pads, strict=True))
    if any(n < 0 for n in shape) or any(p[2] < 0 for p in pads):
        raise ShapeError(f"pads {pads} take away more of {tuple(x.shape)} than there is")
    return Meta(shape, x.dtype)


def _pad_vjp(o: Any, g: Any, x: Any, y: Any, *, pads: Pads, value: float) -> Any:
    """Undo the outer pads (crops become zeros), then take what lies between the interior zeros."""
    whole = o.pad(g, pads=tuple((-lo, -hi, 0) for lo, hi, _ in pads), value=0)
    if all(interior == 0 for _, _, interior in pads):
        return whole
    return o.slice(
        whole, start=(0,) * len(pads), stop=tuple(whole.shape), step=tuple(interior + 1 for _, _, interior in pads)
    )


def _flip_infer(x: Any, *, axis: Any) -> Meta:
    infer.axes_tuple(axis, len(x.shape))
    return Meta(tuple(x.shape), x.dtype)


def _concat_infer(*tensors: Any, axis: int) -> Meta:
    if not tensors:
        raise ShapeError("nothing to join", "Give at least one tensor.")
    infer.same_dtype(*tensors)
    axis = infer.axis_index(axis, len(tensors[0].shape))
    rest = [tuple(t.shape[:axis]) + tuple(t.shape[axis + 1 :]) for t in tensors]
    if any(r != rest[0] for r in rest):
        raise ShapeError(f"all sizes but those of axis {axis} must be equal")
    first = tensors[0].shape
    return Meta((*first[:axis], sum(t.shape[axis] for t in tensors), *first[axis + 1 :]), tensors[0].dtype)


def _concat_vjp(o: Any, g: Any, *tensors_and_y: Any, axis: int) -> Any:
    tensors = tensors_and_y[:-1]
    axis, rank, at, parts = axis % len(g.shape), len(g.shape), 0, []
    for t in tensors:
        start, stop = [0] * rank, list(g.shape)
        start[axis], stop[axis] = at, at + t.shape[axis]
        at = stop[axis]
        parts.append(o.slice(g, start=tuple(start), stop=tuple(stop), step=(1,) * rank))
    return tuple(parts) if len(parts) > 1 else parts[0]


VIEW = [
    Prim("reshape", Kind.VIEW, _reshape_infer, keep="",
         vjp=lambda o, g, x, y, shape: o.reshape(g, shape=tuple(x.shape))),
    Prim("permute_dims", Kind.VIEW, _permute_infer, _permute_vjp, keep=""),
    Prim("expand", Kind.VIEW, _expand_infer, keep="", vjp=lambda o, g, x, y, shape: sum_to(o, g, tuple(x.shape))),
    # start, stop, step: one number per axis, within the tensor, step > 0
    Prim("slice", Kind.VIEW, _slice_infer, _slice_vjp, keep=""),
    # pads: (low, high, interior) per axis; a negative low or high crops
    Prim("pad", Kind.VIEW, _pad_infer, _pad_vjp, keep="", attrs={"value": 0}),
    Prim("flip", Kind.VIEW, _flip_infer, keep="", vjp=lambda o, g, x, y, axis: o.flip(g, axis=axis)),
    Prim("concat", Kind.VIEW, _concat_infer, _concat_vjp, keep=""),
]  # fmt: skip
