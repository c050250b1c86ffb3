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
from zoo.core.dtype import float16
from zoo.core.stats import count

MAX_INPUTS = 1 << 17  # beyond, 127 * 128 * K may overflow an int32


def qlinear(b: Any, x: Any, q: Any, scale: Any, bias: Any, *, format: str, activation: str | None = None) -> Any:
    bits, stored = (8, F32) if format == "int8" else (4, float16)
    depth, columns = x.shape[-1], q.shape[0]
    if x.dtype not in WEIGHTS or scale.dtype != stored or activation not in CODES or depth > MAX_INPUTS:
        return NotImplemented
    weight, scales = _packed(b, q, format), _packed(b, scale, "linear") if bits == 4 else scale
    if weight is None or scales is None:
        return NotImplemented
    rows = float_rows(b, x)
    out = empty((len(rows), columns), F32)
    scales = scales.buffer if bits == 4 else np.ascontiguousarray(scales)
    bias = float_vector(bias)
    if not b.native.quant_linear(rows, weight.buffer, scales, out, bias, CODES[activation], bits):
        strange = ~np.isfinite(rows).all(axis=1)
        plain = [a.unpack() if type(a) is Packed else a for a in (q, scale)]
        wide = dequantize(b, *plain, format=format, dtype=F32)
        out[strange] = b.ops.linear(rows[strange], wide, bias, activation=activation)
    count(f"cpu.{format}")
    if x.dtype is not F32:
        out = b.ops.cast(out, dtype=x.dtype)
    return out.reshape(*x.shape[:-1], columns)


def _packed(b: Any, array: Any, layout: str) -> Packed | None:
    """As the kernel reads it; what a model did not `prepare` is packed for this call. None: packed for another one."""
    if type(array) is Packed:
        return array if array.fits(b.isa, layout) else None
    return pack(b.native, array, "linear") if math.prod(array.shape) else None


def qmatmul(b: Any, x: Any, q: Any, scale: Any, *, format: str) -> Any:
    return qlinear(b, x, q, scale, None, format=format)


KERNELS: Kernels = {"qmatmul": qmatmul, "qlinear": qlinear}
