"""Products of matrices: float32, or half precision, which the micro-kernel widens on the right and we on the left.

Where the instruction set multiplies bfloat16 in pairs, a layer whose weight is bfloat16 has its input rounded to
bfloat16 too, as it is in a network that runs in bfloat16 as a whole; sums and results stay float32. A pair needs an
even number of inputs. Elsewhere, and with ZOO_OFF=bf16, weights are widened and the input is not rounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import (
    BF16_PAIRS,
    CODES,
    F32,
    WEIGHTS,
    Kernels,
    bits,
    float_rows,
    float_vector,
    usable,
)
from zoo.core.backends.cpu.memory import empty
from zoo.core.backends.cpu.pack import Packed
from zoo.core.dtype import bfloat16
from zoo.core.stats import count

COUNTERS = ("cpu.gemm_f32", "cpu.gemm_bf16", "cpu.gemm_f16", "cpu.gemm_bf16_pairs")  # as numbered in csrc/gemm/table.h


def matmul(b: Any, x: Any, y: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    if type(x) is Packed or type(y) is Packed or max(x.ndim, y.ndim) > 8:
        return NotImplemented
    kind = WEIGHTS.get(y.dtype)
    if kind is None or x.dtype not in WEIGHTS or not (x.flags.aligned and y.flags.aligned):
        return NotImplemented
    dtype = x.dtype if x.dtype == y.dtype else F32
    if x.dtype is not F32:  # y is widened by the kernel
        x = b.ops.cast(x, dtype=F32)
    if transpose_a:
        x = x.swapaxes(-1, -2)
    if transpose_b:
        y = y.swapaxes(-1, -2)
    batch, (rows, depth), columns = x.shape[:-2], x.shape[-2:], y.shape[-1]
    if y.ndim == 2 < x.ndim and x.flags.c_contiguous:  # one matrix for the whole batch: one product with many rows
        flat = empty((math.prod(batch) * rows, columns), F32)
        b.native.gemm(x.reshape(len(flat), depth), bits(y), flat, weight=kind)
        out = flat.reshape(*batch, rows, columns)
    else:
        if batch != y.shape[:-2]:
            batch = np.broadcast_shapes(batch, y.shape[:-2])
        out = empty((*batch, rows, columns), F32)
        b.native.gemm(x, bits(y), out, weight=kind)
    count(COUNTERS[kind])
    return out if dtype is F32 else b.ops.cast(out, dtype=dtype)


def as_pairs(w: np.ndarray) -> np.ndarray | None:
    """A bfloat16 matrix (N, K) as float32 (N, K / 2), each of them two numbers; None where they do not lie so."""
    rows, step = w.strides
    if w.shape[1] % 2 or step != 2 or rows % 4:
        return None
    pairs = w.view(F32)
    return pairs if pairs.flags.aligned else None


def linear(b: Any, x: Any, w: Any, bias: Any, *, activation: str | None) -> Any:
    kind = WEIGHTS.get(w.dtype)
    if kind is None or x.dtype not in WEIGHTS or activation not in CODES:
        return NotImplemented
    columns = w.shape[0]
    flat = x if x.ndim == 2 and usable(x) else float_rows(b, x)
    bias = float_vector(bias)
    out = empty((len(flat), columns), F32)
    if type(w) is not Packed:
        if not w.flags.aligned:
            return NotImplemented
        pairs = as_pairs(w) if kind == WEIGHTS[bfloat16] and b.pairs else None
        if pairs is not None:
            kind = BF16_PAIRS
        b.native.gemm(flat, (bits(w) if pairs is None else pairs).T, out, bias, None, CODES[activation], weight=kind)
    elif w.fits(b.isa, "linear"):
        kind = BF16_PAIRS if w.pairs else kind
        b.native.gemm(flat, w.buffer, out, bias, None, CODES[activation], columns, kind)
        count("cpu.packed_weight")
    else:
        return NotImplemented
    count(COUNTERS[kind])
    if x.dtype is not F32:
        out = b.ops.cast(out, dtype=x.dtype)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], columns)


KERNELS: Kernels = {"matmul": matmul, "linear": linear}
