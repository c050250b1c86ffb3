"""Ops on numpy arrays by the native kernels, a file for each family of csrc/.

Each kernel takes the backend first, and declines with NotImplemented what it does not do (other dtypes, misaligned
memory, odd settings): numpy's kernel takes over. `infer` has checked the shapes.
"""

from __future__ import annotations

from zoo.core.backends.cpu.kernels import attention, conv, gemm, move, pool, qconv, quant, rows
from zoo.core.backends.cpu.kernels.common import Kernels

KERNELS: Kernels = {
    **gemm.KERNELS,
    **conv.KERNELS,
    **attention.KERNELS,
    **rows.KERNELS,
    **move.KERNELS,
    **pool.KERNELS,
    **quant.KERNELS,
    **qconv.KERNELS,
}
ALGORITHMS = {"winograd", "bf16", "capture"}  # may be switched off like ops
