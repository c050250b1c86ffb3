"""What cuBLAS computes, from the memory that it would read: columns, leading dimensions and strides as its manual has
them (cublasGemmStridedBatchedEx), and refused where it would read or write beyond an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.dtype import HALVES, bfloat16, float32, float64
from zoo.core.testing.emulator.compiler import EmulationError


def gemm(
    arch: int, transpose_a: bool, transpose_b: bool, m: int, n: int, k: int, alpha: float, a: Any, lda: int,
    stride_a: int, b: Any, ldb: int, stride_b: int, beta: float, c: Any, ldc: int, stride_c: int, batch: int, *,
    tf32: bool,
) -> None:  # fmt: skip
    """As zoo/core/backends/cuda/cublas.py: gemm. tf32 is taken as leave to be less exact, which the emulator is not."""
    if a.dtype != b.dtype or c.dtype not in {a.dtype, float32 if a.dtype in HALVES else a.dtype}:
        _refuse(f"{a.dtype.name} times {b.dtype.name} to {c.dtype.name}", "cuBLAS has no such product")
    if a.dtype == bfloat16 and arch < 80:
        _refuse("bfloat16", f"sm_{arch} has no bfloat16")
    if min(m, n, k, batch) < 1 or max(m, n, k, lda, ldb, ldc, batch) >= 2**31:
        _refuse(f"m, n, k = {m}, {n}, {k}, batch {batch}", "sizes are at least 1 and fit 31 bits")
    wide: Any = float64 if c.dtype == float64 else float32
    x = _matrices("a", a, (k, m) if transpose_a else (m, k), lda, stride_a, batch).astype(wide)
    y = _matrices("b", b, (n, k) if transpose_b else (k, n), ldb, stride_b, batch).astype(wide)
    z = _matrices("c", c, (m, n), ldc, stride_c, batch)
    apart = stride_c >= (n - 1) * ldc + m or (stride_c >= m and ldc >= (batch - 1) * stride_c + m)
    if batch > 1 and not apart:
        _refuse(f"c {m} x {n}, ldc {ldc}, stride {stride_c}", "its matrices overlap")
    product = np.matmul(x.swapaxes(1, 2) if transpose_a else x, y.swapaxes(1, 2) if transpose_b else y) * wide.type(
        alpha
    )
    if beta:  # else c is not read
        product += z.astype(wide) * wide.type(beta)
    z[...] = product


def _matrices(name: str, array: Any, shape: tuple[int, int], leading: int, stride: int, batch: int) -> np.ndarray:
    """(batch, rows, columns): the memory from the array's first number on, read by columns."""
    rows, columns = shape
    low, high = np.lib.array_utils.byte_bounds(array)
    if array.ctypes.data != low:
        _refuse(f"{name} {array.shape}, strides {array.strides}", "it does not begin where its memory does")
    if leading < rows or stride < 0:
        _refuse(f"{name}: {rows} rows, leading dimension {leading}, stride {stride}", "the first is at least the rows")
    reach = (batch - 1) * stride + (columns - 1) * leading + rows
    if reach * array.itemsize > high - low:
        _refuse(f"{name} {array.shape}, strides {array.strides}", f"{reach} numbers from its first on would be touched")
    steps = tuple(s * array.itemsize for s in (stride, 1, leading))
    return np.lib.stride_tricks.as_strided(array, (batch, rows, columns), steps)


def _refuse(what: str, why: str) -> None:
    raise EmulationError(f"cublasGemmStridedBatchedEx with {what} went wrong", why)
