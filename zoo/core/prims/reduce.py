"""Reductions. `axis` is an int, several, or None for all; half precision is accumulated in float32."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.dtype import bool_, compute_dtype, int32, sum_dtype
from zoo.core.errors import ShapeError
from zoo.core.prim import NO_GRADIENT, Kind, Meta, Prim, composite
from zoo.core.prims import infer

AXES = {"axis": None, "keepdims": False}


def _sum_infer(x: Any, *, axis: Any, keepdims: bool) -> Meta:
    dtype = sum_dtype(x.dtype)
    return Meta(infer.reduced(x.shape, infer.axes_tuple(axis, len(x.shape)), keepdims), dtype)


def _extreme_infer(x: Any, *, axis: Any, keepdims: bool) -> Meta:
    axes = infer.axes_tuple(axis, len(x.shape))
    if 0 in [x.shape[a] for a in axes]:  # `any` is an op below
        raise ShapeError(f"no values along axis {axis}: it has size 0", "A maximum needs at least one value.")
    return Meta(infer.reduced(x.shape, axes, keepdims), x.dtype)


def spread(o: Any, g: Any, shape: tuple[int, ...], axis: Any) -> Any:
    """A reduced value back over the axes it was reduced along."""
    kept = infer.reduced(shape, infer.axes_tuple(axis, len(shape)), keepdims=True)
    return o.expand(o.reshape(g, shape=kept), shape=tuple(shape))


def _extreme_vjp(o: Any, g: Any, x: Any, y: Any, *, axis: Any, keepdims: bool) -> Any:
    """Shared evenly by all places that reach the maximum."""
    hit = o.cast(o.equal(x, spread(o, y, x.shape, axis)), dtype=x.dtype)
    share = o.div(g, o.sum(hit, axis=axis, keepdims=keepdims))
    return o.mul(spread(o, share, x.shape, axis), hit)


def _arg_infer(x: Any, *, axis: int, keepdims: bool) -> Meta:
    return Meta(_extreme_infer(x, axis=axis, keepdims=keepdims).shape, int32)


def _cumsum_infer(x: Any, *, axis: int) -> Meta:
    infer.axis_index(axis, len(x.shape))
    return Meta(tuple(x.shape), sum_dtype(x.dtype))


def _cumsum_vjp(o: Any, g: Any, x: Any, y: Any, *, axis: int) -> Any:
    return o.flip(o.cumsum(o.flip(g, axis=axis), axis=axis), axis=axis)


REDUCE = [
    Prim("sum", Kind.REDUCE, _sum_infer, attrs=AXES, keep="",
         vjp=lambda o, g, x, y, axis, keepdims: spread(o, g, x.shape, axis)),
    Prim("max", Kind.REDUCE, _extreme_infer, _extreme_vjp, attrs=AXES),
    Prim("min", Kind.REDUCE, _extreme_infer, _extreme_vjp, attrs=AXES),
    Prim("argmax", Kind.REDUCE, _arg_infer, NO_GRADIENT, attrs={"keepdims": False}),  # the first of equals
    Prim("argmin", Kind.REDUCE, _arg_infer, NO_GRADIENT, attrs={"keepdims": False}),
    Prim("cumsum", Kind.REDUCE, _cumsum_infer, _cumsum_vjp, keep=""),
]  # fmt: skip


def count(shape: tuple[int, ...], axis: Any) -> int:
    return math.prod(shape[a] for a in infer.axes_tuple(axis, len(shape)))


def _mean_infer(x: Any, *, axis: Any, keepdims: bool) -> Meta:
    infer.floats(x)
    return _sum_infer(x, axis=axis, keepdims=keepdims)


@composite(_mean_infer, keep="", vjp=lambda o, g, x, y, axis, keepdims:
           spread(o, o.mul(g, 1.0 / max(count(x.shape, axis), 1)), x.shape, axis))  # fmt: skip
def mean(o, x, *, axis=None, keepdims=False):
    return o.div(o.sum(x, axis=axis, keepdims=keepdims), float(count(x.shape, axis)))


@composite(_mean_infer)
def var(o, x, *, axis=None, keepdims=False):
    """Population variance (no Bessel correction), two passes: mean of squared deviations."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    deviation = o.sub(h, o.mean(h, axis=axis, keepdims=True))
    return o.cast(o.mean(o.square(deviation), axis=axis, keepdims=keepdims), dtype=x.dtype)


def _truth_infer(x: Any, *, axis: Any, keepdims: bool) -> Meta:
    return Meta(infer.reduced(x.shape, infer.axes_tuple(axis, len(x.shape)), keepdims), bool_)


@composite(_truth_infer, vjp=NO_GRADIENT)
def any(o, x, *, axis=None, keepdims=False):
    return o.greater(o.sum(o.cast(o.not_equal(x, 0), dtype=int32), axis=axis, keepdims=keepdims), 0)


@composite(_truth_infer, vjp=NO_GRADIENT)
def all(o, x, *, axis=None, keepdims=False):
    return o.equal(o.sum(o.cast(o.equal(x, 0), dtype=int32), axis=axis, keepdims=keepdims), 0)


def _logsumexp_infer(x: Any, *, axis: Any, keepdims: bool) -> Meta:
    infer.floats(x)
    return _extreme_infer(x, axis=axis, keepdims=keepdims)


@composite(_logsumexp_infer)
def logsumexp(o, x, *, axis=None, keepdims=False):
    """log(sum(exp(x))), with the maximum taken out so that nothing overflows; a row of -inf gives -inf."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    peak = o.max(h, axis=axis, keepdims=True)
    peak = o.where(o.less(o.abs(peak), float("inf")), peak, 0.0)
    total = o.log(o.sum(o.exp(o.sub(h, peak)), axis=axis, keepdims=True))
    y = o.cast(o.add(total, peak), dtype=x.dtype)
    shape = infer.reduced(x.shape, infer.axes_tuple(axis, len(x.shape)), keepdims)
    return o.reshape(y, shape=shape)


__all__ = ["REDUCE", "all", "any", "count", "logsumexp", "mean", "spread", "var"]
