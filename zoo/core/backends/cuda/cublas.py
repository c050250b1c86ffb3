"""cuBLAS by CuPy's bindings. Halves are multiplied by tensor cores and summed in float32, also where cuBLAS would split
a long sum among blocks; float32 is multiplied as it is, unless `tf32`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from zoo.core.dtype import bfloat16, float16, float32, float64
from zoo.core.errors import DeviceError

TYPES = {float32: 0, float64: 1, float16: 2, bfloat16: 14}  # cudaDataType
DEFAULT, TF32, DOUBLE = 68, 77, 70  # cublasComputeType: 32F, 32F_FAST_TF32, 64F
SUMS_IN_SINGLE = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


@functools.cache
def _library() -> Any:
    try:
        from cupy.cuda import cublas
    except ImportError as e:  # CuPy loads it when it is first used
        raise DeviceError(
            "device 'cuda' cannot be used", f"CuPy does not find cuBLAS ({e})",
            'pip install "zoo-models[cuda12]" (or cuda13) brings it',
        ) from None  # fmt: skip
    return cublas


@functools.cache
def _number(value: float, dtype: np.dtype) -> np.ndarray:
    """On the host, where cuBLAS reads alpha and beta at the call."""
    return np.array(value, dtype)


def gemm(
    handle: int, transpose_a: bool, transpose_b: bool, m: int, n: int, k: int, alpha: float, a: Any, lda: int,
    stride_a: int, b: Any, ldb: int, stride_b: int, beta: float, c: Any, ldc: int, stride_c: int, batch: int, *,
    tf32: bool,
) -> None:  # fmt: skip
    """Driver.gemm by a handle of cuBLAS, on the stream that is current."""
    cublas = _library()
    double = c.dtype == float64
    one, two = (_number(value, float64 if double else float32).ctypes.data for value in (alpha, beta))
    compute = DOUBLE if double else TF32 if tf32 and a.dtype == float32 else DEFAULT
    of_a, of_b, of_c = (
        (array.data.ptr, TYPES[array.dtype], distance) for array, distance in ((a, lda), (b, ldb), (c, ldc))
    )
    settings = (handle, int(transpose_a), int(transpose_b), m, n, k)
    cublas.setMathMode(handle, SUMS_IN_SINGLE)  # CuPy's own products set theirs, and then what was before
    if batch == 1:
        cublas.gemmEx(*settings, one, *of_a, *of_b, two, *of_c, compute, cublas.CUBLAS_GEMM_DEFAULT)
    else:
        cublas.gemmStridedBatchedEx(
            *settings, one, *of_a, stride_a, *of_b, stride_b, two, *of_c, stride_c, batch, compute,
            cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
