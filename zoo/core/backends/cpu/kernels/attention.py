"""Attention in float32, bfloat16 and float16; sums are in float32 whatever is stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import F32, WEIGHTS, Kernels, bits
from zoo.core.backends.cpu.memory import empty
from zoo.core.dtype import bfloat16
from zoo.core.stats import count


def attention(b: Any, q: Any, k: Any, v: Any, bias: Any, lengths: Any = None, *, causal: bool,
              scale: float | None) -> Any:  # fmt: skip
    if q.dtype not in WEIGHTS or 0 in q.shape or 0 in v.shape:
        return NotImplemented
    if k.dtype is not v.dtype or k.dtype not in WEIGHTS:
        k, v = k.astype(F32), v.astype(F32)
    out = empty((*q.shape[:3], v.shape[3]), q.dtype)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    b.native.attention(
        _heads(q), _heads(k), _heads(v), bits(out), _bias(bias, q, k), causal, scale, WEIGHTS[q.dtype],
        WEIGHTS[k.dtype], None if lengths is None else np.ascontiguousarray(lengths, np.int32),
    )  # fmt: skip
    count("cpu.attention")
    return out


def qattention(b: Any, q: Any, k: Any, v: Any, *, beside: str, scale: float | None) -> Any:
    """In integers of 16 bits (csrc/quant/attention.h), or in pairs of bfloat16, where the processor has them."""
    if beside == "bfloat16":
        if not b.pairs or any(x.dtype is not F32 for x in (q, k, v)):
            return NotImplemented
        rounded = [b.ops.cast(x, dtype=bfloat16) for x in (q, k, v)]
        return b.ops.cast(b.ops.attention(*rounded, None, None, causal=False, scale=scale), dtype=F32)
    if any(x.dtype is not F32 or 0 in x.shape for x in (q, k, v)) or q.shape[2] != k.shape[2] or q.shape[3] > 512:
        return NotImplemented
    out = empty((*q.shape[:3], v.shape[3]), F32)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    if not b.native.quant_attention(_heads(q), _heads(k), _heads(v), out, scale):
        return NotImplemented  # NaN or infinity, of which there are no codes
    count("cpu.attention_int16")
    return out


def attention_grad(b: Any, g: Any, q: Any, k: Any, v: Any, bias: Any, *, causal: bool,
                   scale: float | None) -> Any:  # fmt: skip
    if any(x.dtype not in WEIGHTS for x in (q, k, v)) or any(0 in x.shape for x in (q, k, v)):
        return NotImplemented
    wide = [_heads(x.astype(F32, copy=False)) for x in (g, q, k, v)]
    found = [empty(x.shape, F32) for x in (q, k, v)]
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    b.native.attention_gradient(*wide, *found, _bias(bias, q, k), causal, scale)
    count("cpu.attention_grad")
    return tuple(d.astype(x.dtype, copy=False) for d, x in zip(found, (q, k, v), strict=True))


def _bias(bias: Any, q: Any, k: Any) -> Any:
    """float32, with the axes (B, H, L, S), along which it may be the same: a view."""
    if bias is None:
        return None
    return np.broadcast_to(_aligned(bias.astype(F32, copy=False)), (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))


def _heads(array: Any) -> Any:
    """Read in place, however the first three axes lie; the numbers of a head must be side by side."""
    if array.strides[3] != array.itemsize:
        array = np.ascontiguousarray(array)
    return bits(_aligned(array))


def _aligned(array: Any) -> Any:
    whole = array.flags.aligned and not any(step % array.itemsize for step in array.strides)
    return array if whole else array.copy()


KERNELS: Kernels = {"attention": attention, "qattention": qattention, "attention_grad": attention_grad}
