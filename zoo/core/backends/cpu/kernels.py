"""Ops on numpy arrays by the native kernels. Each takes the backend first, and declines with NotImplemented what it
does not do: other dtypes than float32, misaligned memory, three spatial axes. `infer` has checked the shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu.pack import Packed, as_2d
from zoo.core.prims.contract import window_out
from zoo.core.stats import count

F32 = np.dtype(np.float32)
# as numbered in csrc/kernels.h
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh")
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def _usable(*arrays: Any) -> bool:
    return all(a is None or (a.dtype is F32 and (type(a) is Packed or a.flags.aligned)) for a in arrays)


def _contiguous(array: Any) -> Any:
    return None if array is None else np.ascontiguousarray(array)


def matmul(b: Any, x: Any, y: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    if type(x) is Packed or type(y) is Packed or not _usable(x, y) or max(x.ndim, y.ndim) > 8:
        return NotImplemented
    if transpose_a:
        x = x.swapaxes(-1, -2)
    if transpose_b:
        y = y.swapaxes(-1, -2)
    batch, (rows, depth), columns = x.shape[:-2], x.shape[-2:], y.shape[-1]
    if y.ndim == 2 < x.ndim and x.flags.c_contiguous:  # one matrix for the whole batch: one product with many rows
        flat = np.empty((math.prod(batch) * rows, columns), F32)
        b.native.gemm(x.reshape(len(flat), depth), y, flat)
        out = flat.reshape(*batch, rows, columns)
    else:
        if batch != y.shape[:-2]:
            batch = np.broadcast_shapes(batch, y.shape[:-2])
        out = np.empty((*batch, rows, columns), F32)
        b.native.gemm(x, y, out)
    count("cpu.gemm_f32")
    return out


def linear(b: Any, x: Any, w: Any, bias: Any, *, activation: str | None) -> Any:
    if not _usable(x, w, bias) or activation not in CODES:
        return NotImplemented
    columns, depth = w.shape
    rows = math.prod(x.shape[:-1])
    flat = x if x.ndim == 2 else x.reshape(rows, depth)
    out = np.empty((rows, columns), F32)
    if type(w) is not Packed:
        b.native.gemm(flat, w.T, out, _contiguous(bias), None, CODES[activation])
    elif w.fits(b.isa, "linear"):
        b.native.gemm(flat, w.buffer, out, _contiguous(bias), None, CODES[activation], columns)
        count("cpu.packed_weight")
    else:
        return NotImplemented
    count("cpu.gemm_f32")
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], columns)


def conv(b: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, input_dilation: Any, groups: int,
         flip: bool) -> Any:  # fmt: skip
    if max(input_dilation) > 1:
        if not _usable(x):
            return NotImplemented
        x = _spread(x, input_dilation)
    return _conv(b, x, w, None, None, stride, padding, dilation, groups, flip, None)


def conv_bias_act(b: Any, x: Any, w: Any, bias: Any, residual: Any, *, stride: Any, padding: Any, dilation: Any,
                  groups: int, activation: str | None) -> Any:  # fmt: skip
    return _conv(b, x, w, bias, residual, stride, padding, dilation, groups, False, activation)


def _conv(b: Any, x: Any, w: Any, bias: Any, residual: Any, stride: Any, padding: Any, dilation: Any, groups: int,
          flip: bool, activation: str | None) -> Any:  # fmt: skip
    rank = len(stride)
    if rank > 2 or not _usable(x, w, bias, residual) or activation not in CODES or 0 in x.shape or 0 in w.shape:
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
        as_2d(x), w.buffer if packed else as_2d(w), as_2d(out), _contiguous(bias), _contiguous(residual),
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


KERNELS: dict[str, Callable[..., Any]] = {
    "matmul": matmul,
    "linear": linear,
    "conv": conv,
    "conv_bias_act": conv_bias_act,
}
