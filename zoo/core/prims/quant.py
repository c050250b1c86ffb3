"""Quantised weights, symmetric, for matrices (N outputs, K inputs); int8 also for convolutions, whose weight
(N, *kernel, C) is a matrix with K = kernel * C.

int8   q int8 (N, K), scale float32 (N,):      w = q * scale,       scale = max|row| / 127
int4   q uint8 (N, K/2), scale float16 (N, K/32): w = (nibble - 8) * scale of its group of 32 inputs; the low nibble is
       the even input. The scale maps the value of largest magnitude to -8, so that all 16 levels are used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.dtype import compute_dtype, float16, float32, int8, uint8
from zoo.core.errors import DtypeError, ShapeError
from zoo.core.prim import NO_GRADIENT, Kind, Meta, Prim, composite
from zoo.core.prims import infer, nn

GROUP = 32  # inputs that share an int4 scale; llama.cpp's q4_0 has the same
FORMATS = ("int8", "int4")


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise DtypeError(f"unknown weight format {format!r}", "Known: " + ", ".join(FORMATS))


def _quantize_infer(w: Any, *, format: str) -> tuple[Meta, Meta]:
    _check_format(format)
    infer.floats(w)
    infer.need_ndim("the weight", w, 2, "(outputs, inputs)")
    n, k = w.shape
    if format == "int8":
        return Meta((n, k), int8), Meta((n,), float32)
    if k % GROUP:
        raise ShapeError(f"{k} inputs do not divide into groups of {GROUP}", "Keep this matrix in int8.")
    return Meta((n, k // 2), uint8), Meta((n, k // GROUP), float16)


def _check_quantized(q: Any, scale: Any, format: str) -> tuple[int, int]:
    _check_format(format)
    infer.need_ndim("q", q, 2, "(outputs, inputs) for int8, (outputs, inputs / 2) for int4")
    n, k = q.shape[0], q.shape[1] * (2 if format == "int4" else 1)
    infer.need_shape("scale", scale, (n,) if format == "int8" else (n, k // GROUP))
    if q.dtype != (int8 if format == "int8" else uint8):
        raise DtypeError(f"q is {q.dtype.name}, which is not what {format} is stored in")
    return n, k


def _dequantize_infer(q: Any, scale: Any, *, format: str, dtype: np.dtype) -> Meta:
    return Meta(_check_quantized(q, scale, format), dtype)


def _qmatmul_infer(x: Any, q: Any, scale: Any, *, format: str) -> Meta:
    infer.floats(x)
    n, k = _check_quantized(q, scale, format)
    if not x.shape or x.shape[-1] != k:
        raise ShapeError(f"x has {x.shape[-1] if x.shape else 0} inputs, the quantised weight has {k}")
    return Meta((*x.shape[:-1], n), x.dtype)


def _qmatmul_vjp(o: Any, g: Any, x: Any, q: Any, scale: Any, y: Any, *, format: str) -> Any:
    """Only x has a gradient: a quantised weight is a constant (adapters are trained beside it)."""

    def dx() -> Any:
        rows = o.reshape(g, shape=(math.prod(g.shape[:-1]), g.shape[-1]))
        return o.reshape(o.matmul(rows, o.dequantize(q, scale, format=format, dtype=g.dtype)), shape=tuple(x.shape))

    return dx, None, None


QUANT = [
    Prim("quantize", Kind.QUANT, _quantize_infer, NO_GRADIENT),
    Prim("dequantize", Kind.QUANT, _dequantize_infer, NO_GRADIENT, attrs={"dtype": float32}),
    # x (..., K) times the weight's transpose -> (..., N); a backend may quantise x per row on the fly
    Prim("qmatmul", Kind.QUANT, _qmatmul_infer, _qmatmul_vjp, keep="12"),
]


def _qlinear_infer(x: Any, q: Any, scale: Any, bias: Any, *, format: str, activation: Any) -> Meta:
    y = _qmatmul_infer(x, q, scale, format=format)
    infer.need_shape("bias", bias, (y.shape[-1],))
    return y


def _qlinear_vjp(o: Any, g: Any, x: Any, q: Any, scale: Any, bias: Any, y: Any, *, format: str, activation: Any) -> Any:
    """Without an activation; with one, the body is differentiated, which multiplies once more."""
    if activation is not None:
        return NotImplemented
    dx, *_ = _qmatmul_vjp(o, g, x, q, scale, y, format=format)
    rows = (math.prod(g.shape[:-1]), g.shape[-1])
    return dx, None, None, lambda: o.sum(o.reshape(g, shape=rows), axis=0)


@composite(_qlinear_infer, _qlinear_vjp, keep="x")
def qlinear(o, x, q, scale, bias, *, format, activation=None):
    dtype = compute_dtype(x.dtype)
    y = o.qmatmul(o.cast(x, dtype=dtype), q, scale, format=format)
    if bias is not None:
        y = o.add(y, o.cast(bias, dtype=dtype))
    return o.cast(getattr(o, activation)(y) if activation else y, dtype=x.dtype)


def _qlinears_infer(x: Any, *weights: Any, format: str) -> tuple[Meta, ...]:
    each = zip(weights[::3], weights[1::3], weights[2::3], strict=True)
    return tuple([_qlinear_infer(x, *one, format=format, activation=None) for one in each])


@composite(_qlinears_infer)
def qlinears(o, x, *weights, format):
    each = zip(weights[::3], weights[1::3], weights[2::3], strict=True)
    return tuple(o.qlinear(x, *one, format=format, activation=None) for one in each)


def _qembedding_infer(q: Any, scale: Any, ids: Any) -> Meta:
    width = _check_quantized(q, scale, "int8")[1]
    infer.integers(ids)
    return Meta((*ids.shape, width), float32)


@composite(_qembedding_infer, NO_GRADIENT)
def qembedding(o, q, scale, ids):
    rows = o.cast(o.take(q, ids), dtype=float32)
    return o.mul(rows, o.reshape(o.take(scale, ids), shape=(*ids.shape, 1)))


def _qconv_infer(x: Any, q: Any, scale: Any, bias: Any, residual: Any, *, activation: Any, **conv: Any) -> Meta:
    if q.dtype != int8:
        raise DtypeError(f"q is {q.dtype.name}; convolutions are quantised to int8")
    w = Meta(tuple(q.shape), x.dtype)
    y: Meta = nn.conv_bias_act.infer(x, w, bias, residual, activation=activation, groups=1, **conv)
    infer.need_shape("scale", scale, q.shape[:1])
    return y


@composite(_qconv_infer)
def qconv(o, x, q, scale, bias, residual, *, stride, padding, dilation, activation=None):
    """activation(conv(x, q * scale) + bias + residual), in float32."""
    dtype = compute_dtype(x.dtype)
    rows = o.reshape(q, shape=(q.shape[0], math.prod(q.shape[1:])))
    w = o.reshape(o.dequantize(rows, scale, format="int8", dtype=dtype), shape=tuple(q.shape))
    bias, residual = (a if a is None else o.cast(a, dtype=dtype) for a in (bias, residual))
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 1, "activation": activation}
    return o.cast(o.conv_bias_act(o.cast(x, dtype=dtype), w, bias, residual, **settings), dtype=x.dtype)
