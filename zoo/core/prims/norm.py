"""Normalisations, in float32 whatever x is stored in, and their gradients. Activations are channels-last."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.dtype import compute_dtype
from zoo.core.errors import ShapeError
from zoo.core.prim import Meta, composite
from zoo.core.prims import infer
from zoo.core.prims.nn import activate, activation_known


def _norm_infer(x: Any, weight: Any, bias: Any = None, **attrs: Any) -> Meta:
    infer.floats(x, weight, bias)
    infer.axis_index(-1, len(x.shape))
    infer.need_shape("weight", weight, x.shape[-1:])
    infer.need_shape("bias", bias, x.shape[-1:])
    return Meta(tuple(x.shape), x.dtype)


def _rms_norm_grad_infer(x: Any, weight: Any, g: Any, *, eps: float) -> tuple[Meta, Meta]:
    infer.need_shape("g", g, x.shape)
    return _norm_infer(x, weight), Meta(tuple(weight.shape), weight.dtype)


@composite(_rms_norm_grad_infer)
def rms_norm_grad(o, x, weight, g, *, eps):
    """Gradients of rms_norm in x and weight: with h the normalised x and v = g weight, (v - h mean(v h)) scale."""
    dtype = compute_dtype(x.dtype)
    wide, slopes = o.cast(x, dtype=dtype), o.cast(g, dtype=dtype)
    scale = o.rsqrt(o.add(o.mean(o.square(wide), axis=-1, keepdims=True), eps))
    h, v = o.mul(wide, scale), o.mul(slopes, o.cast(weight, dtype=dtype))
    dx = o.mul(o.sub(v, o.mul(h, o.mean(o.mul(v, h), axis=-1, keepdims=True))), scale)
    dw = o.sum(o.mul(slopes, h), axis=tuple(range(len(x.shape) - 1)))
    return o.cast(dx, dtype=x.dtype), o.cast(dw, dtype=weight.dtype)


@composite(_norm_infer, vjp=lambda o, g, x, weight, y, eps: o.rms_norm_grad(x, weight, g, eps=eps), keep="x")
def rms_norm(o, x, weight, *, eps=1e-5):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis, in float32 (Zhang & Sennrich 2019)."""
    h = o.cast(x, dtype=compute_dtype(x.dtype))
    h = o.mul(h, o.rsqrt(o.add(o.mean(o.square(h), axis=-1, keepdims=True), eps)))
    return o.mul(o.cast(h, dtype=x.dtype), o.cast(weight, dtype=x.dtype))


def _standardise(o: Any, h: Any, axis: Any, eps: float) -> Any:
    centred = o.sub(h, o.mean(h, axis=axis, keepdims=True))
    return o.mul(centred, o.rsqrt(o.add(o.mean(o.square(centred), axis=axis, keepdims=True), eps)))


def _scale_shift(o: Any, h: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        h = o.mul(h, o.cast(weight, dtype=h.dtype))
    return h if bias is None else o.add(h, o.cast(bias, dtype=h.dtype))


def _group_norm_grad_infer(x: Any, weight: Any, g: Any, *, groups: int, eps: float) -> tuple[Meta, Meta, Meta]:
    infer.need_shape("g", g, x.shape)
    y = _group_norm_infer(x, weight, None, groups=groups, eps=eps, activation=None)
    channels = Meta(tuple(x.shape[-1:]), compute_dtype(x.dtype))
    return y, channels, channels


@composite(_group_norm_grad_infer)
def group_norm_grad(o, x, weight, g, *, groups, eps):
    """Gradients of group_norm in x, weight and bias: with h the normalised x and v = g weight,
    (v - mean(v) - h mean(v h)) scale, means over a group. Layer norm is one group of rows (N, C); batch norm one sample
    with a group for each channel."""
    dtype = compute_dtype(x.dtype)
    apart = (x.shape[0], math.prod(x.shape[1:-1]), groups, x.shape[-1] // groups)
    wide, slopes = o.cast(x, dtype=dtype), o.cast(g, dtype=dtype)
    v = slopes if weight is None else o.mul(slopes, o.cast(weight, dtype=dtype))
    wide, v = o.reshape(wide, shape=apart), o.reshape(v, shape=apart)

    def mean(t: Any) -> Any:
        return o.mean(t, axis=(1, 3), keepdims=True)

    centred = o.sub(wide, mean(wide))
    scale = o.rsqrt(o.add(mean(o.square(centred)), eps))
    h = o.mul(centred, scale)
    dx = o.mul(o.sub(o.sub(v, mean(v)), o.mul(h, mean(o.mul(v, h)))), scale)
    leading = tuple(range(len(x.shape) - 1))
    dw = o.sum(o.mul(slopes, o.reshape(h, shape=tuple(x.shape))), axis=leading)
    return o.cast(o.reshape(dx, shape=tuple(x.shape)), dtype=x.dtype), dw, o.sum(slopes, axis=leading)


def _rows_grad(o: Any, g: Any, x: Any, weight: Any, shape: tuple[int, ...], groups: int, eps: float) -> Any:
    """group_norm_grad of x seen in another shape."""
    flat, slopes = o.reshape(x, shape=shape), o.reshape(g, shape=shape)
    dx, dw, db = o.group_norm_grad(flat, weight, slopes, groups=groups, eps=eps)
    return o.reshape(dx, shape=tuple(x.shape)), dw, db


def _layer_norm_vjp(o: Any, g: Any, x: Any, weight: Any, bias: Any, y: Any, *, eps: float) -> Any:
    return _rows_grad(o, g, x, weight, (math.prod(x.shape[:-1]), x.shape[-1]), 1, eps)


@composite(_norm_infer, vjp=_layer_norm_vjp, keep="01")
def layer_norm(o, x, weight, bias, *, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis (Ba et al. 2016)."""
    h = _standardise(o, o.cast(x, dtype=compute_dtype(x.dtype)), -1, eps)
    return o.cast(_scale_shift(o, h, weight, bias), dtype=x.dtype)


def _group_norm_infer(x: Any, weight: Any, bias: Any, *, groups: int, eps: float, activation: str | None) -> Meta:
    activation_known(activation)
    if len(x.shape) < 2 or x.shape[-1] % groups:
        raise ShapeError(f"{x.shape[-1] if x.shape else 0} channels do not divide into {groups} groups")
    return _norm_infer(x, weight, bias)


def _group_norm_vjp(
    o: Any, g: Any, x: Any, weight: Any, bias: Any, y: Any, *, groups: int, eps: float, activation: str | None
) -> Any:
    if activation is not None:
        h = o.group_norm(x, weight, bias, groups=groups, eps=eps, activation=None)
        by_result = activation in ("relu", "sigmoid", "tanh")
        g = o.activation_grad(activate(o, h, activation) if by_result else h, g, activation=activation)
    return o.group_norm_grad(x, weight, g, groups=groups, eps=eps)


@composite(_group_norm_infer, vjp=_group_norm_vjp, keep="x")
def group_norm(o, x, weight, bias, *, groups, eps=1e-5, activation=None):
    """Each group of channels of each sample standardised over space and group (Wu & He 2018).  x (N, *S, C)."""
    N, C = x.shape[0], x.shape[-1]
    h = o.reshape(o.cast(x, dtype=compute_dtype(x.dtype)), shape=(N, math.prod(x.shape[1:-1]), groups, C // groups))
    h = o.reshape(_standardise(o, h, (1, 3), eps), shape=tuple(x.shape))
    return o.cast(activate(o, _scale_shift(o, h, weight, bias), activation), dtype=x.dtype)


def _batch_norm_infer(x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, eps: float) -> Meta:
    infer.need_shape("mean", mean, x.shape[-1:])
    infer.need_shape("var", var, x.shape[-1:])
    return _norm_infer(x, weight, bias)


@composite(_batch_norm_infer)
def batch_norm(o, x, mean, var, weight, bias, *, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias, by channel, with statistics that are given (Ioffe & Szegedy
    2015)."""
    dtype = compute_dtype(x.dtype)
    scale = o.rsqrt(o.add(o.cast(var, dtype=dtype), eps))
    h = o.mul(o.sub(o.cast(x, dtype=dtype), o.cast(mean, dtype=dtype)), scale)
    return o.cast(_scale_shift(o, h, weight, bias), dtype=x.dtype)


def _batch_norm_train_infer(x: Any, weight: Any, bias: Any, *, eps: float) -> tuple[Meta, Meta, Meta]:
    channels = Meta(tuple(x.shape[-1:]), compute_dtype(x.dtype))
    return _norm_infer(x, weight, bias), channels, channels


def _batch_norm_train_vjp(o: Any, g: Any, x: Any, weight: Any, bias: Any, y: Any, *, eps: float) -> Any:
    if g[0] is None or any(other is not None for other in g[1:]):
        return NotImplemented  # something depends on the statistics themselves
    return _rows_grad(o, g[0], x, weight, (1, math.prod(x.shape[:-1]), x.shape[-1]), x.shape[-1], eps)


@composite(_batch_norm_train_infer, vjp=_batch_norm_train_vjp, keep="x")
def batch_norm_train(o, x, weight, bias, *, eps=1e-5):
    """batch_norm by the mean and variance of x itself, over all axes but the last. -> result, mean, variance."""
    wide, axes = o.cast(x, dtype=compute_dtype(x.dtype)), tuple(range(len(x.shape) - 1))
    mean, var = o.mean(wide, axis=axes), o.var(wide, axis=axes)
    return o.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var
