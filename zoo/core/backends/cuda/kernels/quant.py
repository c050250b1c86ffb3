"""Products with weights of 8 and 4 bits, in integers: x is rounded by row on the way, 127 to its largest number, as on
the cpu, so that both devices add up the same integers. Up to 8 rows by qgemv.cu, more on tensor cores by qgemm.cu.

Weights are read as `quantize` stores them; there is nothing to `prepare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoo.core.backends.cuda.kernels.gemm import CODES, FEW, SINGLE, ctype_of, few_rows, most
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float16, float32
from zoo.core.stats import count

BITS, STORED = {"int8": 8, "int4": 4}, {"int8": float32, "int4": float16}
MAX_INPUTS = 1 << 17  # beyond, 127 * 128 * K may overflow an int32
STEP = 64  # codes of a row are made up to a multiple of it
SMALL = {"TILE_M": 64, "TILE_N": 64, "WARPS_M": 2, "WARPS_N": 2, "STAGES": 4}
LARGE = {"TILE_M": 128, "TILE_N": 128, "WARPS_M": 2, "WARPS_N": 4, "STAGES": 3}


class Rows(NamedTuple):
    """Rows of x, and what they were rounded to."""

    x: Any  # (M, K)
    codes: Any  # int8 (M, K and zeros to a multiple of STEP); of 4 bits even inputs before odd ones in each 32
    scale: Any  # float32 (M,)


def qlinear(b: Any, x: Any, q: Any, scale: Any, bias: Any, *, format: str, activation: str | None = None) -> Any:
    if not _known(x, q, scale, bias, format):
        return NotImplemented
    return _product(b, _rounded(b, x, format), q, scale, bias, format, activation).reshape(*x.shape[:-1], len(q))


def qlinears(b: Any, x: Any, *weights: Any, format: str) -> Any:
    each = list(zip(weights[::3], weights[1::3], weights[2::3], strict=True))
    if not all(_known(x, *weight, format) for weight in each):
        return NotImplemented
    rows = _rounded(b, x, format)
    return tuple([_product(b, rows, *one, format, None).reshape(*x.shape[:-1], len(one[0])) for one in each])


def qmatmul(b: Any, x: Any, q: Any, scale: Any, *, format: str) -> Any:
    return qlinear(b, x, q, scale, None, format=format)


def _known(x: Any, q: Any, scale: Any, bias: Any, format: str) -> bool:
    fits = x.dtype in SINGLE and scale.dtype == STORED[format] and (bias is None or bias.dtype in SINGLE)
    return fits and 0 not in (*x.shape, *q.shape) and x.shape[-1] <= MAX_INPUTS


def _rounded(b: Any, x: Any, format: str) -> Rows:
    depth = x.shape[-1]
    x = b.xp.ascontiguousarray(x.reshape(math.prod(x.shape[:-1]), depth))
    pitch = -(-depth // STEP) * STEP
    codes, scale = b.xp.empty((len(x), pitch), np.int8), b.xp.empty(len(x), float32)
    kernel = b.driver.kernel("quantise.cu", "quantise_rows", BITS=BITS[format], X=ctype(x.dtype))
    kernel((len(x),), (256,), x, codes, scale, np.int32(depth), np.int32(pitch))
    return Rows(x, codes, scale)


def _product(b: Any, rows: Rows, q: Any, scale: Any, bias: Any, format: str, activation: str | None) -> Any:
    (m, depth), n, pitch = rows.x.shape, len(q), rows.codes.shape[1]
    q, scale = b.xp.ascontiguousarray(q), b.xp.ascontiguousarray(scale)
    bias = bias if bias is None else b.xp.ascontiguousarray(bias)
    y = b.xp.empty((m, n), rows.x.dtype)
    constants: dict[str, Any] = {"BITS": BITS[format], "X": ctype(y.dtype), "B": ctype_of(bias)}
    arrays = (rows.codes, rows.scale, q, scale, bias, rows.x, y)
    sizes = tuple(map(np.int32, (m, n, depth, pitch, CODES[activation])))
    if m <= FEW:
        of_a_warp, split = few_rows(b, n, -(-depth * BITS[format] // (8 * 512)))
        kernel = b.driver.kernel("qgemv.cu", "qgemv", MOST=most(m), ROWS=of_a_warp, **constants)
        kernel((-(-n // (of_a_warp * 4 // split)),), (128,), *arrays, *sizes, np.int32(split))
        count(f"cuda.qgemv_{format}")
        return y
    large = -(-m // 128) * -(-n // 128) >= b.driver.multiprocessors
    tile = LARGE if large else SMALL
    kernel = b.driver.kernel("qgemm.cu", "qgemm", **constants, **tile)
    grid = (-(-m // tile["TILE_M"]), -(-n // tile["TILE_N"]))
    kernel(grid, (32 * tile["WARPS_M"] * tile["WARPS_N"],), *arrays, *sizes)
    count(f"cuda.qgemm_{format}{'_large' if large else ''}")
    return y


def dequantize(b: Any, q: Any, scale: Any, *, format: str, dtype: np.dtype) -> Any:
    if dtype not in SINGLE or scale.dtype != STORED[format] or not q.size:
        return NotImplemented
    q, scale = b.xp.ascontiguousarray(q), b.xp.ascontiguousarray(scale)
    w = b.xp.empty((len(q), q.shape[1] * 8 // BITS[format]), dtype)
    grid = min(-(-q.size // 256), 16 * b.driver.multiprocessors)
    kernel = b.driver.kernel("dequantise.cu", f"dequantise{BITS[format]}", Y=ctype(dtype))
    kernel((grid,), (256,), q, scale, w, np.int64(q.size), np.int32(w.shape[1]))
    count("cuda.dequantize")
    return w


def qembedding(b: Any, q: Any, scale: Any, ids: Any) -> Any:
    if 0 in (*q.shape, *ids.shape) or scale.dtype != float32:
        return NotImplemented
    q, scale, ids = (b.xp.ascontiguousarray(a) for a in (q, scale, ids))
    y = b.xp.empty((*ids.shape, q.shape[1]), float32)
    kernel = b.driver.kernel("dequantise.cu", "dequantise_rows", Y="float", ID=ctype(ids.dtype))
    kernel((ids.size,), (128,), q, scale, ids, y, np.int32(len(q)), np.int32(q.shape[1]))
    count("cuda.qembedding")
    return y


KERNELS: dict[str, Callable[..., Any]] = {
    "qmatmul": qmatmul, "qlinear": qlinear, "qlinears": qlinears, "dequantize": dequantize, "qembedding": qembedding,
}  # fmt: skip
