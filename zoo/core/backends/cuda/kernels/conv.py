"""Convolutions of one and two spatial axes, and their gradients: cu/conv*.cu.

    linear      1x1 at stride 1: a product of matrices, by the backend's own `linear` (without a residual)
    mma         half precision on tensor cores (conv_mma.cu, conv_weight_mma.cu); channels are filled up to eights
    mixed       float32 pictures and weights in half precision, on tensor cores as exactly as in float32 (conv_mixed.cu)
    fma         float32, mixed dtypes elsewhere, bfloat16 on sm_75 (conv_fma.cu, conv_weight_fma.cu); up to fours
    depthwise   one channel a group, channels in fours (conv_direct.cu)
    direct      other groups with fewer channels than a product of matrices needs (conv_direct.cu, conv_weight_fma.cu)

A convolution over a picture with zeros between its pixels (the gradient in x of one with a stride, a transposed
convolution) is `input_dilation` plain ones on each axis, one for each phase, so that no zero is multiplied. What is
declined (three spatial axes, float64, nothing to do) is the array code's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import contiguous
from zoo.core.backends.cuda.kernels.gemm import on_tensor_cores
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import HALVES, bfloat16, float16, float32, int8
from zoo.core.prims import nn
from zoo.core.prims.contract import Ints, Pairs, conv_shape
from zoo.core.stats import count

FLOATS = (float32, float16, bfloat16)
ACTIVATIONS = (None, *nn.ACTIVATIONS)  # as cu/activation.cuh numbers them
FILES = {"mma": "conv_mma.cu", "mixed": "conv_mixed.cu", "fma": "conv_fma.cu"}
WEIGHT_FILES = {"mma": "conv_weight_mma.cu", "fma": "conv_weight_fma.cu"}
FEWEST = {"mma": 8, "mixed": 8, "fma": 4}  # channels that are read at once
DEPTH = {"mma": 32, "mixed": 32, "fma": 16}  # terms of a step
SHORTEST = 8  # steps of a block: fewer would not pay for its beginning and end
FEW_TAPS = 96  # of which a block of conv_depthwise can hold all weights: 96 x 128 x 4 bytes = 48 KiB
MANY = 2**31 - 2**16  # what 32 bits count; tiles and steps go on a little behind the last
GROUPS = 65535  # of which a grid's third axis can count no more
# where tensor cores calculate 14 times as fast as in float32, or more; on GeForce (86, 89, 120) it is 2 to 4 times, and
# `mixed` has three to five products for one
RICH = (80, 90, 100, 103)


class Phase(NamedTuple):
    """One launch: its geometry as the kernels take it, and the product of matrices that it is."""

    geometry: tuple[Any, ...]
    rows: int  # pixels of the result
    columns: int  # outputs of a group
    terms: int  # taps times channels of a group
    groups: int


def conv(b: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int,
         flip: bool) -> Any:  # fmt: skip
    if max(input_dilation) > 1 and max(stride) > 1:  # neither a convolution's gradient nor a transposed one: rare
        x, input_dilation = _spread(b, x, input_dilation), (1,) * len(stride)
    return _conv(b, x, w, None, None, None, None, stride, padding, dilation, input_dilation, groups, flip)


def conv_bias_act(b: Any, x: Any, w: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
                  groups: int, activation: str | None) -> Any:  # fmt: skip
    plain = (1,) * len(stride)
    return _conv(b, x, w, None, bias, residual, activation, stride, padding, dilation, plain, groups, False)


def qconv(b: Any, x: Any, q: Any, scale: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
          activation: str | None) -> Any:  # fmt: skip
    """The codes, which half precision holds exactly, are the weight, and the scale is applied to the sums."""
    if x.dtype not in FLOATS or 0 in x.shape or 0 in q.shape or len(stride) > 2:
        return NotImplemented
    wide = x.dtype == float32
    tensor_cores = b.driver.arch in RICH if wide else on_tensor_cores(b, x.dtype)
    w = b.ops.cast(q, dtype=bfloat16 if wide else x.dtype) if tensor_cores else q
    plain = (1,) * len(stride)
    return _conv(b, x, w, scale, bias, residual, activation, stride, padding, dilation, plain, 1, False)


def _conv(b: Any, x: Any, w: Any, scale: Any, bias: Any, residual: Any, activation: str | None, stride: Ints,
          padding: Pairs, dilation: Ints, input_dilation: Ints, groups: int, flip: bool) -> Any:  # fmt: skip
    if x.dtype not in FLOATS or w.dtype not in (*FLOATS, int8) or activation not in ACTIVATIONS or len(stride) > 2:
        return NotImplemented
    shape = conv_shape(x.shape, w.shape, stride, padding, dilation, input_dilation, groups)
    if 0 in x.shape or 0 in w.shape or 0 in shape or _too_large(x.shape, w.shape, shape):
        return NotImplemented
    moves = any(p for pair in padding for p in pair) or max(stride + input_dilation) > 1
    if math.prod(w.shape[1:-1]) == 1 and not moves and groups == 1 and scale is None and residual is None:
        count("cuda.conv_linear")
        return b.ops.linear(x, w.reshape(w.shape[0], w.shape[-1]), bias, activation=activation)

    outputs = w.shape[0] // groups
    kind = _kind(b, x.dtype, w.dtype, w.shape[-1], outputs, groups)
    if kind in FEWEST:
        x, w = _filled(b, x, FEWEST[kind], groups), _filled(b, w, FEWEST[kind], groups)
    elif w.shape[-1] == outputs == 1 and groups % 4 == 0 and math.prod(w.shape[1:-1]) <= FEW_TAPS:
        kind = "depthwise"
    x, w, residual = _fit(b, x), _fit(b, w), _fit(b, residual, x.dtype)
    scale, bias = _vector(b, scale, (float32,)), _vector(b, bias, FLOATS)
    y = b.xp.empty(shape, x.dtype)
    code = ACTIVATIONS.index(activation)
    settings = (stride, padding, dilation, input_dilation, groups, flip)
    phases = _phases(x.shape, w.shape, shape, *settings)
    for phase in phases:
        _run(b, kind, phase, x, w, y, scale, bias, residual, code)
    count(f"cuda.conv_{kind}")
    if len(phases) > 1:
        count("cuda.conv_phases", len(phases))
    return y


def _run(b: Any, kind: str, phase: Phase, x: Any, w: Any, y: Any, scale: Any, bias: Any, residual: Any,
         activation: int) -> None:  # fmt: skip
    after = {"TB": "float" if bias is None else ctype(bias.dtype), "ACTIVATION": activation}
    types = {"TX": ctype(x.dtype), "TW": ctype(w.dtype)}
    given = (scale, bias, residual)
    if kind == "depthwise":
        kernel = b.driver.kernel("conv_direct.cu", "conv_depthwise", **types, **after)
        grid = (_blocks(phase.rows, 32), _blocks(phase.groups, 128))
        kernel(grid, (256,), x, w, y, *given, *phase.geometry, shared=max(phase.terms, 1) * 128 * 4)
        return
    if kind == "direct":
        kernel = b.driver.kernel("conv_direct.cu", "conv_direct", **types, **after)
        kernel((_blocks(phase.rows * phase.columns * phase.groups, 256),), (256,), x, w, y, *given, *phase.geometry)
        return
    tile = _tile(b, phase.rows, phase.columns, phase.groups)
    tiles = _blocks(phase.rows, tile) * _blocks(phase.columns, tile)
    splits, each = _split(b, tiles * phase.groups, _blocks(phase.terms, DEPTH[kind]))
    partial, store = None, after
    if splits > 1:  # what follows the sum waits for conv_sum
        partial = b.xp.empty((splits, phase.rows, phase.columns * phase.groups), float32)
        store = {"TB": "float", "ACTIVATION": 0}
    types = types if kind == "fma" else {"T": types["TW"]}
    kernel = b.driver.kernel(FILES[kind], f"conv_{kind}", **types, **store, TILE=tile)
    ends = given if partial is None else (None, None, None)
    kernel((tiles, splits, phase.groups), (_threads(kind, tile),), x, w, y, *ends, partial, np.int32(each),
           *phase.geometry)  # fmt: skip
    if partial is not None:
        _sum(b, partial, y, given, after, phase.geometry)


def conv_weight_grad(b: Any, x: Any, g: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any,
                     input_dilation: Any, groups: int, flip: bool) -> Any:  # fmt: skip
    rank, dtype = len(stride), x.dtype
    if dtype not in FLOATS or g.dtype != dtype or rank > 2 or max(input_dilation) > 1:
        return NotImplemented
    channels, outputs = x.shape[-1] // groups, g.shape[-1] // groups
    shape = (g.shape[-1], *kernel, channels)
    if 0 in x.shape or 0 in g.shape or 0 in shape or _too_large(x.shape, shape, g.shape):
        return NotImplemented
    moves = any(p for pair in padding for p in pair) or max(stride) > 1
    if math.prod(kernel) == 1 and not moves and groups == 1:
        count("cuda.conv_weight_matmul")
        return b.ops.matmul(g.reshape(-1, outputs), x.reshape(-1, channels), transpose_a=True).reshape(shape)

    kind = _kind(b, dtype, dtype, channels, outputs, groups)
    if kind in FEWEST:
        x, g = _filled(b, x, FEWEST[kind], groups), _filled(b, g, FEWEST[kind], groups)
    x, g = _fit(b, x), _fit(b, g)
    filled = (g.shape[-1], *kernel, x.shape[-1] // groups)
    (phase,) = _phases(x.shape, filled, g.shape, stride, padding, dilation, input_dilation, groups, flip)
    if kind == "direct":
        across = math.prod(filled)
        splits = min(_blocks(phase.rows, 64), _blocks(b.driver.multiprocessors * 1024, across), 65535)
        each = _blocks(phase.rows, splits)
        partial = b.xp.empty((splits, *filled), float32)
        run = b.driver.kernel("conv_weight_fma.cu", "conv_weight_direct", T=ctype(dtype), TILE=64)
        run((_blocks(across, 256), splits), (256,), x, g, partial, np.int32(each), *phase.geometry)
    else:
        tile = _tile(b, phase.columns, phase.terms, groups)
        tiles = _blocks(phase.columns, tile) * _blocks(phase.terms, tile)
        splits, each = _split(b, tiles * groups, _blocks(phase.rows, DEPTH[kind]))
        partial = b.xp.empty((splits, *filled), float32)
        run = b.driver.kernel(WEIGHT_FILES[kind], f"conv_weight_{kind}", T=ctype(dtype), TILE=tile)
        run((tiles, splits, groups), (_threads(kind, tile),), x, g, partial, np.int32(each), *phase.geometry)
    dw = b.xp.empty(filled, dtype)
    _sum(b, partial, dw, (None, None, None), {"TB": "float", "ACTIVATION": 0}, _as_matrix(filled))
    count(f"cuda.conv_weight_{kind}")
    return dw if filled == shape else contiguous(b, dw[: shape[0], ..., : shape[-1]])


def _sum(
    b: Any, partial: Any, y: Any, given: tuple[Any, ...], after: dict[str, Any], geometry: tuple[Any, ...]
) -> None:
    kernel = b.driver.kernel("conv_sum.cu", "conv_sum", T=ctype(y.dtype), **after)
    count("cuda.conv_sum")
    splits = partial.shape[0]
    kernel((_blocks(partial.size // splits, 256),), (256,), partial, y, *given, np.int32(splits), *geometry)


def _kind(b: Any, x: Any, w: Any, channels: int, outputs: int, groups: int) -> str:
    """The family of kernels, by the dtypes of x and w and the sizes of a group."""
    kind = "fma"
    if x == w and on_tensor_cores(b, x):
        kind = "mma"
    elif x == float32 and w in HALVES and b.driver.arch in RICH:
        kind = "mixed"
    few = FEWEST[kind]
    fits = channels % few == 0 and outputs % few == 0 and groups <= GROUPS
    return kind if groups == 1 or fits else "direct"


def _tile(b: Any, rows: int, columns: int, groups: int) -> int:
    """The larger tile, which reads half as much for an operation, where there is one for every multiprocessor."""
    large = _blocks(rows, 128) * _blocks(columns, 128) * groups >= b.driver.multiprocessors
    return 128 if large and rows > 64 and columns > 64 else 64


def _split(b: Any, blocks: int, steps: int) -> tuple[int, int]:
    """How many blocks share a tile's terms, and how many steps each takes."""
    wanted = 2 * b.driver.multiprocessors // blocks if blocks < b.driver.multiprocessors else 1
    each = _blocks(steps, max(min(wanted, steps // SHORTEST), 1))
    return (_blocks(steps, each) if each else 1), each


def _threads(kind: str, tile: int) -> int:
    return 256 if kind == "fma" or tile == 128 else 128


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _too_large(x: Ints, w: Ints, y: Ints) -> bool:
    """Whether a number of 32 bits cannot count what the kernels count in one."""
    return max(math.prod(x[1:]), math.prod(w), math.prod(y[1:]), math.prod(y[:-1])) >= MANY


def _filled(b: Any, array: Any, to: int, groups: int) -> Any:
    """The last axis filled up with zeros to a multiple of `to`."""
    missing = -array.shape[-1] % to
    if groups > 1 or not missing:
        return array
    return b.ops.pad(array, pads=(*((0, 0, 0),) * (array.ndim - 1), (0, missing, 0)), value=0)


def _fit(b: Any, array: Any, dtype: Any = None) -> Any:
    """The array as a kernel reads it: its values side by side, from a multiple of 16 bytes on."""
    if array is None:
        return None
    if dtype is not None and array.dtype != dtype:
        array = b.ops.cast(array, dtype=dtype)
    array = contiguous(b, array)
    return array if b.driver.aligned(array) else array.copy()


def _vector(b: Any, array: Any, dtypes: tuple[Any, ...]) -> Any:
    if array is None:
        return None
    return contiguous(b, array if array.dtype in dtypes else b.ops.cast(array, dtype=float32))


def _spread(b: Any, x: Any, by: Ints) -> Any:
    """x (N, *S, C) with by - 1 zeros between neighbours on each spatial axis."""
    return b.ops.pad(x, pads=((0, 0, 0), *((0, 0, i - 1) for i in by), (0, 0, 0)), value=0)


@functools.lru_cache(maxsize=4096)
def _phases(x: Ints, w: Ints, y: Ints, stride: Ints, padding: Pairs, dilation: Ints, input_dilation: Ints, groups: int,
            flip: bool) -> tuple[Phase, ...]:  # fmt: skip
    """The launches of a convolution."""
    size, kernel, out = x[1:-1], w[1:-1], y[1:-1]
    channels, outputs = w[-1], w[0] // groups
    axes = [
        _axis(n, k, s, lo, d, i, flip)
        for n, k, s, (lo, _), d, i in zip(out, kernel, stride, padding, dilation, input_dilation, strict=True)
    ]
    if len(size) == 1:
        size, kernel, out, stride, input_dilation = (
            (1, *size),
            (1, *kernel),
            (1, *out),
            (1, *stride),
            (1, *input_dilation),
        )
        axes = [_axis(1, 1, 1, 0, 1, 1, False), *axes]
    found = []
    pixel = outputs * groups
    for h in axes[0]:
        for v in axes[1]:
            taps = (h.taps, v.taps) if h.taps and v.taps else (0, 1)
            sizes = (x[0], *size, channels, h.results, v.results, outputs, *taps, *stride, h.dilation, v.dilation,
                     h.pad, v.pad, groups)  # fmt: skip
            weight = (kernel[0] * kernel[1] * channels, (h.tap * kernel[1] + v.tap) * channels,
                      h.step * kernel[1] * channels, v.step * channels)  # fmt: skip
            far = ((h.first * out[1] + v.first) * pixel, out[0] * out[1] * pixel)
            near = (input_dilation[0] * out[1] * pixel, input_dilation[1] * pixel)
            geometry = (*map(np.int32, (*sizes, *weight)), *map(np.int64, far), *map(np.int32, near))
            rows = x[0] * h.results * v.results
            found.append(Phase(geometry, rows, outputs, taps[0] * taps[1] * channels, groups))
    return tuple(found)


class Axis(NamedTuple):
    """One phase of one spatial axis: its results first, first + input dilation, ...; its taps tap, tap + step, ..."""

    first: int
    results: int
    tap: int
    step: int
    taps: int
    dilation: int
    pad: int


def _axis(results: int, taps: int, stride: int, low: int, dilation: int, input_dilation: int, flip: bool) -> list[Axis]:
    """The phases of an axis. Result p sees pixel (p stride + k dilation - low) / input_dilation by tap k, where that is
    whole. A kernel that is turned round walks backwards over the picture."""
    if flip:
        low, dilation = low - dilation * (taps - 1), -dilation
    if input_dilation == 1:
        return [Axis(0, results, 0, 1, taps, dilation, low)]
    step = input_dilation // math.gcd(dilation, input_dilation)  # taps that see pixels in the same phase
    found = []
    for first in range(min(input_dilation, results)):
        results_of = _blocks(results - first, input_dilation)
        seen = [k for k in range(min(step, taps)) if (first + k * dilation - low) % input_dilation == 0]
        if not seen:
            found.append(Axis(first, results_of, 0, 1, 0, 1, 0))
            continue
        k = seen[0]
        at = (first + k * dilation - low) // input_dilation
        found.append(
            Axis(first, results_of, k, step, len(range(k, taps, step)), step * dilation // input_dilation, -at)
        )
    return found


@functools.lru_cache(maxsize=1024)
def _as_matrix(shape: Ints) -> tuple[Any, ...]:
    """The geometry by which conv_sum writes an array whole: shape[0] pixels of a picture without anything else."""
    across = math.prod(shape[1:])
    sizes = (1, 1, 1, 1, 1, shape[0], across, *(1,) * 6, 0, 0, 1, 0, 0, 0, 0)
    return (*map(np.int32, sizes), np.int64(0), np.int64(0), np.int32(0), np.int32(across))


KERNELS: dict[str, Callable[..., Any]] = {
    "conv": conv,
    "conv_bias_act": conv_bias_act,
    "conv_weight_grad": conv_weight_grad,
    "qconv": qconv,
}
