"""Index kernels. An index out of range is an IndexError here and a wrong read on a GPU, so it is checked."""

from __future__ import annotations

from typing import Any

from zoo.core.dtype import HALVES, float32, int32
from zoo.core.errors import ShapeError


def check_range(indices: Any, n: int) -> None:
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= n):
        raise ShapeError(
            f"indices run from {int(indices.min())} to {int(indices.max())}, the axis holds 0 to {n - 1}",
            "Indices count from 0; negative ones are not turned round.",
        )


def take(b: Any, x: Any, indices: Any) -> Any:
    check_range(indices, x.shape[0])
    return x[indices]


def gather(b: Any, x: Any, indices: Any, *, axis: int) -> Any:
    check_range(indices, x.shape[axis])
    return b.xp.take_along_axis(x, indices.astype("int64"), axis=axis)


def scatter_add(b: Any, x: Any, indices: Any, updates: Any) -> Any:
    check_range(indices, x.shape[0])
    wide = float32 if x.dtype in HALVES else x.dtype
    y = x.astype(wide, copy=True)
    b.add_at(y, indices, updates.astype(wide, copy=False))
    return y.astype(x.dtype, copy=False)


def update_slice(b: Any, x: Any, update: Any, *, start: Any, donate: bool) -> Any:
    y = x if donate else x.copy()
    y[tuple([slice(s, s + n) for s, n in zip(start, update.shape, strict=True)])] = update
    return y


def update_rows(b: Any, x: Any, update: Any, positions: Any, *, donate: bool) -> Any:
    if b.xp.__name__ != "numpy":
        return NotImplemented  # positions would have to come from the device first
    y, L = x if donate else x.copy(), update.shape[1]
    for row, new, at in zip(y, update, positions.tolist(), strict=True):
        first, last = max(at, 0), min(at + L, len(row))
        if first < last:
            row[first:last] = new[first - at : last - at]
    return y


def topk(b: Any, x: Any, *, k: int) -> Any:
    """By a stable sort of the negated values, so that of equal values the first comes first, and NaN last."""
    wide = x.astype(float32) if x.dtype in HALVES else x
    keys = wide if wide.dtype.kind == "f" else wide.astype("int64")
    order = b.xp.argsort(-keys, axis=-1, kind="stable")[..., :k]
    return b.xp.take_along_axis(x, order, axis=-1), order.astype(int32)


KERNELS = {
    "take": take, "gather": gather, "scatter_add": scatter_add, "update_slice": update_slice,
    "update_rows": update_rows, "topk": topk,
}  # fmt: skip
