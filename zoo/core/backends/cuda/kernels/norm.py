"""Normalisations and their gradients: by statistics of the row (cu/norm.cu) or of columns (cu/group_norm.cu)."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.backends.cuda.kernels.activation import CODES
from zoo.core.backends.cuda.kernels.plan import (
    THREADS,
    Kernels,
    Tiles,
    alike,
    divided,
    packed,
    real,
    rows_of,
    small,
    stored,
    team,
    tiles,
    whole,
)
from zoo.core.backends.cuda.kernels.reduce import reduced
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float32
from zoo.core.stats import count


def _of_one_dtype(weight: Any, bias: Any) -> bool:
    return stored(weight, bias) and (weight is None or bias is None or weight.dtype == bias.dtype)


def _ctype(*arrays: Any) -> str:
    """Of the first that is there."""
    return next((ctype(a.dtype) for a in arrays if a is not None), "float")


def _rows(b: Any, name: str, x: Any, weight: Any, *args: Any, eps: float, bias: Any = None) -> None:
    rows, columns = rows_of(x)
    t = team(rows, columns, x.dtype)
    kernel = b.driver.kernel("norm.cu", name, T=ctype(x.dtype), W=_ctype(weight, bias), **t.constants)
    kernel(t.grid, t.block, *args, *whole(rows), *small(columns), *real(eps))
    count(f"cuda.{name}")


def rms_norm(b: Any, x: Any, weight: Any, *, eps: float) -> Any:
    if not stored(x, weight):
        return NotImplemented
    y = b.xp.empty(x.shape, x.dtype)
    _rows(b, "rms_norm", x, weight, *packed(b, x, weight), y, eps=eps)
    return y


def layer_norm(b: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    if not stored(x) or not _of_one_dtype(weight, bias):
        return NotImplemented
    y = b.xp.empty(x.shape, x.dtype)
    _rows(b, "layer_norm", x, weight, *packed(b, x, weight, bias), y, eps=eps, bias=bias)
    return y


def _row_norm_grad(b: Any, name: str, x: Any, weight: Any, g: Any, eps: float) -> tuple[Any, Any, Any]:
    """Gradients in x, weight and bias, those of weight and bias in float32."""
    rows, columns = rows_of(x)
    x, weight, g = packed(b, x, weight, g)
    dx, statistics = b.xp.empty(x.shape, x.dtype), b.xp.empty((rows, 2), float32)
    _rows(b, name, x, weight, x, weight, g, dx, statistics, eps=eps)
    t = tiles(1, rows, columns, x.dtype)
    sums = b.xp.empty((t.parts, 2, columns), float32)
    kernel = _columns_kernel(b, "row_norm_weight_grad", x, weight, t)
    kernel(t.grid, (THREADS,), x, g, statistics, sums, *_sizes(rows, columns, t))
    both = reduced(b, sums, 0, 1, t.parts, 2 * columns, float32).reshape(2, columns) if t.parts > 1 else sums[0]
    return dx, both[0], both[1]


def rms_norm_grad(b: Any, x: Any, weight: Any, g: Any, *, eps: float) -> Any:
    if not alike(x, g) or not stored(weight):
        return NotImplemented
    dx, d_weight, _ = _row_norm_grad(b, "rms_norm_grad", x, weight, g, eps)
    return dx, b.ops.cast(d_weight, dtype=weight.dtype)


# by statistics of columns


def _columns_kernel(b: Any, name: str, x: Any, weight: Any, t: Tiles, bias: Any = None, activation: Any = None) -> Any:
    constants = {"T": ctype(x.dtype), "W": _ctype(weight, bias), "ACTIVATION": CODES[activation], **t.constants}
    return b.driver.kernel("group_norm.cu", name, **constants)


def _sizes(rows: int, columns: int, t: Tiles) -> tuple[Any, ...]:
    return (*whole(rows), *small(columns, t.step, t.parts))


def _statistics(b: Any, x: Any, weight: Any, g: Any, samples: int, groups: int, eps: float) -> tuple[Any, ...]:
    """-> layout, moments, factors of the columns, means and variances of the groups (cu/group_norm.cu)."""
    xp, columns = b.xp, x.shape[-1]
    rows, grad = x.size // columns // samples, g is not None
    t, lines, name = tiles(samples, rows, columns, x.dtype), 4 if grad else 2, "_grad" if grad else ""
    moments = xp.empty((samples, t.parts, lines, columns), float32)
    factors = xp.empty((samples, lines, columns), float32)
    means, variances = xp.empty((samples * groups,), float32), xp.empty((samples * groups,), float32)
    inputs = (x, g) if grad else (x,)
    _columns_kernel(b, f"moments{name}", x, weight, t)(t.grid, (THREADS,), *inputs, moments, *_sizes(rows, columns, t))
    kernel = _columns_kernel(b, f"statistics{name}", x, weight, t)
    kernel((samples * groups,), (128,), moments, weight, factors, means, variances, *small(groups),
           *_sizes(rows, columns, t), *real(eps))  # fmt: skip
    return t, moments, factors, means, variances


def _normalised(b: Any, x: Any, weight: Any, bias: Any, samples: int, groups: int, eps: float, activation: Any) -> Any:
    """-> y, means and variances of the groups."""
    x, weight, bias = packed(b, x, weight, bias)
    t, _, factors, means, variances = _statistics(b, x, weight, None, samples, groups, eps)
    y, columns = b.xp.empty(x.shape, x.dtype), x.shape[-1]
    kernel = _columns_kernel(b, "normalise", x, bias, t, weight, activation)
    kernel(t.grid, (THREADS,), x, factors, bias, y, *_sizes(x.size // columns // samples, columns, t))
    return y, means, variances


def group_norm(b: Any, x: Any, weight: Any, bias: Any, *, groups: int, eps: float, activation: str | None) -> Any:
    if not stored(x, weight, bias):
        return NotImplemented
    count("cuda.group_norm")
    return _normalised(b, x, weight, bias, x.shape[0], groups, eps, activation)[0]


def batch_norm_train(b: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    """Group norm of one sample whose groups are the channels."""
    if not stored(x, weight, bias):
        return NotImplemented
    count("cuda.batch_norm_train")
    return _normalised(b, x, weight, bias, 1, x.shape[-1], eps, None)


def batch_norm(b: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    if not stored(x) or not alike(mean, var, weight, bias):
        return NotImplemented
    rows, columns = rows_of(x)
    y, t = b.xp.empty(x.shape, x.dtype), tiles(1, rows, columns, x.dtype)
    kernel = _columns_kernel(b, "batch_norm", x, mean, t)
    kernel(t.grid, (THREADS,), *packed(b, x, mean, var, weight, bias), y, *_sizes(rows, columns, t), *real(eps))
    count("cuda.batch_norm")
    return y


def group_norm_grad(b: Any, x: Any, weight: Any, g: Any, *, groups: int, eps: float) -> Any:
    if not alike(x, g) or not stored(weight):
        return NotImplemented
    if groups == 1 and len(x.shape) == 2:
        return _row_norm_grad(b, "layer_norm_grad", x, weight, g, eps)
    x, weight, g = packed(b, x, weight, g)
    samples, columns = x.shape[0], x.shape[-1]
    t, moments, factors, means, variances = _statistics(b, x, weight, g, samples, groups, eps)
    dx, d_weight, d_bias = b.xp.empty(x.shape, x.dtype), b.xp.empty(columns, float32), b.xp.empty(columns, float32)
    rows = math.prod(x.shape[1:-1])
    kernel = _columns_kernel(b, "normalise_grad", x, weight, t)
    kernel(t.grid, (THREADS,), x, g, factors, dx, *_sizes(rows, columns, t))
    kernel = _columns_kernel(b, "weight_grad", x, weight, t)
    kernel((divided(columns, 4),), (128,), moments, means, variances, d_weight, d_bias,
           *small(samples, groups, columns, t.parts), *real(eps))  # fmt: skip
    count("cuda.group_norm_grad")
    return dx, d_weight, d_bias


KERNELS: Kernels = {
    "rms_norm": rms_norm, "rms_norm_grad": rms_norm_grad, "layer_norm": layer_norm, "group_norm": group_norm,
    "group_norm_grad": group_norm_grad, "batch_norm": batch_norm, "batch_norm_train": batch_norm_train,
}  # fmt: skip
