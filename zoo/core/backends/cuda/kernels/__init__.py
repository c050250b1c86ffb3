"""Ops on CUDA arrays by own kernels, a file for each one of cu/.
 Each kernel takes the backend first, and declines with NotImplemented what it does not do (other dtypes, odd settings):
the array code takes over. `infer` has checked the shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.core.backends.cuda.kernels import (
    activation,
    attention,
    cache,
    conv,
    elementwise,
    gemm,
    index,
    norm,
    optim,
    quant,
    random,
    reduce,
    rope,
    softmax,
    window,
)

KERNELS: dict[str, Callable[..., Any]] = {
    **elementwise.KERNELS,
    **gemm.KERNELS,
    **quant.KERNELS,
    **conv.KERNELS,
    **activation.KERNELS,
    **index.KERNELS,
    **norm.KERNELS,
    **optim.KERNELS,
    **random.KERNELS,
    **reduce.KERNELS,
    **rope.KERNELS,
    **softmax.KERNELS,
    **window.KERNELS,
    **attention.KERNELS,
    **cache.KERNELS,
}
