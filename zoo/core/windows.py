"""Ops whose result looks at windows of its input: convolution, pooling, and what enlarges. Offered by ops.py.

Settings are written as users like, and handed on with one entry per spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoo.core.errors import ShapeError
from zoo.core.prims import TABLE as P
from zoo.core.tensor import Tensor, bind

Pad = int | Sequence[int] | Sequence[tuple[int, int]]


def each_axis(v: int | Sequence[int], rank: int, what: str) -> tuple[int, ...]:
    each = (v,) * rank if isinstance(v, int) else tuple(v)
    if len(each) != rank:
        raise ShapeError(
            f"{what} is {v} for {rank} spatial axes", "Give one number, or one for each.", what="wrong settings"
        )
    return each


def pairs(padding: Pad, rank: int) -> tuple[tuple[int, int], ...]:
    """Padding as (before, after) for each spatial axis: from one number, one for each axis, or the pairs themselves."""
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    each = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
    if len(each) != rank:
        raise ShapeError(f"padding is {padding} for {rank} spatial axes", what="wrong settings")
    return each


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | Sequence[int] = 1, padding: Pad = 0,
    dilation: int | Sequence[int] = 1, groups: int = 1, activation: str | None = None, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """activation(convolution + bias + residual), as in deep learning (the kernel is not turned round).

    x (N, *S, C), weight (O, *K, C / groups), bias (O,), residual like the result -> (N, *S', O).
    """
    rank = x.ndim - 2
    settings: dict[str, Any] = {
        "stride": each_axis(stride, rank, "stride"),
        "padding": pairs(padding, rank),
        "dilation": each_axis(dilation, rank, "dilation"),
        "groups": groups,
    }
    if bias is None and residual is None and activation is None:
        return bind(P["conv"], x, weight, input_dilation=(1,) * rank, flip=False, **settings)
    return bind(P["conv_bias_act"], x, weight, bias, residual, activation=activation, **settings)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | Sequence[int] = 1, padding: Pad = 0,
    output_padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Transposed convolution: the gradient of `conv` in its input, as a layer of its own.

    x (N, *S, C), weight (O, *K, C / groups), bias (O,) -> (N, *S', O), S' = (S-1) stride - 2 padding + dilation (K-1)
    + 1 + output_padding. Source: Dumoulin & Visin 2016; settings as in torch.
    """
    rank = x.ndim - 2
    stride, dilation = each_axis(stride, rank, "stride"), each_axis(dilation, rank, "dilation")
    extra = each_axis(output_padding, rank, "output_padding")
    kernel = each_axis(weight.shape[1:-1], rank, "the kernel")
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = tuple((r - lo, r - hi + e) for r, (lo, hi), e in zip(reach, pairs(padding, rank), extra, strict=True))
    settings: dict[str, Any] = {"stride": (1,) * rank, "padding": pads, "dilation": dilation, "groups": groups}
    y = bind(P["conv"], x, weight, input_dilation=stride, flip=True, **settings)
    return y if bias is None else y + bias.astype(y.dtype)


def max_pool(x: Tensor, window: int | Sequence[int], *, stride: Any = None, padding: Pad = 0) -> Tensor:
    """Maximum under each window, over the spatial axes of x (N, *S, C); stride: the window, if None."""
    return _pool("window_max", x, window, stride, padding)


def avg_pool(x: Tensor, window: int | Sequence[int], *, stride: Any = None, padding: Pad = 0) -> Tensor:
    """Mean under each window; padding counts as zeros (torch's count_include_pad=True)."""
    return _pool("window_sum", x, window, stride, padding) * (1.0 / math.prod(each_axis(window, x.ndim - 2, "window")))


def _pool(name: str, x: Tensor, window: Any, stride: Any, padding: Pad) -> Tensor:
    rank = x.ndim - 2
    window = each_axis(window, rank, "window")
    stride = window if stride is None else each_axis(stride, rank, "stride")
    return bind(P[name], x, window=window, stride=stride, padding=pairs(padding, rank))


def upsample(x: Tensor, scale: int | Sequence[int]) -> Tensor:
    """Nearest neighbour: every pixel of x (N, *S, C) repeated `scale` times along each spatial axis."""
    return bind(P["upsample"], x, scale=each_axis(scale, x.ndim - 2, "scale"))
