"""The face of the ops whose weights are stored as int8 or int4; a part of ops.py, which offers them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import float32
from zoo.core.prims import TABLE as P
from zoo.core.tensor import Tensor, bind
from zoo.core.windows import Pad, each_axis, pairs


def quantize(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """weight (N, K) -> codes and scales; "int8" (a scale per output) or "int4" (per 32 inputs): prims/quant.py."""
    return bind(P["quantize"], weight, format=format)


def dequantize(q: Tensor, scale: Tensor, format: str, *, dtype: Any = float32) -> Tensor:
    """The weight (N, K) that codes and scales stand for."""
    return bind(P["dequantize"], q, scale, format=format, dtype=dtype_of(dtype))


def qmatmul(x: Tensor, q: Tensor, scale: Tensor, format: str) -> Tensor:
    """x (..., K) times the transpose of a quantised weight (N, K) -> (..., N)."""
    return bind(P["qmatmul"], x, q, scale, format=format)


def qlinear(
    x: Tensor, q: Tensor, scale: Tensor, format: str, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """`linear` with a quantised weight."""
    return bind(P["qlinear"], x, q, scale, bias, format=format, activation=activation)


def qlinears(x: Tensor, weights: Sequence[tuple[Tensor, Tensor, Tensor | None]], format: str) -> tuple[Tensor, ...]:
    """`qlinear` with several weights (codes, scales, bias): x is quantised once, and all are read in one go."""
    return bind(P["qlinears"], x, *[part for weight in weights for part in weight], format=format)


def qembedding(q: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """`embedding` of a table quantised to int8: codes q (V, D), scale (V,), ids (...) -> (..., D), float32."""
    return bind(P["qembedding"], q, scale, ids)


def qconv(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, *, stride: int | Sequence[int] = 1,
    padding: Pad = 0, dilation: int | Sequence[int] = 1, activation: str | None = None, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`conv` with a weight quantised to int8: codes q (O, *K, C) and a scale (O,) for each output. A backend may
    quantise x on the fly, each tile of a picture to 127 steps of its largest number."""
    rank = x.ndim - 2
    return bind(
        P["qconv"], x, q, scale, bias, residual, stride=each_axis(stride, rank, "stride"),
        padding=pairs(padding, rank), dilation=each_axis(dilation, rank, "dilation"), activation=activation,
    )  # fmt: skip


def qattention(q: Tensor, k: Tensor, v: Tensor, beside: str, *, scale: float | None = None) -> Tensor:
    """`attention` of every query to every key, of which a backend may round q, k, v and weights, beside layers whose
    weights are "int8": to 10 bits or more; "bfloat16": to that."""
    return bind(P["qattention"], q, k, v, beside=beside, scale=scale)
