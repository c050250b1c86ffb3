"""References: every op again, slowly, in float64, from its definition. Loops over positions where the kernels have
views and matrix products, so that one mistake is not made twice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray
Ints = tuple[int, ...]


# random numbers


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10) -> tuple[int, int, int, int]:
    """Philox4x32 in Python integers, as in Salmon et al. 2011, figure 2."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def words(seed: int, offset: int) -> Iterator[int]:
    for block in itertools.count(offset):
        yield from philox((block % 2**32, block >> 32, 0, 0), (seed % 2**32, seed >> 32))


def uniform(shape: Ints, seed: int, offset: int) -> Array:
    drawn = itertools.islice(words(seed, offset), math.prod(shape))
    return np.array([(w >> 8) / 2**24 for w in drawn]).reshape(shape)


def normal(shape: Ints, seed: int, offset: int) -> Array:
    """Box & Muller: each pair of words gives a radius and an angle, hence two values."""
    source = words(seed, offset)
    out: list[float] = []
    while len(out) < math.prod(shape):
        radius = math.sqrt(-2 * math.log((next(source) + 1) / 2**32))
        angle = 2 * math.pi * next(source) / 2**32
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(out[: math.prod(shape)]).reshape(shape)


# moving values


def pad(x: Array, pads: Any, value: float) -> Array:
    """Value by value: where does x[i] land?"""
    shape = tuple(lo + hi + n + max(n - 1, 0) * inside for n, (lo, hi, inside) in zip(x.shape, pads, strict=True))
    y = np.full(shape, value, x.dtype)
    for i in np.ndindex(x.shape):
        at = tuple(lo + k * (inside + 1) for k, (lo, _, inside) in zip(i, pads, strict=True))
        if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
            y[at] = x[i]
    return y


def gather(x: Array, indices: Array, axis: int) -> Array:
    y = np.empty(indices.shape, x.dtype)
    for at in np.ndindex(indices.shape):
        source = list(at)
        source[axis] = indices[at]
        y[at] = x[tuple(source)]
    return y


def scatter_add(x: Array, indices: Array, updates: Array) -> Array:
    y = x.copy()
    for at in np.ndindex(indices.shape):
        y[indices[at]] += updates[at]
    return y


def topk(x: Array, k: int) -> tuple[Array, Array]:
    """Of equal values the first comes first: Python's sort is stable."""
    values, places = np.empty((*x.shape[:-1], k), x.dtype), np.empty((*x.shape[:-1], k), np.int32)
    for row in np.ndindex(x.shape[:-1]):
        order = sorted(range(x.shape[-1]), key=lambda i: -float(x[row][i]))[:k]
        values[row], places[row] = x[row][order], order
    return values, places


# contractions


def conv(x: Array, w: Array, *, stride: Ints, padding: Any, dilation: Ints | None = None,
         input_dilation: Ints | None = None, groups: int = 1, flip: bool = False) -> Array:  # fmt: skip
    """y[n, p, o] = sum over k, c of X[n, p * stride + k * dilation - low, c] * w[o, k, c], one place p and k at a
    time."""
    rank = x.ndim - 2
    dilation, spread = dilation or (1,) * rank, input_dilation or (1,) * rank
    size, kernel = x.shape[1:-1], w.shape[1:-1]
    out = tuple(
        ((n - 1) * i + 1 + lo + hi - d * (k - 1) - 1) // s + 1
        for n, k, s, (lo, hi), d, i in zip(size, kernel, stride, padding, dilation, spread, strict=True)
    )
    O, I = w.shape[0] // groups, w.shape[-1]
    y = np.zeros((x.shape[0], *out, w.shape[0]))
    for p in np.ndindex(out):
        for k in np.ndindex(kernel):
            at = [a * s + b * d - lo for a, s, b, d, (lo, _) in zip(p, stride, k, dilation, padding, strict=True)]
            if any(a % i or not 0 <= a // i < n for a, i, n in zip(at, spread, size, strict=True)):
                continue
            pixel = tuple(a // i for a, i in zip(at, spread, strict=True))
            tap = tuple(n - 1 - b for n, b in zip(kernel, k, strict=True)) if flip else k
            for g in range(groups):
                values, weights = x[(slice(None), *pixel)], w[(slice(None), *tap)]
                y[(slice(None), *p, slice(g * O, (g + 1) * O))] += np.einsum(
                    "nc,oc->no", values[:, g * I : (g + 1) * I], weights[g * O : (g + 1) * O]
                )
    return y


def conv_weight_grad(x: Array, g: Array, *, kernel: Ints, stride: Ints, padding: Any, dilation: Ints,
                     input_dilation: Ints, groups: int, flip: bool) -> Array:  # fmt: skip
    """Every pixel of g meets the pixel of x that each tap of the kernel saw, one place and tap at a time."""
    size, I, O = x.shape[1:-1], x.shape[-1] // groups, g.shape[-1] // groups
    dw = np.zeros((g.shape[-1], *kernel, I))
    for p in np.ndindex(g.shape[1:-1]):
        for k in np.ndindex(kernel):
            at = [a * s + b * d - lo for a, s, b, d, (lo, _) in zip(p, stride, k, dilation, padding, strict=True)]
            if any(a % i or not 0 <= a // i < n for a, i, n in zip(at, input_dilation, size, strict=True)):
                continue
            pixel = tuple(a // i for a, i in zip(at, input_dilation, strict=True))
            tap = tuple(n - 1 - b for n, b in zip(kernel, k, strict=True)) if flip else k
            for part in range(groups):
                values, slopes = x[(slice(None), *pixel)], g[(slice(None), *p)]
                dw[(slice(part * O, (part + 1) * O), *tap)] += np.einsum(
                    "no,nc->oc", slopes[:, part * O : (part + 1) * O], values[:, part * I : (part + 1) * I]
                )
    return dw


def conv_transpose(
    x: Array, w: Array, *, stride: Ints, padding: Any, dilation: Ints, output_padding: Ints, groups: int = 1
) -> Array:
    """Each input pixel stamps the kernel onto the result: y[q * stride + k * dilation - low] += x[q] w[k]."""
    size, kernel = x.shape[1:-1], w.shape[1:-1]
    out = tuple(
        (n - 1) * s - lo - hi + d * (k - 1) + 1 + e
        for n, k, s, (lo, hi), d, e in zip(size, kernel, stride, padding, dilation, output_padding, strict=True)
    )
    O, I = w.shape[0] // groups, w.shape[-1]
    y = np.zeros((x.shape[0], *out, w.shape[0]))
    for q in np.ndindex(size):
        for k in np.ndindex(kernel):
            at = tuple(a * s + b * d - lo for a, s, b, d, (lo, _) in zip(q, stride, k, dilation, padding, strict=True))
            if all(0 <= a < n for a, n in zip(at, out, strict=True)):
                for g in range(groups):
                    weights = w[(slice(g * O, (g + 1) * O), *k)]
                    y[(slice(None), *at, slice(g * O, (g + 1) * O))] += (
                        x[(slice(None), *q)][:, g * I : (g + 1) * I] @ weights.T
                    )
    return y


def pool(x: Array, reduce: Callable[..., Any], window: Ints, stride: Ints, padding: Any) -> Array:
    """`reduce` over the values of each window that lie within x."""
    size = x.shape[1:-1]
    out = tuple((n + lo + hi - k) // s + 1 for n, k, s, (lo, hi) in zip(size, window, stride, padding, strict=True))
    y = np.zeros((x.shape[0], *out, x.shape[-1]), x.dtype)
    for p in np.ndindex(out):
        inside = tuple(
            slice(max(a * s - lo, 0), min(a * s - lo + k, n))
            for a, s, k, (lo, _), n in zip(p, stride, window, padding, size, strict=True)
        )
        y[(slice(None), *p)] = reduce(x[(slice(None), *inside)], axis=tuple(range(1, x.ndim - 1)))
    return y


# what models are made of


def erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[float])(x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
    None: lambda x: x,
    "relu": lambda x: np.where(x > 0, x, 0 * x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True)) if x.shape[axis] else x
    return powers / powers.sum(axis=axis, keepdims=True)


def logsumexp(x: Array, axis: Any = -1, keepdims: bool = False) -> Array:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))  # float64 holds exp(x) for every x drawn


def cross_entropy(logits: Array, targets: Array) -> Array:
    y = np.empty(targets.shape)
    for row in np.ndindex(targets.shape):
        y[row] = -np.log(softmax(logits[row])[targets[row]])
    return y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def standardised(x: Array, axis: Any, eps: float) -> Array:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


def group_norm(x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float) -> Array:
    y, width = np.empty_like(x), x.shape[-1] // groups
    for n, g in np.ndindex(x.shape[0], groups):
        part = (n, ..., slice(g * width, (g + 1) * width))
        y[part] = standardised(x[part], None, eps)
    return affine(y, weight, bias)


def affine(x: Array, weight: Array | None, bias: Array | None) -> Array:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def update_rows(x: Array, update: Array, positions: Array) -> Array:
    y = x.copy()
    for b, l in np.ndindex(update.shape[:2]):
        if 0 <= positions[b] + l < x.shape[1]:
            y[b, positions[b] + l] = update[b, l]
    return y


def attention(
    q: Array, k: Array, v: Array, bias: Array | None, causal: bool = False, scale: float | None = None,
    lengths: Array | None = None,
) -> Array:  # fmt: skip
    """Query by query: the keys it may see, their weights, the weighted mean of the values; zeros if it sees none."""
    B, L, H, D = q.shape
    S, shared = k.shape[1], H // k.shape[2]
    scale = 1 / math.sqrt(D) if scale is None else scale
    y = np.zeros((B, L, H, v.shape[3]))
    added = np.zeros((B, H, L, S)) if bias is None else np.broadcast_to(bias, (B, H, L, S))
    for b, l, h in np.ndindex(B, L, H):
        length = S if lengths is None else int(lengths[b])
        seen = [s for s in range(length) if added[b, h, l, s] != -np.inf and (not causal or s <= l + length - L)]
        if seen:
            scores = [scale * float(q[b, l, h] @ k[b, s, h // shared]) + added[b, h, l, s] for s in seen]
            for weight, s in zip(softmax(np.array(scores)), seen, strict=True):
                y[b, l, h] += weight * v[b, s, h // shared]
    return y


def attention_grad(q: Array, k: Array, v: Array, g: Array, causal: bool) -> tuple[Array, Array, Array]:
    """Query by query and key by key, by the chain rule, where g flows into attention's result."""
    B, L, H, D = q.shape
    S, shared, scale = k.shape[1], H // k.shape[2], 1 / math.sqrt(D)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, l, h in np.ndindex(B, L, H):
        seen = np.arange(max(0, l + 1 + S - L) if causal else S)
        if len(seen):
            keys, values = k[b, seen, h // shared], v[b, seen, h // shared]
            weights = softmax(scale * keys @ q[b, l, h])
            slopes = (np.diag(weights) - np.outer(weights, weights)) @ (values @ g[b, l, h]) * scale
            dq[b, l, h] = slopes @ keys
            dk[b, seen, h // shared] += np.outer(slopes, q[b, l, h])
            dv[b, seen, h // shared] += np.outer(weights, g[b, l, h])
    return dq, dk, dv


def rope(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Each pair of channels as one complex number, turned."""
    y, half = x.copy(), cos.shape[-1]
    for b, l, h, i in np.ndindex(*x.shape[:3], half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        at = (b if cos.ndim == 3 and cos.shape[0] > 1 else 0, l, i) if cos.ndim == 3 else (l, i)
        turned = complex(x[b, l, h, first], x[b, l, h, second]) * complex(cos[at], sin[at])
        y[b, l, h, first], y[b, l, h, second] = turned.real, turned.imag
    return y


def adamw(p: Array, g: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay:
float,
          step: int) -> tuple[Array, Array, Array]:  # fmt: skip
    """Algorithm 2 of Loshchilov & Hutter 2019, its lines in its order."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p), m, v


# quantised weights


def quantize(w: Array, format: str) -> tuple[Array, Array]:
    """Row by row, group by group, code by code, in float32 as the stored scales are."""
    w = w.astype(np.float32)
    if format == "int8":
        scales = np.array(
            [np.float32(max((abs(float(c)) for c in row), default=0.0)) / np.float32(127) for row in w], np.float32
        )
        codes = [[_nearest(c, s) if s else 0 for c in row] for row, s in zip(w, scales, strict=True)]
        return np.array(codes, np.int8).reshape(w.shape), scales
    rows, groups = w.shape[0], w.shape[1] // 32
    packed, scales = np.zeros((rows, w.shape[1] // 2), np.uint8), np.zeros((rows, groups), np.float16)
    for n, g in np.ndindex(rows, groups):
        group = w[n, g * 32 : (g + 1) * 32]
        scales[n, g] = group[int(np.abs(group).argmax())] / -8
        nibbles = [min(max(_nearest(c, np.float32(scales[n, g])) + 8, 0), 15) if scales[n, g] else 8 for c in group]
        packed[n, g * 16 : (g + 1) * 16] = [a + 16 * b for a, b in zip(nibbles[::2], nibbles[1::2], strict=True)]
    return packed, scales


def _nearest(value: Any, scale: Any) -> int:
    return round(float(np.float32(value) / np.float32(scale)))


def dequantize(q: Array, scale: Array, format: str) -> Array:
    if format == "int8":
        return q.astype(float) * scale.astype(float)[:, None]
    w = np.zeros((q.shape[0], q.shape[1] * 2))
    for n, k in np.ndindex(w.shape):
        byte = int(q[n, k // 2])
        w[n, k] = ((byte >> 4 if k % 2 else byte & 15) - 8) * float(scale[n, k // 32])
    return w
