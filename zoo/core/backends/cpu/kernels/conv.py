"""Convolutions of one and two spatial axes, computed in float32. Packed weights may be stored in bfloat16 or float16,
which the micro-kernel widens; other arrays of half precision are widened here, and the result is rounded once.

A 3x3 convolution at stride 1 may take Winograd's algorithm (winograd.py says when), whose results differ in
the last bits (relative error up to 3e-6 instead of 2e-6), and in which a NaN or an infinity spreads, as NaN, to up to
three pixels beyond the reach of the kernel. ZOO_OFF=winograd switches it off."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels import tune, winograd
from zoo.core.backends.cpu.kernels.common import BF16_PAIRS, CODES, F32, WEIGHTS, Kernels, contiguous, usable
from zoo.core.backends.cpu.memory import empty
from zoo.core.backends.cpu.pack import Packed, as_2d
from zoo.core.dtype import HALVES
from zoo.core.prims.contract import conv_shape, window_out
from zoo.core.stats import count


def conv(b: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int,
         flip: bool) -> Any:  # fmt: skip
    dtype, x, w = x.dtype, _wide(x), _wide(w)
    if _scatters(x, w, stride, padding, dilation, input_dilation, groups):
        out = _scatter(b, x, w, padding, dilation, input_dilation, flip)
    elif not usable(x):
        return NotImplemented
    else:
        x = _spread(x, input_dilation) if max(input_dilation) > 1 else x
        out = _conv(b, x, w, None, None, stride, padding, dilation, groups, flip, None)
    return out if dtype is F32 or out is NotImplemented else out.astype(dtype)


def conv_bias_act(b: Any, x: Any, w: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
                  groups: int, activation: str | None) -> Any:  # fmt: skip
    after = (_wide(bias), _wide(residual), stride, padding, dilation, groups, False, activation)
    out = _conv(b, _wide(x), _wide(w), *after)
    return out if x.dtype is F32 or out is NotImplemented else out.astype(x.dtype)


def _wide(array: Any) -> Any:
    if array is None or array.dtype is F32 or type(array) is Packed or array.dtype not in HALVES:
        return array
    return array.astype(F32)


@lru_cache(maxsize=1024)
def _two_axes(stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any, Any]:
    """Stride, padding before, and dilation, for two spatial axes."""
    pad = tuple(lo for lo, _ in padding)
    return (stride, pad, dilation) if len(stride) == 2 else ((1, *stride), (0, *pad), (1, *dilation))


def _scatters(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int) -> bool:
    """May every pixel of x add its products to its surroundings, and does that pay? It spares the zeros between pixels
    and around them (an infinite weight makes no NaN of those, as it does in numpy); images are its tasks, so there
    should be some."""
    if type(w) is Packed or not usable(x, w) or x.ndim != 4 or groups > 1 or max(stride) > 1 or x.shape[0] < 4:
        return False
    if 0 in x.shape or 0 in w.shape:
        return False
    pixels, outputs = x.shape[1] * x.shape[2], 1
    for n, k, p, d, i in zip(x.shape[1:3], w.shape[1:3], padding, dilation, input_dilation, strict=True):
        outputs *= window_out(n, k, 1, p[0], p[1], d, i)
    return outputs > 1.5 * pixels


def _scatter(b: Any, x: Any, w: Any, padding: Any, dilation: Any, input_dilation: Any, flip: bool) -> np.ndarray:
    settings = zip(x.shape[1:3], w.shape[1:3], padding, dilation, input_dilation, strict=True)
    out = empty((x.shape[0], *(window_out(n, k, 1, p[0], p[1], d, i) for n, k, p, d, i in settings), w.shape[0]), F32)
    by_channel = np.ascontiguousarray(w.transpose(3, 1, 2, 0))  # the weight as it is, where this is a gradient
    pad = tuple(lo for lo, _ in padding)
    b.native.conv_scatter(np.ascontiguousarray(x), by_channel, out, tuple(input_dilation), pad, tuple(dilation), flip)
    count("cpu.conv_f32")
    return out


def _conv(b: Any, x: Any, w: Any, bias: Any, residual: Any, stride: Any, padding: Any, dilation: Any, groups: int,
          flip: bool, activation: str | None) -> Any:  # fmt: skip
    rank, packed = len(stride), type(w) is Packed
    if (
        rank > 2
        or not (packed or usable(w))
        or not usable(x, bias, residual)
        or activation not in CODES
        or 0 in x.shape
        or 0 in w.shape
    ):
        return NotImplemented
    out = empty(conv_shape(x.shape, w.shape, stride, padding, dilation, (1,) * rank, groups), F32)
    if packed and (flip or not w.fits(b.isa, "conv", groups)):
        return NotImplemented
    stride, pad, dilation = _two_axes(stride, padding, dilation)
    weight_shape, weight, stored = (-1, 0, 0, 0), as_2d(w) if not packed else w.buffer, _stored(w)
    if packed:
        weight_shape = w.shape if rank == 2 else (w.shape[0], 1, *w.shape[1:])
        count("cpu.packed_weight")
    after = (contiguous(bias), contiguous(residual), CODES[activation])
    fits = "winograd" not in b.off and winograd.fits(x, w, stride, dilation, groups)
    fast = fits and _winograd_is_faster(b, x, w, out, pad, flip)
    b.native.conv(
        as_2d(x), weight, as_2d(out), *after, stride, pad, dilation, groups, flip, weight_shape, fast, stored,
    )  # fmt: skip
    count("cpu.conv_f32")
    if fast:
        count("cpu.winograd")
    return out


def _stored(w: Any) -> int:
    """What the kernels are told that w holds."""
    return BF16_PAIRS if type(w) is Packed and w.pairs else WEIGHTS[w.dtype]


def _winograd_is_faster(b: Any, x: np.ndarray, w: Any, out: np.ndarray, pad: Any, flip: bool) -> bool:
    packed = type(w) is Packed
    if b.choices.follows:
        shape = f"conv3x3 {'x'.join(map(str, x.shape))} -> {'x'.join(map(str, out.shape))}{' packed' if packed else ''}"

        def candidates() -> dict[int, Any]:
            weight, given = (w.buffer, w.shape) if packed else (w, (-1, 0, 0, 0))

            def run(fast: bool) -> Any:
                return lambda: b.native.conv(
                    x, weight, np.empty_like(out), None, None, 0, (1, 1), pad, (1, 1), 1, flip, given, fast,
                    _stored(w),
                )  # fmt: skip

            return {0: run(False), winograd.SIDE: run(True)}

        found = b.choices.find(tune.machine(b.native), shape, candidates)
        if found is not None:
            return found == winograd.SIDE
    pairs = packed and w.pairs
    return winograd.cheaper(x.shape[0], out.shape[1:3], x.shape[3], out.shape[3], packed, pairs)


def _spread(x: np.ndarray, by: Any) -> np.ndarray:
    """x (N, *S, C) with by - 1 zeros between neighbours on each spatial axis."""
    spatial = (max((n - 1) * i + 1, 0) for n, i in zip(x.shape[1:-1], by, strict=True))
    spread = np.zeros((x.shape[0], *spatial, x.shape[-1]), F32)
    spread[(slice(None), *(slice(None, None, i) for i in by))] = x
    return spread


KERNELS: Kernels = {"conv": conv, "conv_bias_act": conv_bias_act}
