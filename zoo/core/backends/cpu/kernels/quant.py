"""Products with weights of 8 and 4 bits, in integers: x is quantised by row on the fly, 127 to its largest number.

A row that holds NaN or infinity has no such scale; it is computed with the dequantised weight, as the reference does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import CODES, F32, WEIGHTS, Kernels, float_rows, float_vector
from zoo.core.backends.cpu.memory import empty
from zoo.core.backends.cpu.pack import Packed, pack
from zoo.core.backends.numpy.quant import dequantize
from zoo.core.dtype import float16, int8
from zoo.core.stats import count

BITS, STORED = {"int8": 8, "int4": 4}, {"int8": F32, "int4": float16}
MAX_INPUTS = 1 << 17  # beyond, 127 * 128 * K may overflow an int32


def qlinear(b: Any, x: Any, q: Any, scale: Any, bias: Any, *, format: str, activation: str | None = None) -> Any:
    operands = _operands(b, x, q, scale, format)
    if operands is None or activation not in CODES:
        return NotImplemented
    rows, bias = float_rows(b, x), float_vector(bias)
    out = empty((len(rows), q.shape[0]), F32)
    if not b.native.quant_linear(rows, *operands, out, bias, CODES[activation], BITS[format]):
        _redo(b, rows, q, scale, bias, out, format, activation)
    count(f"cpu.{format}")
    return _shaped(b, out, x)


def qlinears(b: Any, x: Any, *weights: Any, format: str) -> Any:
    if x.dtype not in WEIGHTS:
        return NotImplemented
    rows, each = float_rows(b, x), []
    for q, scale, bias in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
        operands = _operands(b, x, q, scale, format)
        if operands is None:
            return NotImplemented
        each.append((*operands, empty((len(rows), q.shape[0]), F32), float_vector(bias)))
    if not b.native.quant_linears(rows, each, BITS[format]):
        for q, scale, (_, _, out, bias) in zip(weights[::3], weights[1::3], each, strict=True):
            _redo(b, rows, q, scale, bias, out, format, None)
    count(f"cpu.{format}", len(each))
    return tuple([_shaped(b, out, x) for _, _, out, _ in each])


def _operands(b: Any, x: Any, q: Any, scale: Any, format: str) -> tuple[Any, Any] | None:
    """The buffers that the kernel reads; None if it cannot."""
    if x.dtype not in WEIGHTS or scale.dtype != STORED[format] or x.shape[-1] > MAX_INPUTS:
        return None
    weight = _packed(b, q, format)
    scales = _packed(b, scale, "linear") if format == "int4" else scale
    if weight is None or scales is None:
        return None
    return weight.buffer, scales.buffer if format == "int4" else np.ascontiguousarray(scales)


def _redo(b: Any, rows: Any, q: Any, scale: Any, bias: Any, out: Any, format: str, activation: str | None) -> None:
    """The rows that hold NaN or infinity."""
    strange = ~np.isfinite(rows).all(axis=1)
    plain = [a.unpack() if type(a) is Packed else a for a in (q, scale)]
    wide = dequantize(b, *plain, format=format, dtype=F32)
    out[strange] = b.ops.linear(rows[strange], wide, bias, activation=activation)


def _shaped(b: Any, out: Any, x: Any) -> Any:
    if x.dtype is not F32:
        out = b.ops.cast(out, dtype=x.dtype)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _packed(b: Any, array: Any, layout: str) -> Packed | None:
    """As the kernel reads it; what a model did not `prepare` is packed for this call. None: packed for another one."""
    if type(array) is Packed:
        return array if array.fits(b.isa, layout) else None
    return pack(b.native, array, "linear") if math.prod(array.shape) else None


def qmatmul(b: Any, x: Any, q: Any, scale: Any, *, format: str) -> Any:
    return qlinear(b, x, q, scale, None, format=format)


def qembedding(b: Any, q: Any, scale: Any, ids: Any) -> Any:
    """From a packed table, of which the rows are taken alone."""
    if type(q) is not Packed or q.layout != "int8" or (ids.size and not 0 <= ids.min() <= ids.max() < len(scale)):
        return NotImplemented
    panels = q.buffer.reshape(-1, -(-q.shape[1] // 4), q.columns, 4)
    codes = panels[ids // q.columns, :, ids % q.columns].reshape(*ids.shape, -1)[..., : q.shape[1]]
    return (codes ^ 0x80).view(int8) * scale[ids][..., None]


KERNELS: Kernels = {"qmatmul": qmatmul, "qlinear": qlinear, "qlinears": qlinears, "qembedding": qembedding}
