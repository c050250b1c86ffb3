"""Products of matrices, summed in float32 (float64 in its own): by cuBLAS, or, for up to 8 rows, by gemv.cu, which
reads each weight once at the rate of memory.

float32 times a weight in half precision, as models of float32 activations have it, is done on tensor cores without
losing float32's precision: x is cut into halves (split.cu), whose products are added from the smallest on. With
ZOO_TF32=1 x is rounded once to what the weight is stored in, as prepared layers do it on the cpu for bfloat16.

What follows a product (bias, activation, the step to half precision) is done in one pass over it (finish.cu). A bias
alone, where all is in half precision, is written first and the product added to it: 6 bytes for each number, not 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import broadcast_strides, collapsed, run
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import HALVES, bfloat16, float16, float32, float64, promote
from zoo.core.prims.nn import ACTIVATIONS
from zoo.core.stats import count

CODES = {name: code for code, name in enumerate((None, *ACTIVATIONS))}  # as activation.cuh numbers them
FEW = 8  # rows that gemv.cu takes
SINGLE = frozenset((float32, *HALVES))
THREADS = 256


def matmul(b: Any, x: Any, y: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    dtype = promote(x.dtype, y.dtype)
    x, y = x.swapaxes(-1, -2) if transpose_a else x, y.swapaxes(-1, -2) if transpose_b else y
    batch, (rows, depth), columns = x.shape[:-2], x.shape[-2:], y.shape[-1]
    if batch != y.shape[:-2]:
        batch = np.broadcast_shapes(batch, y.shape[:-2])
    shape = (*batch, rows, columns)
    if 0 in shape or depth == 0:
        return b.xp.zeros(shape, dtype)
    if math.prod(y.shape[:-2]) == 1 and (x.ndim == 2 or x.flags.c_contiguous):  # one matrix for the whole batch
        w = y.reshape(y.shape[-2:]).swapaxes(0, 1)
        return product(b, x.reshape(-1, depth), w, None, None, dtype).reshape(shape)
    x, y = _alike(b, x, y)
    out = b.xp.empty(shape, _of_product(x.dtype, dtype))
    batched(b, x, y, out)
    return out if out.dtype == dtype else b.ops.cast(out, dtype=dtype)


def linear(b: Any, x: Any, w: Any, bias: Any, *, activation: str | None) -> Any:
    columns, depth = w.shape
    if not depth or x.dtype not in SINGLE or w.dtype not in SINGLE or (bias is not None and bias.dtype not in SINGLE):
        return NotImplemented
    rows = math.prod(x.shape[:-1])
    if not rows or not columns:
        return b.xp.empty((*x.shape[:-1], columns), x.dtype)
    return product(b, x.reshape(rows, depth), w, bias, activation, x.dtype).reshape(*x.shape[:-1], columns)


def product(b: Any, x: Any, w: Any, bias: Any, activation: str | None, dtype: np.dtype) -> Any:
    """activation(x @ w.T + bias) in `dtype`.  x (M, K) and w (N, K), none of them 0, however they lie in memory;
    float64 without bias and activation."""
    if dtype != float64 and len(x) <= FEW and _has_rows(w):
        return _gemv(b, x, w, bias, activation, dtype)
    if b.tf32 and x.dtype == float32 and w.dtype == bfloat16 and b.driver.arch >= 80:
        x = b.ops.cast(x, dtype=bfloat16)
    alone = bias is None and activation is None
    scale, shape = None, (len(x), len(w))
    if x.dtype == float32 and w.dtype in HALVES and (w.dtype == float16 or b.driver.arch >= 80):
        out = b.xp.empty(shape, float32)
        scale = _split(b, x, w, out)
    else:
        x, w = _alike(b, x, w)
        if bias is not None and activation is None and x.dtype == bias.dtype == dtype and dtype in HALVES:
            out = run(b, "a", (bias,), shape, dtype)
            batched(b, x, w.swapaxes(0, 1), out, beta=1.0)
            count("cuda.gemm_bias")
            return out
        out = b.xp.empty(shape, _of_product(x.dtype, dtype if alone else promote(float32, dtype)))
        batched(b, x, w.swapaxes(0, 1), out)
    if alone and scale is None and out.dtype == dtype:
        return out
    return _finish(b, out, scale, bias, activation, dtype)


def on_tensor_cores(b: Any, dtype: Any) -> bool:
    """sm_75 has no bfloat16 there."""
    return dtype in HALVES and (b.driver.arch >= 80 or dtype == float16)


def _alike(b: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Both in one dtype that cuBLAS multiplies on this GPU."""
    wide = x.dtype if x.dtype == y.dtype else promote(promote(x.dtype, y.dtype), float32)
    if wide == bfloat16 and b.driver.arch < 80:
        wide = float32
    return tuple([a if a.dtype == wide else b.ops.cast(a, dtype=wide) for a in (x, y)])


def _of_product(factors: np.dtype, wanted: np.dtype) -> np.dtype:
    """The dtype in which cuBLAS can store a product: that of its factors, or float32 of halves."""
    return wanted if wanted in (factors, float32) and factors != float64 else promote(factors, float32)


def _has_rows(w: Any) -> bool:
    """Whether the inputs of an output lie side by side."""
    return w.dtype != float64 and (w.strides[1] == w.itemsize or w.shape[1] == 1) and w.strides[0] >= 0


def few_rows(b: Any, outputs: int, steps: int) -> tuple[int, int]:
    """How gemv.cu and qgemv.cu cut a product up: outputs of a warp, and warps that share k in `steps` steps of a warp,
    so that each multiprocessor has 16 warps if the product is large enough."""
    wanted = 16 * b.driver.multiprocessors
    rows = 4 if outputs >= wanted // 2 else 1
    split = 1
    while split < 4 and -(-outputs // rows) * split < wanted and 2 * split <= steps:
        split *= 2
    return rows, split


def most(rows: int) -> int:
    """1, 4 or 8: the number of rows that a kernel is compiled for. Memory sets the pace of 2 rows as of 4."""
    return 1 if rows == 1 else 4 if rows <= 4 else 8


def _gemv(b: Any, x: Any, w: Any, bias: Any, activation: str | None, dtype: np.dtype) -> Any:
    rows, (outputs, depth) = len(x), w.shape
    x, bias = b.xp.ascontiguousarray(x), bias if bias is None else b.xp.ascontiguousarray(bias)
    of_a_warp, split = few_rows(b, outputs, -(-depth * w.itemsize // 512))
    kernel = b.driver.kernel(
        "gemv.cu", "gemv", X=ctype(x.dtype), W=ctype(w.dtype), B=ctype_of(bias), Y=ctype(dtype), MOST=most(rows),
        ROWS=of_a_warp,
    )  # fmt: skip
    y = b.xp.empty((rows, outputs), dtype)
    pitch = w.strides[0] // w.itemsize if outputs > 1 else depth
    blocks = -(-outputs // (of_a_warp * 4 // split))
    sizes = (np.int32(rows), np.int32(outputs), np.int32(depth), np.int64(pitch))
    kernel((blocks,), (128,), x, w, bias, y, *sizes, np.int32(split), np.int32(CODES[activation]))
    count("cuda.gemv")
    return y


def ctype_of(bias: Any) -> str:
    return "float" if bias is None else ctype(bias.dtype)


def _split(b: Any, x: Any, w: Any, out: Any) -> Any:
    """out = x @ w.T for x in float32 and w in half precision. Returns by what each row of it is still to be
    multiplied, or None."""
    x = b.xp.ascontiguousarray(x)
    rows, depth = x.shape
    parts = b.xp.empty((3 if w.dtype == bfloat16 else 2, rows, depth), w.dtype)
    if w.dtype == bfloat16:
        scale, factors = None, [1.0, 1.0, 1.0]
        grid = min(-(-x.size // THREADS), 16 * b.driver.multiprocessors)
        b.driver.kernel("split.cu", "split3")((grid,), (THREADS,), x, parts, np.int64(x.size))
    else:
        scale, factors = b.xp.empty(rows, float32), [1.0, 1.0 / 2048]
        settings = (x, parts, scale, np.int32(rows), np.int32(depth))
        b.driver.kernel("split.cu", "split2")((rows,), (THREADS,), *settings)
    taken = 1 if b.tf32 else len(factors)
    for i in reversed(range(taken)):
        batched(b, parts[i], w.swapaxes(0, 1), out, alpha=factors[i], beta=0.0 if i == taken - 1 else 1.0)
    count("cuda.gemm_split")
    return scale


def _finish(b: Any, c: Any, scale: Any, bias: Any, activation: str | None, dtype: np.dtype) -> Any:
    rows, columns = c.shape
    y = c if dtype == float32 else b.xp.empty(c.shape, dtype)
    bias = bias if bias is None else b.xp.ascontiguousarray(bias)
    kernel = b.driver.kernel("finish.cu", "finish", B=ctype_of(bias), Y=ctype(dtype))
    grid = (-(-columns // (4 * THREADS)), min(rows, 65535))
    kernel(grid, (THREADS,), c, scale, bias, y, *map(np.int32, (rows, columns, CODES[activation])))
    return y


# cuBLAS sees columns where we have rows: our c = x y is its c' = y' x'


def _leading(a: Any) -> tuple[bool, int] | None:
    """How cuBLAS reads the last two axes of a: (whether it must transpose them, the distance of rows, or of columns
    then, in numbers); None if it cannot."""
    (rows, columns), (down, along) = a.shape[-2:], (s // a.itemsize for s in a.strides[-2:])
    if (along == 1 or columns == 1) and (rows == 1 or down >= columns):
        return False, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (columns == 1 or along >= rows):
        return True, along if columns > 1 else rows
    return None


def _readable(b: Any, a: Any) -> Any:
    return a if _leading(a) and min(a.strides) >= 0 else b.xp.ascontiguousarray(a)


def batched(b: Any, x: Any, y: Any, out: Any, *, alpha: float = 1.0, beta: float = 0.0) -> None:
    """out = alpha x @ y + beta out, of one dtype; out contiguous, batch axes of x and y broadcast to its. No operand is
    copied unless neither of its last two axes has its numbers side by side."""
    x, y = _readable(b, x), _readable(b, y)
    (rows, depth), columns = x.shape[-2:], y.shape[-1]
    batch = out.shape[:-2]
    # of the axes that a batch has after joining, cuBLAS goes through the longest; the others are loops here
    lengths, strides = collapsed(batch, [broadcast_strides(a[..., 0, 0], batch) for a in (x, y, out)])
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    lengths, strides = tuple(lengths[i] for i in order), tuple(tuple(s[i] for i in order) for s in strides)
    views = [
        b.xp.lib.stride_tricks.as_strided(a, (*lengths, *a.shape[-2:]), (*(n * a.itemsize for n in s), *a.strides[-2:]))
        for a, s in zip((x, y, out), strides, strict=True)
    ]
    (turn_x, ldx), (turn_y, ldy) = (_leading(a) for a in (x, y))  # type: ignore[misc]
    step_x, step_y, step_out = (s[-1] for s in strides)
    for at in np.ndindex(*lengths[:-1]):
        b.driver.gemm(
            turn_y, turn_x, columns, rows, depth, alpha, views[1][at], ldy, step_y, views[0][at], ldx, step_x, beta,
            views[2][at], columns, step_out, lengths[-1], tf32=b.tf32,
        )  # fmt: skip
        count("cuda.gemm")


KERNELS: dict[str, Callable[..., Any]] = {"matmul": matmul, "linear": linear}
