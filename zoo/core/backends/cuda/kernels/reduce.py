"""Sums, means, maxima and minima along any axes, the places of extremes, running sums (cu/reduce.cu)."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.backends.cuda.kernels.plan import (
    BLOCKS,
    THREADS,
    Kernels,
    divided,
    flat,
    packed,
    real,
    small,
    stored,
    tiles,
    vector,
    whole,
)
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float32, int32
from zoo.core.prims import infer
from zoo.core.stats import count

SUM, MAX, MIN = range(3)
WARP = 1024  # columns up to which a warp reduces a row
LONG = 16384  # columns from which on a row is cut into parts
FEW = 16  # rows up to which one thread goes down each column


def _kernel(b: Any, name: str, x: Any, dtype: Any, op: int, columns: int, lanes: int = 8) -> Any:
    constants = {"T": ctype(x.dtype), "TO": ctype(dtype), "OP": op, "TEAM": 32 if columns <= WARP else THREADS}
    return b.driver.kernel("reduce.cu", name, **constants, LANES=lanes)


def _teams(rows: int, columns: int) -> tuple[int]:
    return (divided(rows, THREADS // 32) if columns <= WARP else rows,)


def _along(b: Any, x: Any, op: int, rows: int, columns: int, dtype: Any, divide: float) -> Any:
    """Each row of a contiguous x (rows, columns) -> (rows,)."""
    parts = 1
    if columns > LONG and rows < BLOCKS:
        parts = divided(columns, max(LONG // 2, divided(columns * rows, 4 * BLOCKS)))
    if parts > 1:
        step = divided(divided(columns, parts), THREADS) * THREADS
        parts = divided(columns, step)
        pieces = b.xp.empty((rows, parts), float32)
        kernel = _kernel(b, "reduce_rows", x, float32, op, step)
        kernel(_teams(rows * parts, step), (THREADS,), x, pieces, *whole(rows, columns, step), *small(parts), *real(1))
        return _along(b, pieces, op, rows, parts, dtype, divide)
    y = b.xp.empty((rows,), dtype)
    kernel = _kernel(b, "reduce_rows", x, dtype, op, columns)
    kernel(_teams(rows, columns), (THREADS,), x, y, *whole(rows, columns, columns), *small(1), *real(divide))
    return y


def reduced(b: Any, x: Any, op: int, outer: int, rows: int, columns: int, dtype: Any, divide: float = 1) -> Any:
    """The rows of a contiguous x (outer, rows, columns) -> (outer, columns), in one run; divided by `divide`."""
    if columns == 1:
        return _along(b, x, op, outer, rows, dtype, divide)
    y = b.xp.empty((outer * columns,), dtype)
    if rows <= FEW:
        kernel = _kernel(b, "reduce_few", x, dtype, op, 0)
        places = outer * divided(columns, vector(x.dtype))
        kernel(*flat(places), x, y, *whole(outer), *small(rows), *whole(columns), *real(divide))
        return y
    t = tiles(outer, rows, columns, x.dtype)
    last = t.parts == 1
    to = y if last else b.xp.empty((outer * t.parts * columns,), float32)
    kernel = _kernel(b, "reduce_columns", x, dtype if last else float32, op, 0, **{"lanes": t.constants["LANES"]})
    kernel(t.grid, (THREADS,), x, to, *whole(rows), *small(columns, t.step, t.parts), *real(divide if last else 1))
    return y if last else reduced(b, to, op, outer, t.parts, columns, dtype, divide)


def _runs(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[int, bool]]:
    """Sizes of neighbouring axes that are all reduced, or all kept."""
    runs: list[tuple[int, bool]] = []
    for i, n in enumerate(shape):
        if runs and runs[-1][1] == (i in axes):
            runs[-1] = (runs[-1][0] * n, runs[-1][1])
        elif n != 1:
            runs.append((n, i in axes))
    return runs


def _reduction(name: str, op: int, mean: bool = False) -> Any:
    def kernel(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
        if not stored(x):
            return NotImplemented
        axes = infer.axes_tuple(axis, len(x.shape))
        runs = _runs(x.shape, axes)
        if not any(gone for _, gone in runs):
            return NotImplemented
        (y,) = packed(b, x)
        while any(gone for _, gone in runs):  # the last reduced run first: what is left is smaller
            at = max(i for i, (_, gone) in enumerate(runs) if gone)
            before, (rows, _), after = runs[:at], runs[at], runs[at + 1 :]
            last = not any(gone for _, gone in before)
            divide = math.prod(x.shape[a] for a in axes) if mean and last else 1
            sizes = math.prod(n for n, _ in before), rows, math.prod(n for n, _ in after)
            y = reduced(b, y, op, *sizes, x.dtype if last else float32, divide)
            runs = before + after
        count(f"cuda.{name}")
        return y.reshape(infer.reduced(x.shape, axes, keepdims))

    return kernel


def _place(name: str, sign: int) -> Any:
    def kernel(b: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        if not stored(x):
            return NotImplemented
        axis %= len(x.shape)
        (rows_last,) = packed(b, b.xp.moveaxis(x, axis, -1))
        columns = x.shape[axis]
        y = b.xp.empty(infer.reduced(x.shape, (axis,), keepdims), int32)
        run = _kernel(b, "arg_rows", x, x.dtype, SUM, columns)
        run(_teams(y.size, columns), (THREADS,), rows_last, y, *whole(y.size), *small(columns), *real(sign))
        count(f"cuda.{name}")
        return y

    return kernel


def cumsum(b: Any, x: Any, *, axis: int) -> Any:
    if not stored(x):
        return NotImplemented
    moved = b.xp.moveaxis(x, axis, -1)
    (rows_last,) = packed(b, moved)
    y, columns = b.xp.empty(moved.shape, x.dtype), moved.shape[-1]
    kernel = _kernel(b, "cumsum_rows", x, x.dtype, SUM, 0)
    kernel((x.size // columns,), (THREADS,), rows_last, y, *small(columns))
    count("cuda.cumsum")
    return b.xp.moveaxis(y, -1, axis)


KERNELS: Kernels = {
    "sum": _reduction("sum", SUM), "mean": _reduction("mean", SUM, mean=True), "max": _reduction("max", MAX),
    "min": _reduction("min", MIN), "argmax": _place("argmax", 1), "argmin": _place("argmin", -1), "cumsum": cumsum,
}  # fmt: skip
