"""Attention, its gradients, and rotary positions. Scores and sums are in float32 whatever is stored."""

from __future__ import annotations

import functools
import math
from typing import Any

from zoo.core.dtype import compute_dtype, int32
from zoo.core.errors import DtypeError, ShapeError
from zoo.core.prim import Meta, composite
from zoo.core.prims import infer
from zoo.core.prims.view import sum_to


def _attention_infer(
    q: Any, k: Any, v: Any, bias: Any, lengths: Any = None, *, causal: bool, scale: float | None
) -> Meta:
    infer.floats(q, k, v, bias)
    for name, t in (("q", q), ("k", k), ("v", v)):
        infer.need_ndim(name, t, 4, "(batch, length, heads, head_dim)")
    B, L, H, D = q.shape
    if k.shape[0] != B or v.shape[:3] != k.shape[:3] or k.shape[3] != D:
        raise ShapeError(f"k is {tuple(k.shape)} and v {tuple(v.shape)}; (B, S, H_kv, {D}) was expected, with B = {B}")
    if k.shape[2] == 0 or H % k.shape[2]:
        raise ShapeError(f"{H} query heads do not divide among {k.shape[2]} key heads")
    if bias is not None:
        scores = (B, H, L, k.shape[1])
        if infer.broadcast([bias.shape, scores]) != scores:
            raise ShapeError(f"bias is {tuple(bias.shape)}; it must broadcast to (B, H, L, S) = {scores}")
    if lengths is not None:
        infer.integers(lengths)
        infer.need_shape("lengths", lengths, (B,))
    return Meta((B, L, H, v.shape[3]), q.dtype)


def _by_key_head(o: Any, x: Any, dtype: Any, heads: int) -> Any:
    """(B, L, H, D) -> (B, heads, G * L, D): the G query heads of a key head under each other."""
    B, L, H, D = x.shape
    x = o.reshape(o.cast(x, dtype=dtype), shape=(B, L, heads, H // heads, D))
    return o.reshape(o.permute_dims(x, axes=(0, 2, 3, 1, 4)), shape=(B, heads, H // heads * L, D))


def _from_key_head(o: Any, x: Any, like: Any) -> Any:
    """The reverse, in the shape but for D and in the dtype of `like`."""
    (B, L, H), heads, D = like.shape[:3], x.shape[1], x.shape[3]
    x = o.permute_dims(o.reshape(x, shape=(B, heads, H // heads, L, D)), axes=(0, 3, 1, 2, 4))
    return o.cast(o.reshape(x, shape=(B, L, H, D)), dtype=like.dtype)


def _attention_weights(o: Any, qh: Any, kh: Any, bias: Any, lengths: Any, causal: bool, shape: tuple[int, ...]) -> Any:
    """softmax(qh kh^T + bias) by key head; shape (B, H, L, S) is that of the scores, lengths (B, 1, 1, 1)."""
    L, S = shape[2:]
    scores = o.reshape(o.matmul(qh, kh, transpose_b=True), shape=shape)
    if bias is not None:
        scores = o.add(scores, o.cast(bias, dtype=qh.dtype))
    if causal or lengths is not None:
        row = o.iota(shape=(L, S), axis=0, dtype=int32)
        column = o.iota(shape=(L, S), axis=1, dtype=int32)
        last = o.add(row, S - L) if lengths is None else o.sub(lengths, 1)  # key that a query sees
        if causal and lengths is not None:
            last = o.add(row, o.sub(lengths, L))
        scores = o.where(o.less_equal(column, last), scores, float("-inf"))
    peak = o.max(scores, axis=-1, keepdims=True)
    blind = o.equal(peak, float("-inf"))  # a row that sees nothing: exp(-inf - 0) = 0 everywhere
    weights = o.exp(o.sub(scores, o.where(blind, 0.0, peak)))
    total = o.sum(weights, axis=-1, keepdims=True)
    return o.reshape(o.div(weights, o.where(blind, 1.0, total)), shape=(*qh.shape[:3], S))


def _attention_slopes(
    o: Any, g: Any, q: Any, k: Any, v: Any, bias: Any, causal: bool, scale: float | None
) -> tuple[Any, ...]:
    """By key head: the gradient in the scores, the weights, and q (scaled), k and g that they are multiplied with."""
    dtype, heads, D = compute_dtype(q.dtype), k.shape[2], q.shape[3]
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    qh, kh, vh, gh = (_by_key_head(o, x, dtype, heads) for x in (q, k, v, g))
    qh = o.mul(qh, 1 / math.sqrt(D) if scale is None else scale)
    weights = _attention_weights(o, qh, kh, bias, None, causal, shape)
    inner = o.matmul(gh, vh, transpose_b=True)
    mean = o.sum(o.mul(weights, inner), axis=-1, keepdims=True)
    return o.mul(weights, o.sub(inner, mean)), weights, qh, kh, gh


def _attention_grad_infer(g: Any, q: Any, k: Any, v: Any, bias: Any, **attrs: Any) -> tuple[Meta, Meta, Meta]:
    y = _attention_infer(q, k, v, bias, **attrs)
    infer.floats(g)
    infer.need_shape("g", g, y.shape)
    return Meta(tuple(q.shape), q.dtype), Meta(tuple(k.shape), k.dtype), Meta(tuple(v.shape), v.dtype)


@composite(_attention_grad_infer)
def attention_grad(o, g, q, k, v, bias, *, causal=False, scale=None):
    """Gradients of attention in q, k and v, where g flows into its result (Dao et al. 2022, appendix B.2)."""
    slopes, weights, qh, kh, gh = _attention_slopes(o, g, q, k, v, bias, causal, scale)
    dq = o.mul(o.matmul(slopes, kh), 1 / math.sqrt(q.shape[3]) if scale is None else scale)
    dk, dv = o.matmul(slopes, qh, transpose_a=True), o.matmul(weights, gh, transpose_a=True)
    return tuple(_from_key_head(o, d, x) for d, x in ((dq, q), (dk, k), (dv, v)))


def _attention_vjp(
    o: Any, g: Any, q: Any, k: Any, v: Any, bias: Any, lengths: Any, y: Any, *, causal: bool, scale: float | None
) -> Any:
    if 0 in q.shape or 0 in k.shape or 0 in v.shape or lengths is not None:
        return NotImplemented

    @functools.cache
    def gradients() -> Any:
        return o.attention_grad(g, q, k, v, bias, causal=causal, scale=scale)

    def in_bias() -> Any:
        slopes = _attention_slopes(o, g, q, k, v, bias, causal, scale)[0]
        return sum_to(o, o.reshape(slopes, shape=(q.shape[0], q.shape[2], q.shape[1], k.shape[1])), bias.shape)

    return lambda: gradients()[0], lambda: gradients()[1], lambda: gradients()[2], in_bias, None


@composite(_attention_infer, vjp=_attention_vjp, keep="x")
def attention(o, q, k, v, bias, lengths=None, *, causal=False, scale=None):
    """softmax(scale * q k^T + bias) v by head, in float32 (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    q (B, L, H, D), k (B, S, H_kv, D), v (B, S, H_kv, Dv), bias broadcastable to (B, H, L, S) -> (B, L, H, Dv). scale:
    1/sqrt(D) if None. lengths (B,), integers up to S: keys from there on do not count, whatever they hold; S if None.
    causal: query l sees keys up to l + length - L, that is, the last query sees all. A query that sees no key (all of
    its bias -inf, or causal with L > length) gives zeros, not NaN.
    """
    (B, L, H, D), S = q.shape, k.shape[1]
    dtype = compute_dtype(q.dtype)
    if S == 0:
        return o.full(shape=(B, L, H, v.shape[3]), value=0, dtype=q.dtype)
    qh, kh, vh = (_by_key_head(o, x, dtype, k.shape[2]) for x in (q, k, v))
    qh = o.mul(qh, 1 / math.sqrt(D) if scale is None else scale)
    if lengths is not None:
        lengths = o.reshape(o.cast(lengths, dtype=int32), shape=(B, 1, 1, 1))
        there = o.less(o.iota(shape=(S, 1), axis=0, dtype=int32), lengths)  # (B, 1, S, 1)
        kh, vh = o.where(there, kh, 0.0), o.where(there, vh, 0.0)
    weights = _attention_weights(o, qh, kh, bias, lengths, causal, (B, H, L, S))
    return _from_key_head(o, o.matmul(weights, vh), q)


def _qattention_infer(q: Any, k: Any, v: Any, *, beside: str, scale: float | None) -> Meta:
    if beside not in ("int8", "bfloat16"):
        raise DtypeError(f"attention is not rounded beside {beside!r}", "Known: int8, bfloat16")
    return _attention_infer(q, k, v, None, causal=False, scale=scale)


@composite(_qattention_infer)
def qattention(o, q, k, v, *, beside="int8", scale=None):
    """Attention of which a backend may round queries, keys, values and weights, as it rounds what goes through layers
    of int8 or bfloat16 weights."""
    return o.attention(q, k, v, None, None, causal=False, scale=scale)


def _rope_infer(x: Any, cos: Any, sin: Any, *, interleaved: bool) -> Meta:
    infer.floats(x, cos, sin)
    infer.need_ndim("x", x, 4, "(batch, length, heads, head_dim)")
    B, L, _, D = x.shape
    if (
        D % 2
        or len(cos.shape) not in (2, 3)
        or cos.shape[-1] * 2 > D
        or cos.shape[-2] != L
        or cos.shape[:-2] not in ((), (B,), (1,))
    ):
        raise ShapeError(f"cos is {tuple(cos.shape)}; ({L}, D/2) or ({B}, {L}, D/2) was expected, with an even D = {D}")
    infer.need_shape("sin", sin, cos.shape)
    return Meta(tuple(x.shape), x.dtype)


def _pairs(o: Any, x: Any, half: int, interleaved: bool) -> tuple[Any, Any]:
    """The channels of x that rope turns: the first and the second of each pair, (B, L, H, half) each."""

    def part(start: int, stop: int, step: int) -> Any:
        return o.slice(x, start=(0, 0, 0, start), stop=(*x.shape[:3], stop), step=(1, 1, 1, step))

    if interleaved:
        return part(0, 2 * half, 2), part(1, 2 * half, 2)
    return part(0, half, 1), part(half, 2 * half, 1)


def _rope_vjp(o: Any, g: Any, x: Any, cos: Any, sin: Any, y: Any, *, interleaved: bool) -> Any:
    """Turned back; and in the angles, summed over all that they turn."""
    half, dtype = cos.shape[-1], compute_dtype(x.dtype)

    def angles(slope: Any) -> Any:
        each = slope(*(_pairs(o, o.cast(t, dtype=dtype), half, interleaved) for t in (g, x)))
        shared = sum_to(o, each, (*cos.shape[:-1], 1, half))
        return o.cast(o.reshape(shared, shape=tuple(cos.shape)), dtype=cos.dtype)

    return (
        lambda: o.rope(g, cos, o.neg(sin), interleaved=interleaved),
        lambda: angles(lambda g, x: o.add(o.mul(g[0], x[0]), o.mul(g[1], x[1]))),
        lambda: angles(lambda g, x: o.sub(o.mul(g[1], x[0]), o.mul(g[0], x[1]))),
    )


@composite(_rope_infer, vjp=_rope_vjp, keep="x")
def rope(o, x, cos, sin, *, interleaved=False):
    """Rotary positions (Su et al. 2021): each pair (a, b) becomes (a cos - b sin, b cos + a sin), in float32.

    x (B, L, H, D); cos, sin (L, R/2) or (B, L, R/2), the angles of the first R of D channels (the rest stay). Pairs are
    (i, i + R/2), as Hugging Face stores LLaMA; interleaved: (2i, 2i + 1), as Meta does.
    """
    B, L, H, D = x.shape
    half = cos.shape[-1]
    dtype = compute_dtype(x.dtype)
    cos, sin = (o.reshape(o.cast(t, dtype=dtype), shape=(*t.shape[:-1], 1, half)) for t in (cos, sin))
    h = o.cast(x, dtype=dtype)
    a, b = _pairs(o, h, half, interleaved)
    first, second = o.sub(o.mul(a, cos), o.mul(b, sin)), o.add(o.mul(b, cos), o.mul(a, sin))
    if interleaved:
        pairs = [o.reshape(t, shape=(B, L, H, half, 1)) for t in (first, second)]
        parts = [o.reshape(o.concat(*pairs, axis=-1), shape=(B, L, H, 2 * half))]
    else:
        parts = [first, second]
    if 2 * half < D:
        parts.append(o.slice(h, start=(0, 0, 0, 2 * half), stop=(B, L, H, D), step=(1, 1, 1, 1)))
    return o.cast(o.concat(*parts, axis=-1), dtype=x.dtype)
