"""Along the last axis: softmax, its logarithm, log-sum-exp, cross-entropy, and their gradients (cu/softmax.cu)."""

from __future__ import annotations

from typing import Any

from zoo.core.backends.cuda.kernels.index import Watched
from zoo.core.backends.cuda.kernels.plan import Kernels, alike, packed, rows_of, small, stored, team, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float32, int32
from zoo.core.prims import infer
from zoo.core.stats import count


def _launch(b: Any, name: str, rows: int, columns: int, dtype: Any, *args: Any, index: Any = int32) -> None:
    t = team(rows, columns, dtype)
    kernel = b.driver.kernel("softmax.cu", name, T=ctype(dtype), INDEX=ctype(index), **t.constants)
    kernel(t.grid, t.block, *args, *whole(rows), *small(columns))
    count(f"cuda.{name}")


def _along_rows(name: str) -> Any:
    """softmax(x), or its gradient from (y, g)."""

    def kernel(b: Any, *args: Any, axis: int) -> Any:
        x = args[0]
        if not alike(*args) or axis not in (-1, len(x.shape) - 1):
            return NotImplemented
        y = b.xp.empty(x.shape, x.dtype)
        _launch(b, name, *rows_of(x), x.dtype, *packed(b, *args), y)
        return y

    return kernel


def logsumexp(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    """Over any of the last axes: they are one in memory."""
    rank = len(x.shape)
    axes = infer.axes_tuple(axis, rank)
    if not stored(x) or not axes or axes != tuple(range(axes[0], rank)):
        return NotImplemented
    y = b.xp.empty(infer.reduced(x.shape, axes, keepdims), x.dtype)
    _launch(b, "logsumexp", y.size, x.size // y.size, x.dtype, *packed(b, x), y)
    return y


def cross_entropy(b: Any, logits: Any, targets: Any) -> Any:
    if not stored(logits):
        return NotImplemented
    y = b.xp.empty(targets.shape, float32)
    with Watched(b, targets, logits.shape[-1]) as fault:
        args = (*packed(b, logits, targets), y, fault)
        _launch(b, "cross_entropy", *rows_of(logits), logits.dtype, *args, index=targets.dtype)
    return y


def cross_entropy_grad(b: Any, logits: Any, targets: Any, g: Any) -> Any:
    if not stored(logits, g):
        return NotImplemented
    g = b.ops.cast(g, dtype=float32)
    y = b.xp.empty(logits.shape, logits.dtype)
    with Watched(b, targets, logits.shape[-1]) as fault:
        args = (*packed(b, logits, targets, g), y, fault)
        _launch(b, "cross_entropy_grad", *rows_of(logits), logits.dtype, *args, index=targets.dtype)
    return y


KERNELS: Kernels = {
    **{name: _along_rows(name) for name in ("softmax", "softmax_grad", "log_softmax", "log_softmax_grad")},
    "logsumexp": logsumexp, "cross_entropy": cross_entropy, "cross_entropy_grad": cross_entropy_grad,
}  # fmt: skip
