"""The usual formulas in float64, to try which of them a reference uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray
EPSILONS = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 1e-7, 1e-4, 1e-2, 0.0)
CLOSE = 1e-4
"""Relative to the largest value: a formula that is this near to float32 numbers is theirs."""


def close(a: Array, b: Array, tolerance: float = CLOSE) -> bool:
    return error(a, b) <= tolerance


def error(a: Array, b: Array) -> float:
    """The largest difference, by b's largest value."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return math.inf
    return float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(b).max(initial=0.0)), 1e-30)


def limit(ours: Array, theirs: Array) -> float:
    """How near a formula must be to the reference's numbers to be a cause: near, and five times as near as ours."""
    return min(CLOSE, 0.2 * error(ours, theirs)) if ours.shape == theirs.shape else CLOSE


def sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2.0)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "no activation": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu 0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky_relu 0.2": lambda x: np.where(x > 0, x, 0.2 * x),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "hardswish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "relu squared": lambda x: np.maximum(x, 0.0) ** 2,
}


def standardised(x: Array, eps: float, centred: bool, axes: tuple[int, ...] = (-1,)) -> Array:
    mean = x.mean(axis=axes, keepdims=True) if centred else 0.0
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + eps)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def halves(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary positions where dimension i turns with i + D/2 (GPT-NeoX, transformers' LLaMA)."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def neighbours(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary positions where dimension 2i turns with 2i + 1 (the paper, Meta's files, GPT-J)."""
    a, b = x[..., ::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


ROTATIONS: dict[str, Callable[[Array, Array, Array], Array]] = {"halves": halves, "neighbours": neighbours}
Variant = tuple[str, str, str]
"""(positions, mask, scale) in words."""


def attentions(q: Array, k: Array, v: Array, theta: float | None) -> Iterator[tuple[Variant, Array]]:
    """What attention gives, (B, L, H, D), by the usual choices. q (B, L, H, D); k, v (B, S, G, D), G dividing H."""
    H, D = q.shape[2:]
    k, v = (np.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
    turned: dict[str, tuple[Array, Array]] = {"none": (q, k)}
    if D % 2 == 0 and q.shape[1] == k.shape[1]:
        for base in dict.fromkeys((theta or 10000.0, 10000.0, 500000.0, 1000000.0)):
            angles = np.arange(q.shape[1])[:, None] * base ** (-np.arange(0, D, 2) / D)
            cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
            for name, turn in ROTATIONS.items():
                turned[f"rotary, {name}, theta {base:g}"] = (turn(q, cos, sin), turn(k, cos, sin))
    scales = {"1/sqrt(head_dim)": D**-0.5, "none": 1.0, "1/sqrt(hidden)": (H * D) ** -0.5, "1/head_dim": 1.0 / D,
              "1/sqrt(head_dim) twice": 1.0 / D}  # fmt: skip
    for positions, (a, b) in turned.items():
        scores = np.einsum("blhd,bshd->bhls", a, b)
        for scale, factor in scales.items():
            for mask in ("none", "causal"):
                told = scores * factor
                if mask == "causal":
                    if told.shape[-2] != told.shape[-1]:
                        continue
                    told = np.where(np.tri(told.shape[-1], dtype=bool), told, -np.inf)
                yield (positions, mask, scale), np.einsum("bhls,bshd->blhd", softmax(told), v)
