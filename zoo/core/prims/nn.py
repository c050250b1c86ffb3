"""The composites that models are made of. Each body is the op's fallback, its default gradient and its oracle.

Sums and normalisations run in float32 whatever x is stored in. Activations are channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.core.dtype import compute_dtype, float32, int32
from zoo.core.errors import DtypeError, ShapeError
from zoo.core.prim import Meta, composite
from zoo.core.prims import infer
from zoo.core.prims.contract import conv_infer, conv_vjp

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")


def activation_known(activation: str | None) -> None:
    if activation is not None and activation not in ACTIVATIONS:
        raise DtypeError(f"unknown activation {activation!r}", "Known: " + ", ".join(ACTIVATIONS))


def activate(o: Any, y: Any, activation: str | None) -> Any:
    return y if activation is None else getattr(o, activation)(y)


def _of_values(name: str) -> dict[str, Any]:
    """The gradient rule of an activation of x."""
    return {"vjp": lambda o, g, x, y: o.activation_grad(x, g, activation=name), "keep": "x"}


@composite(infer.like(0), **_of_values("gelu"))
def gelu(o, x):
    """x * Phi(x), exact (Hendrycks & Gimpel 2016)."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    return o.cast(o.mul(o.mul(h, 0.5), o.add(o.erf(o.mul(h, math.sqrt(0.5))), 1.0)), dtype=x.dtype)


@composite(infer.like(0), **_of_values("gelu_tanh"))
def gelu_tanh(o, x):
    """gelu with tanh in place of erf, as GPT-2 and others were trained."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    cubic = o.mul(o.add(h, o.mul(o.mul(o.square(h), h), 0.044715)), math.sqrt(2 / math.pi))
    return o.cast(o.mul(o.mul(h, 0.5), o.add(o.tanh(cubic), 1.0)), dtype=x.dtype)


@composite(infer.like(0), **_of_values("quick_gelu"))
def quick_gelu(o, x):
    """x * sigmoid(1.702 x), as OpenAI's CLIP was trained."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    return o.cast(o.mul(h, o.sigmoid(o.mul(h, 1.702))), dtype=x.dtype)


def _activation_grad_infer(x: Any, g: Any, *, activation: str) -> Meta:
    infer.floats(x, g)
    activation_known(activation)
    infer.need_shape("g", g, x.shape)
    return Meta(tuple(x.shape), x.dtype)


@composite(_activation_grad_infer)
def activation_grad(o, x, g, *, activation):
    """g times the slope of an activation: at its argument x, or, for relu, sigmoid and tanh, where its result is x."""
    if activation == "relu":
        return o.where(o.less(0.0, x), g, 0.0)
    if activation == "sigmoid":
        return o.mul(g, o.mul(x, o.sub(1.0, x)))
    if activation == "tanh":
        return o.mul(g, o.sub(1.0, o.mul(x, x)))
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    if activation == "gelu":
        density = o.mul(o.exp(o.mul(o.square(h), -0.5)), 1 / math.sqrt(2 * math.pi))
        slope = o.add(o.mul(o.add(o.erf(o.mul(h, math.sqrt(0.5))), 1.0), 0.5), o.mul(h, density))
    else:  # x * sigmoid(u(x))
        u, du = h, 1.0
        if activation == "quick_gelu":
            u, du = o.mul(h, 1.702), 1.702
        elif activation == "gelu_tanh":
            a, b = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
            u, du = o.mul(h, o.add(o.mul(o.square(h), b), a)), o.add(o.mul(o.square(h), 3 * b), a)
        s = o.sigmoid(u)
        slope = o.add(s, o.mul(o.mul(o.mul(h, s), o.sub(1.0, s)), du))
    return o.cast(o.mul(o.cast(g, dtype=h.dtype), slope), dtype=x.dtype)


def _swiglu_infer(gate: Any, up: Any) -> Meta:
    infer.floats(gate, up)
    infer.need_shape("up", up, gate.shape)
    return Meta(tuple(gate.shape), gate.dtype)


@composite(_swiglu_infer, vjp=lambda o, g, gate, up, y: o.swiglu_grad(gate, up, g), keep="x")
def swiglu(o, gate, up):
    """silu(gate) * up (Shazeer 2020)."""
    return o.mul(o.silu(gate), up)


def _geglu_infer(x: Any) -> Meta:
    infer.floats(x)
    if not x.shape or x.shape[-1] % 2:
        raise ShapeError(f"the last axis of {tuple(x.shape)} has no two halves")
    return Meta((*x.shape[:-1], x.shape[-1] // 2), x.dtype)


@composite(_geglu_infer)
def geglu(o, x):
    """h * gelu(gate), where h and gate are the halves of the last axis (Shazeer 2020)."""
    n, zeros, ones = x.shape[-1] // 2, (0,) * len(x.shape), (1,) * len(x.shape)
    h = o.slice(x, start=zeros, stop=(*x.shape[:-1], n), step=ones)
    gate = o.slice(x, start=(*zeros[1:], n), stop=tuple(x.shape), step=ones)
    return o.mul(h, o.gelu(gate))


def _swiglu_grad_infer(gate: Any, up: Any, g: Any) -> tuple[Meta, Meta]:
    infer.need_shape("g", g, gate.shape)
    return _swiglu_infer(gate, up), _swiglu_infer(gate, up)


@composite(_swiglu_grad_infer)
def swiglu_grad(o, gate, up, g):
    """Gradients of swiglu in gate and up."""
    return o.activation_grad(gate, o.mul(g, up), activation="silu"), o.mul(g, o.silu(gate))


def _axis_infer(x: Any, *, axis: int) -> Meta:
    infer.floats(x)
    infer.axis_index(axis, len(x.shape))
    return Meta(tuple(x.shape), x.dtype)


def _axis_grad_infer(y: Any, g: Any, *, axis: int) -> Meta:
    infer.need_shape("g", g, y.shape)
    return _axis_infer(y, axis=axis)


@composite(_axis_grad_infer)
def softmax_grad(o, y, g, *, axis):
    """Gradient of softmax, from its result."""
    gy = o.mul(g, y)
    return o.sub(gy, o.mul(y, o.sum(gy, axis=axis, keepdims=True)))


@composite(_axis_infer, vjp=lambda o, g, x, y, axis: o.softmax_grad(y, g, axis=axis), keep="y")
def softmax(o, x, *, axis=-1):
    if x.shape[axis] == 0:
        return x
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    e = o.exp(o.sub(h, o.max(h, axis=axis, keepdims=True)))
    return o.cast(o.div(e, o.sum(e, axis=axis, keepdims=True)), dtype=x.dtype)


@composite(_axis_grad_infer)
def log_softmax_grad(o, y, g, *, axis):
    """Gradient of log_softmax, from its result."""
    return o.sub(g, o.mul(o.exp(y), o.sum(g, axis=axis, keepdims=True)))


@composite(_axis_infer, vjp=lambda o, g, x, y, axis: o.log_softmax_grad(y, g, axis=axis), keep="y")
def log_softmax(o, x, *, axis=-1):
    if x.shape[axis] == 0:
        return x
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    return o.cast(o.sub(h, o.logsumexp(h, axis=axis, keepdims=True)), dtype=x.dtype)


def _cross_entropy_infer(logits: Any, targets: Any) -> Meta:
    infer.floats(logits)
    infer.integers(targets)
    infer.need_shape("targets", targets, logits.shape[:-1], "One class number per row of logits.")
    return Meta(tuple(targets.shape), compute_dtype(logits.dtype))


def _cross_entropy_grad_infer(logits: Any, targets: Any, g: Any) -> Meta:
    infer.need_shape("g", g, _cross_entropy_infer(logits, targets).shape)
    return Meta(tuple(logits.shape), logits.dtype)


@composite(_cross_entropy_grad_infer)
def cross_entropy_grad(o, logits, targets, g):
    """(softmax(logits) - 1 at the target) g.  g (...) -> (..., C)."""
    x = o.cast(logits, dtype=compute_dtype(logits.dtype))
    p = o.softmax(x, axis=-1)
    column = o.iota(shape=tuple(x.shape), axis=len(x.shape) - 1, dtype=int32)
    hot = o.equal(column, o.cast(o.reshape(targets, shape=(*targets.shape, 1)), dtype=int32))
    slope = o.sub(p, o.cast(hot, dtype=p.dtype))
    return o.cast(o.mul(slope, o.cast(o.reshape(g, shape=(*g.shape, 1)), dtype=p.dtype)), dtype=logits.dtype)


@composite(
    _cross_entropy_infer, keep="x",
    vjp=lambda o, g, logits, targets, y: (o.cross_entropy_grad(logits, targets, g), None),
)  # fmt: skip
def cross_entropy(o, logits, targets):
    """-log softmax(logits)[target], one value per row, in float32.  logits (..., C), targets (...) -> (...)."""
    x = o.cast(logits, dtype=compute_dtype(logits.dtype))
    picked = o.gather(x, o.reshape(targets, shape=(*targets.shape, 1)), axis=-1)
    return o.sub(o.logsumexp(x, axis=-1, keepdims=False), o.reshape(picked, shape=tuple(targets.shape)))


def _linear_infer(x: Any, w: Any, bias: Any, *, activation: str | None) -> Meta:
    infer.floats(x, w, bias)
    activation_known(activation)
    infer.need_ndim("the weight", w, 2, "(outputs, inputs)")
    if not x.shape or x.shape[-1] != w.shape[1]:
        raise ShapeError(
            f"x has {x.shape[-1] if x.shape else 0} inputs, the weight {tuple(w.shape)} takes {w.shape[1]}",
            "Weights are (outputs, inputs), as published.",
        )
    infer.need_shape("bias", bias, (w.shape[0],))
    return Meta((*x.shape[:-1], w.shape[0]), x.dtype)


def _linear_vjp(o: Any, g: Any, x: Any, w: Any, bias: Any, y: Any, *, activation: str | None) -> Any:
    if activation not in (None, "relu"):
        return NotImplemented
    if activation == "relu":
        g = o.activation_grad(y, g, activation="relu")
    flat = (math.prod(g.shape[:-1]), w.shape[0])
    rows = o.reshape(g, shape=flat)
    return (
        lambda: o.linear(g, o.permute_dims(w, axes=(1, 0)), None, activation=None),
        lambda: o.matmul(rows, o.reshape(x, shape=(flat[0], w.shape[1])), transpose_a=True),
        lambda: o.sum(rows, axis=0),
    )


def _kept_of_product(attrs: Mapping[str, Any]) -> str:
    """x and the weight; the result where relu's slope is read off it; of other activations all that the body takes."""
    return {None: "01", "relu": "01y"}.get(attrs["activation"], "x")


@composite(_linear_infer, vjp=_linear_vjp, keep=_kept_of_product)
def linear(o, x, w, bias, *, activation=None):
    """activation(x @ w.T + bias).  x (..., K), w (N, K), bias (N,) or None -> (..., N), dtype of x."""
    dtype = compute_dtype(x.dtype)
    flat = o.reshape(o.cast(x, dtype=dtype), shape=(math.prod(x.shape[:-1]), x.shape[-1]))
    y = o.matmul(flat, o.cast(w, dtype=dtype), transpose_b=True)
    y = o.reshape(y, shape=(*x.shape[:-1], w.shape[0]))
    if bias is not None:
        y = o.add(y, o.cast(bias, dtype=dtype))
    return o.cast(activate(o, y, activation), dtype=x.dtype)


def _conv_bias_act_infer(x: Any, w: Any, bias: Any, residual: Any, *, activation: str | None, **conv: Any) -> Meta:
    activation_known(activation)
    y = conv_infer(x, w, input_dilation=(1,) * len(conv["stride"]), flip=False, **conv)
    infer.need_shape("bias", bias, (w.shape[0],))
    infer.need_shape("residual", residual, y.shape)
    return y


def _conv_bias_act_vjp(
    o: Any, g: Any, x: Any, w: Any, bias: Any, residual: Any, y: Any, *, activation: str | None, **conv: Any
) -> Any:
    if activation not in (None, "relu"):
        return NotImplemented
    if activation == "relu":
        g = o.activation_grad(y, g, activation="relu")
    dx, dw = conv_vjp(o, g, x, w, None, input_dilation=(1,) * len(conv["stride"]), flip=False, **conv)
    return dx, dw, lambda: o.sum(g, axis=tuple(range(len(g.shape) - 1))), g


@composite(_conv_bias_act_infer, vjp=_conv_bias_act_vjp, keep=_kept_of_product)
def conv_bias_act(o, x, w, bias, residual, *, stride, padding, dilation, groups, activation=None):
    """activation(conv(x, w) + bias + residual); bias and residual may be None."""
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = o.conv(x, w, input_dilation=(1,) * len(stride), flip=False, **settings)
    if bias is not None:
        y = o.add(y, o.cast(bias, dtype=y.dtype))
    if residual is not None:
        y = o.add(y, residual)
    return activate(o, y, activation)


def _embedding_infer(table: Any, ids: Any) -> Meta:
    infer.integers(ids)
    infer.need_ndim("the table", table, 2, "(vocabulary, width)")
    return Meta((*ids.shape, table.shape[1]), table.dtype)


@composite(_embedding_infer)
def embedding(o, table, ids):
    """table[ids].  table (V, D), ids (...) -> (..., D)."""
    return o.take(table, ids)


def _upsample_infer(x: Any, *, scale: tuple[int, ...]) -> Meta:
    if len(x.shape) != len(scale) + 2 or min(scale) < 1:
        raise ShapeError("x needs shape (N, *S, C) and scale one whole number, at least 1, for each spatial axis")
    return Meta((x.shape[0], *(n * s for n, s in zip(x.shape[1:-1], scale, strict=True)), x.shape[-1]), x.dtype)


@composite(_upsample_infer)
def upsample(o, x, *, scale):
    """Each pixel repeated `scale` times along each spatial axis (nearest neighbour).  x (N, *S, C)."""
    apart, wide = [x.shape[0]], [x.shape[0]]
    for n, s in zip(x.shape[1:-1], scale, strict=True):
        apart += [n, 1]
        wide += [n, s]
    y = o.expand(o.reshape(x, shape=(*apart, x.shape[-1])), shape=(*wide, x.shape[-1]))
    return o.reshape(y, shape=(x.shape[0], *(n * s for n, s in zip(x.shape[1:-1], scale, strict=True)), x.shape[-1]))


def _dropout_infer(x: Any, start: Any = None, *, p: float, seed: int, offset: int) -> Meta:
    infer.floats(x)
    infer.need_start(start)
    if not 0 <= p < 1:
        raise ShapeError(f"p = {p}; the share that is dropped lies in [0, 1)")
    return Meta(tuple(x.shape), x.dtype)


@composite(_dropout_infer, vjp=lambda o, g, x, start, y, **attrs: (o.dropout(g, start, **attrs), None), keep="1")
def dropout(o, x, start=None, *, p, seed, offset):
    """x / (1 - p) with a share p of the values set to 0 (Srivastava et al. 2014); which, is a function of seed and
    offset, or of seed and start + offset: start is one int64, or None."""
    drawn = () if start is None else (start,)
    kept = o.greater_equal(o.uniform(*drawn, shape=tuple(x.shape), seed=seed, offset=offset, dtype=float32), p)
    return o.where(kept, o.mul(x, 1 / (1 - p)), 0.0)


def _adamw_infer(p: Any, g: Any, m: Any, v: Any, **attrs: Any) -> tuple[Meta, Meta, Meta]:
    infer.floats(p, g, m, v)
    for name, t in (("gradient", g), ("m", m), ("v", v)):
        infer.need_shape(name, t, p.shape)
    return Meta(tuple(p.shape), p.dtype), Meta(tuple(m.shape), m.dtype), Meta(tuple(v.shape), v.dtype)


@composite(_adamw_infer)
def adamw_step(o, p, g, m, v, *, lr, beta1, beta2, eps, weight_decay, step, donate=False):
    """One step of AdamW (Loshchilov & Hutter 2019), `step` counted from 1. -> parameter, first and second moment.
    donate=True allows the kernel to write them into the memory of p, m and v."""
    dtype = m.dtype
    g, w = o.cast(g, dtype=dtype), o.cast(p, dtype=dtype)
    m = o.add(o.mul(m, beta1), o.mul(g, 1 - beta1))
    v = o.add(o.mul(v, beta2), o.mul(o.square(g), 1 - beta2))
    denominator = o.add(o.sqrt(o.mul(v, 1 / (1 - beta2**step))), eps)
    w = o.sub(o.mul(w, 1 - lr * weight_decay), o.mul(o.div(m, denominator), lr / (1 - beta1**step)))
    return o.cast(w, dtype=p.dtype), m, v
