"""Quantised weights (formats: zoo/core/prims/quant.py). The reference multiplies with the dequantised weight: the
oracle for kernels that work on integers."""

from __future__ import annotations

from typing import Any

from zoo.core.dtype import compute_dtype, float16, float32, int8, uint8
from zoo.core.prims.quant import GROUP


def quantize(b: Any, w: Any, *, format: str) -> Any:
    xp = b.xp
    w = w.astype(float32)
    if format == "int8":
        scale = xp.abs(w).max(axis=1) / 127 if w.shape[1] else xp.zeros(w.shape[0], dtype=float32)
        unit = xp.where(scale > 0, scale, 1)[:, None]
        return xp.clip(xp.rint(w / unit), -127, 127).astype(int8), scale.astype(float32)
    n, k = w.shape
    groups = w.reshape(n, k // GROUP, GROUP)
    largest = xp.take_along_axis(groups, xp.abs(groups).argmax(axis=-1, keepdims=True), axis=-1)
    scale = (largest / -8).astype(float16)
    wide = scale.astype(float32)  # the rounded scale decides the codes, since it is the one that is stored
    codes = xp.clip(xp.rint(groups / xp.where(wide != 0, wide, 1)) + 8, 0, 15).astype(uint8).reshape(n, k)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scale[..., 0]


def dequantize(b: Any, q: Any, scale: Any, *, format: str, dtype: Any) -> Any:
    xp = b.xp
    if format == "int8":
        wide = q.astype(float32)
        wide *= scale.astype(float32)[:, None]
        return wide.astype(dtype, copy=False)
    n, k = q.shape[0], q.shape[1] * 2
    # the two weights of a byte, side by side in the eight bytes of a number that nobody computes with: one gather gives
    # both, three times as fast as masks and shifts
    codes = xp.arange(256)
    pairs = xp.stack([(codes & 15) - 8, (codes >> 4) - 8], axis=-1).astype(float32).view("float64")[:, 0]
    wide = pairs[xp.ascontiguousarray(q)].view(float32).reshape(n, k // GROUP, GROUP)
    wide *= scale.astype(float32)[..., None]
    return wide.reshape(n, k).astype(dtype, copy=False)


def qmatmul(b: Any, x: Any, q: Any, scale: Any, *, format: str) -> Any:
    wide = compute_dtype(x.dtype)
    w = dequantize(b, q, scale, format=format, dtype=wide)
    return b.xp.matmul(x.astype(wide, copy=False), w.T).astype(x.dtype, copy=False)


KERNELS = {"quantize": quantize, "dequantize": dequantize, "qmatmul": qmatmul}
