"""Basic indexing, `x[key]`, worked out as a slice, a flip and a reshape."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple


class Part(NamedTuple):
    """What a key takes: start, stop, step for every axis (step > 0), the axes to be turned round after that, and the
    shape of the result."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]
    flipped: tuple[int, ...]
    shape: tuple[int, ...]


def part(key: Any, of: tuple[int, ...]) -> Part:
    """The part of a tensor of shape `of` that `key` takes: integers, slices, None, Ellipsis, or a tuple of them.

    Raises IndexError for an integer out of range, or more indices than axes.
    """
    start, stop, step, flipped, shape, axis = [], [], [], [], [], 0
    for k in _complete(key, len(of)):
        if k is None:
            shape.append(1)
            continue
        n = of[axis]
        if isinstance(k, slice):
            b, e, s = k.indices(n)
            count = len(range(b, e, s))
            if s < 0:  # the same values in rising order, then turned round
                flipped.append(axis)
                b, s = b + (count - 1) * s, -s
            b = b if count else 0
            start.append(b)
            stop.append(b + (count - 1) * s + 1 if count else b)
            step.append(s)
            shape.append(count)
        else:
            i = operator.index(k)
            if not -n <= i < n:
                raise IndexError(f"index {i} is out of range for axis {axis} of size {n}")
            start.append(i % n)
            stop.append(i % n + 1)
            step.append(1)
        axis += 1
    return Part(tuple(start), tuple(stop), tuple(step), tuple(flipped), tuple(shape))


def _complete(key: Any, ndim: int) -> list[Any]:
    """The key as a list with one entry for every axis, and None for every new one."""
    keys = list(key) if isinstance(key, tuple) else [key]
    given, at = 0, None
    for i, k in enumerate(keys):  # no generators here: every token that a model writes passes dozens of times
        if k is Ellipsis:
            if at is not None:
                raise IndexError("an index holds ... once at most")
            at = i
        elif k is not None:
            given += 1
    if at is not None:
        keys[at : at + 1] = [slice(None)] * (ndim - given)
        given = ndim
    if given > ndim:
        raise IndexError(f"{len(keys)} indices for a tensor of {ndim} axes")
    return keys + [slice(None)] * (ndim - given)
