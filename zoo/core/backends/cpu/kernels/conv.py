"""Convolutions of one and two spatial axes in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import CODES, F32, Kernels, contiguous, usable
from zoo.core.backends.cpu.pack import Packed, as_2d
from zoo.core.prims.contract import window_out
from zoo.core.stats import count


def conv(b: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int,
         flip: bool) -> Any:  # fmt: skip
    if max(input_dilation) > 1:
        if not usable(x):
            return NotImplemented
        x = _spread(x, input_dilation)
    return _conv(b, x, w, None, None, stride, padding, dilation, groups, flip, None)


def conv_bias_act(b: Any, x: Any, w: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
                  groups: int, activation: str | None) -> Any:  # fmt: skip
    return _conv(b, x, w, bias, residual, stride, padding, dilation, groups, False, activation)


def _conv(b: Any, x: Any, w: Any, bias: Any, residual: Any, stride: Any, padding: Any, dilation: Any, groups: int,
          flip: bool, activation: str | None) -> Any:  # fmt: skip
    rank = len(stride)
    if rank > 2 or not usable(x, w, bias, residual) or activation not in CODES or 0 in x.shape or 0 in w.shape:
        return NotImplemented
    settings = zip(x.shape[1:-1], w.shape[1:-1], stride, padding, dilation, strict=True)
    shape = (x.shape[0], *(window_out(n, k, s, p[0], p[1], d) for n, k, s, p, d in settings), w.shape[0])
    out = np.empty(shape, F32)
    packed = type(w) is Packed
    if packed and (flip or not w.fits(b.isa, "conv", groups)):
        return NotImplemented
    pad = tuple(lo for lo, _ in padding)
    if rank == 1:
        stride, dilation, pad = (1, *stride), (1, *dilation), (0, *pad)
    weight_shape = (-1, 0, 0, 0)
    if packed:
        weight_shape = w.shape if rank == 2 else (w.shape[0], 1, *w.shape[1:])
        count("cpu.packed_weight")
    b.native.conv(
        as_2d(x), w.buffer if packed else as_2d(w), as_2d(out), contiguous(bias), contiguous(residual),
        CODES[activation], tuple(stride), pad, tuple(dilation), groups, flip, weight_shape,
    )  # fmt: skip
    count("cpu.conv_f32")
    return out


def _spread(x: np.ndarray, by: Any) -> np.ndarray:
    """x (N, *S, C) with by - 1 zeros between neighbours on each spatial axis."""
    spatial = (max((n - 1) * i + 1, 0) for n, i in zip(x.shape[1:-1], by, strict=True))
    spread = np.zeros((x.shape[0], *spatial, x.shape[-1]), F32)
    spread[(slice(None), *(slice(None, None, i) for i in by))] = x
    return spread


KERNELS: Kernels = {"conv": conv, "conv_bias_act": conv_bias_act}
