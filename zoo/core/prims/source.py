"""Ops that make values out of attributes, and have no gradient. Random numbers have one argument, left out as a rule:
what is added to their offset, where that is to change from replay to replay of a captured step."""

from __future__ import annotations

from typing import Any

from zoo.core.dtype import float32, int32
from zoo.core.errors import ShapeError
from zoo.core.prim import NO_GRADIENT, Kind, Meta, Prim
from zoo.core.prims import infer


def _made(*, shape: tuple[int, ...], dtype: object = float32, **attrs: object) -> Meta:
    if any(n < 0 for n in shape):
        raise ShapeError(f"shape {tuple(shape)} has a negative size", "Sizes are 0 or more.")
    return Meta(tuple(shape), dtype)  # type: ignore[arg-type]


def _drawn(start: Any = None, **attrs: Any) -> Meta:
    infer.need_start(start)
    return _made(**attrs)


def _full(*, shape: tuple[int, ...], value: float, dtype: Any) -> Meta:
    infer.representable(value, dtype)
    return _made(shape=shape, dtype=dtype)


def _iota(*, shape: tuple[int, ...], axis: int, dtype: Any) -> Meta:
    if shape:
        infer.axis_index(axis, len(shape))
    return _made(shape=shape, dtype=dtype)


SOURCE = [
    Prim("full", Kind.SOURCE, _full, NO_GRADIENT),
    # iota: 0, 1, 2, ... along `axis`, repeated along the others
    Prim("iota", Kind.SOURCE, _iota, NO_GRADIENT, attrs={"axis": 0, "dtype": int32}),
    # counter-based random numbers (zoo/core/random.py): a function of seed, position, and offset (+ start, an int64)
    Prim("uniform", Kind.SOURCE, _drawn, NO_GRADIENT),
    Prim("normal", Kind.SOURCE, _drawn, NO_GRADIENT),
]
