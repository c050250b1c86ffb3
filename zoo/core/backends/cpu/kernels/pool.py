"""Pooling over one or two spatial axes in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import F32, Kernels
from zoo.core.backends.cpu.memory import empty
from zoo.core.backends.cpu.pack import as_2d
from zoo.core.prims.contract import window_out
from zoo.core.stats import count


def _usable(window: Any, *arrays: Any) -> bool:
    return len(window) <= 2 and all(
        isinstance(a, np.ndarray) and a.dtype is F32 and a.size and a.flags.aligned for a in arrays
    )


def _run(b: Any, arrays: tuple[Any, ...], window: Any, stride: Any, padding: Any, maximum: bool) -> None:
    """arrays: x, y and, for the gradient, g and the gradient in x."""
    pad = tuple(lo for lo, _ in padding)
    if len(window) == 1:
        window, stride, pad = (1, *window), (1, *stride), (0, *pad)
    x, y, g, dx = (a if a is None else as_2d(np.ascontiguousarray(a)) for a in (*arrays, None, None)[:4])
    b.native.windows(x, y, g, dx, tuple(window), tuple(stride), pad, maximum)


def _pool(name: str) -> Any:
    def kernel(b: Any, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
        if not _usable(window, x):
            return NotImplemented
        sizes = zip(x.shape[1:-1], window, stride, padding, strict=True)
        y = empty((x.shape[0], *(window_out(n, k, s, *p) for n, k, s, p in sizes), x.shape[-1]), F32)
        _run(b, (x, y), window, stride, padding, name == "window_max")
        count(f"cpu.{name}")
        return y

    return kernel


def window_max_grad(b: Any, x: Any, y: Any, g: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    if not _usable(window, x, y, g):
        return NotImplemented
    dx = empty(x.shape, F32)
    _run(b, (x, y, g, dx), window, stride, padding, True)
    count("cpu.window_max_grad")
    return dx


KERNELS: Kernels = {
    "window_max": _pool("window_max"), "window_sum": _pool("window_sum"), "window_max_grad": window_max_grad,
}  # fmt: skip
