"""Contraction kernels: matmul by the array module's BLAS, convolution as im2col and one matmul, pooling over views."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.dtype import compute_dtype, promote
from zoo.core.prims.contract import offsets, window_out, window_slice


def matmul(b: Any, x: Any, y: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    out = promote(x.dtype, y.dtype)
    wide = compute_dtype(out)
    x, y = x.astype(wide, copy=False), y.astype(wide, copy=False)
    product = b.xp.matmul(x.swapaxes(-1, -2) if transpose_a else x, y.swapaxes(-1, -2) if transpose_b else y)
    return product.astype(out, copy=False)


def _windows(b: Any, x: Any, window: Any, stride: Any, dilation: Any, out: Any) -> Any:
    """(N, *out, *window, C), a view: the values under every window of a padded x (N, *S, C)."""
    rank, steps = len(window), x.strides
    spatial = steps[1 : 1 + rank]
    strides = (
        steps[0],
        *(s * m for s, m in zip(spatial, stride, strict=True)),
        *(s * d for s, d in zip(spatial, dilation, strict=True)),
        steps[-1],
    )
    return b.xp.lib.stride_tricks.as_strided(x, (x.shape[0], *out, *window, x.shape[-1]), strides)


def conv(b: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int,
         flip: bool) -> Any:  # fmt: skip
    xp, rank, dtype = b.xp, len(stride), x.dtype
    wide = compute_dtype(promote(x.dtype, w.dtype))
    kernel = w.shape[1:-1]
    settings = zip(x.shape[1:-1], kernel, stride, padding, dilation, input_dilation, strict=True)
    out = tuple(window_out(n, k, s, lo, hi, d, i) for n, k, s, (lo, hi), d, i in settings)
    N, O, I = x.shape[0], w.shape[0], w.shape[-1]
    if min(out) < 1 or not x.size or not w.size:
        return xp.zeros((N, *(max(n, 0) for n in out), O), dtype=dtype)

    pads = ((0, 0, 0), *((lo, hi, i - 1) for (lo, hi), i in zip(padding, input_dilation, strict=True)), (0, 0, 0))
    x = b.kernels["pad"](b, x.astype(wide, copy=False), pads=pads, value=0)
    w = xp.flip(w, axis=tuple(range(1, rank + 1))) if flip else w
    columns = _windows(b, x, kernel, stride, dilation, out)  # (N, *out, *kernel, C)
    columns = columns.reshape(N * math.prod(out), math.prod(kernel), groups, I).transpose(2, 0, 1, 3)
    columns = columns.reshape(groups, N * math.prod(out), math.prod(kernel) * I)
    rows = w.astype(wide, copy=False).reshape(groups, O // groups, math.prod(kernel) * I)
    y = xp.matmul(columns, rows.swapaxes(-1, -2))  # (groups, N * out, O / groups)
    return y.transpose(1, 0, 2).reshape(N, *out, O).astype(dtype, copy=False)


def _padded(b: Any, x: Any, padding: Any, value: float) -> Any:
    return b.kernels["pad"](b, x, pads=((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)), value=value)


def _out(x: Any, window: Any, stride: Any, padding: Any) -> tuple[int, ...]:
    return tuple(window_out(n, k, s, *p) for n, k, s, p in zip(x.shape[1:-1], window, stride, padding, strict=True))


def _at(x: Any, out: Any, at: Any, stride: Any) -> tuple[slice, ...]:
    part = window_slice(x.shape, out, at, stride)
    return tuple(slice(*s) for s in zip(part["start"], part["stop"], part["step"], strict=True))


def window_max(b: Any, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    lowest = -math.inf if x.dtype.kind in "fV" else b.xp.iinfo(x.dtype).min
    px, out = _padded(b, x, padding, lowest), _out(x, window, stride, padding)
    y = None
    for at in offsets(window):
        part = px[_at(px, out, at, stride)]
        y = part.copy() if y is None else b.xp.maximum(y, part, out=y)
    return y


def window_max_grad(b: Any, x: Any, y: Any, g: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """As the body of the op, but adding into one array."""
    px, out = _padded(b, x, padding, -math.inf), y.shape[1:-1]
    wide = g.astype(compute_dtype(g.dtype), copy=False)  # numpy 2.0 counts references wrongly where bfloat16 meets a 0
    total = b.xp.zeros(px.shape, dtype=wide.dtype)
    free = b.xp.ones(y.shape, dtype=bool)
    for at in offsets(window):
        where = _at(px, out, at, stride)
        hit = (px[where] == y) & free
        free &= ~hit
        total[where] += b.xp.where(hit, wide, 0)
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(padding, x.shape[1:-1], strict=True))
    return total[(slice(None), *inner)].astype(g.dtype, copy=False)


def window_sum(b: Any, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    px, out = _padded(b, x, padding, 0), _out(x, window, stride, padding)
    y = None
    for at in offsets(window):
        part = px[_at(px, out, at, stride)]
        y = part.astype(compute_dtype(x.dtype), copy=True) if y is None else b.xp.add(y, part, out=y)
    return y.astype(x.dtype, copy=False)  # type: ignore[union-attr]


KERNELS = {
    "matmul": matmul,
    "conv": conv,
    "window_max": window_max,
    "window_max_grad": window_max_grad,
    "window_sum": window_sum,
}
