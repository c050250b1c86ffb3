"""Settings of convolution and pooling, as users write them and as the ops take them: one entry per spatial axis."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.core.errors import ShapeError

Pad = int | Sequence[int] | Sequence[tuple[int, int]]


def each_axis(v: int | Sequence[int], rank: int, what: str) -> tuple[int, ...]:
    each = (v,) * rank if isinstance(v, int) else tuple(v)
    if len(each) != rank:
        raise ShapeError(
            f"{what} is {v} for {rank} spatial axes", "Give one number, or one for each.", what="wrong settings"
        )
    return each


def pairs(padding: Pad, rank: int) -> tuple[tuple[int, int], ...]:
    """Padding as (before, after) for each spatial axis: from one number, one for each axis, or the pairs themselves."""
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    each = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
    if len(each) != rank:
        raise ShapeError(f"padding is {padding} for {rank} spatial axes", what="wrong settings")
    return each
