"""Convolutions with weights of 8 bits, in integers: x is quantised on the fly, 127 to the largest number of each pixel
(1x1) or of each tile of the picture (csrc/quant/conv.h).

What holds NaN or infinity has no such scale: that convolution is computed with the dequantised weight, as the reference
does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import CODES, F32, WEIGHTS, Kernels, contiguous, float_vector
from zoo.core.backends.cpu.kernels.quant import MAX_INPUTS
from zoo.core.backends.cpu.memory import empty
from zoo.core.backends.cpu.pack import Packed, pack
from zoo.core.prims.contract import conv_shape
from zoo.core.stats import count


def qconv(b: Any, x: Any, q: Any, scale: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
          activation: str | None) -> Any:  # fmt: skip
    outputs, *kernel, channels = q.shape
    packs = type(q) is not Packed
    if (
        x.ndim != 4
        or 0 in (*x.shape, *q.shape)
        or channels % 4
        or math.prod(q.shape[1:]) > MAX_INPUTS
        or x.dtype not in WEIGHTS
        or activation not in CODES
        or not (packs or q.fits(b.isa, "int8"))
    ):
        return NotImplemented
    weight = pack(b.native, q, "conv") if packs else q
    out = empty(conv_shape(x.shape, q.shape, stride, padding, dilation, (1, 1), 1), F32)
    wide = _wide(b, x)
    after = (float_vector(bias), contiguous(residual if residual is None else _wide(b, residual)))
    scale = np.ascontiguousarray(scale)
    if kernel == [1, 1] and not any(p for pair in padding for p in pair):
        rows = wide.reshape(-1, channels) if stride == (1, 1) else _pixels(wide, stride)
        flat = out.reshape(-1, outputs)
        fine = b.native.quant_linear(rows, weight.buffer, scale, flat, after[0], CODES[activation], 8, after[1])
    else:
        pad = tuple(lo for lo, _ in padding)
        fine = b.native.quant_conv(
            wide, weight.buffer, scale, out, *after, CODES[activation], tuple(kernel), tuple(stride), pad,
            tuple(dilation),
        )  # fmt: skip
    if not fine:
        return NotImplemented
    count("cpu.conv_int8")
    return out if x.dtype is F32 else b.ops.cast(out, dtype=x.dtype)


def _pixels(x: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """Every stride-th pixel of every stride-th line of x (N, H, W, C), as (lines of all images, pixels, C)."""
    lines = x[:, :: stride[0], :: stride[1]]
    return lines.reshape(-1, *lines.shape[2:])  # no copy, if images follow each other as lines do


def _wide(b: Any, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x)
    return x if x.dtype is F32 else b.ops.cast(x, dtype=F32)


KERNELS: Kernels = {"qconv": qconv}
