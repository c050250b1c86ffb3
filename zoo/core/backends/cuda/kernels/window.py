"""Pooling over one or two spatial axes (cu/window.cu)."""

from __future__ import annotations

from typing import Any

from zoo.core.backends.cuda.kernels.plan import Kernels, alike, divided, flat, packed, small, vector, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.prims.contract import window_out
from zoo.core.stats import count


def _sizes(x: Any, y: Any, window: Any, stride: Any, padding: Any) -> tuple[Any, ...]:
    """One axis as the second of two."""
    low = tuple(lo for lo, _ in padding)
    height, width = (1, *x.shape[1:-1])[-2:]
    rows, columns = (1, *y.shape[1:-1])[-2:]
    pairs = ((1, *window)[-2:], (1, *stride)[-2:], (0, *low)[-2:])
    return (*whole(x.shape[0]), *small(height, width, x.shape[-1], rows, columns, *(n for pair in pairs for n in pair)))


def _run(b: Any, name: str, arrays: tuple[Any, ...], out: Any, maximum: bool, sizes: tuple[Any, ...]) -> None:
    kernel = b.driver.kernel("window.cu", name, T=ctype(out.dtype), MAXIMUM=int(maximum))
    channels = out.shape[-1]
    kernel(*flat(out.size // channels * divided(channels, vector(out.dtype))), *packed(b, *arrays), out, *sizes)


def _pool(name: str, maximum: bool) -> Any:
    def kernel(b: Any, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
        if not alike(x) or len(window) > 2:
            return NotImplemented
        axes = zip(x.shape[1:-1], window, stride, padding, strict=True)
        y = b.xp.empty((x.shape[0], *(window_out(n, k, s, *p) for n, k, s, p in axes), x.shape[-1]), x.dtype)
        _run(b, "pool", (x,), y, maximum, _sizes(x, y, window, stride, padding))
        count(f"cuda.{name}")
        return y

    return kernel


def window_max_grad(b: Any, x: Any, y: Any, g: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    if not alike(x, y, g) or len(window) > 2:
        return NotImplemented
    dx = b.xp.empty(x.shape, x.dtype)
    _run(b, "pool_max_grad", (x, y, g), dx, True, _sizes(x, y, window, stride, padding))
    count("cuda.window_max_grad")
    return dx


KERNELS: Kernels = {
    "window_max": _pool("window_max", True), "window_sum": _pool("window_sum", False),
    "window_max_grad": window_max_grad,
}  # fmt: skip
