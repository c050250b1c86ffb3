"""View kernels: numpy views where numpy has them, a copy where memory order must change."""

from __future__ import annotations

from typing import Any

from zoo.core.prims.view import padded


def reshape(b: Any, x: Any, *, shape: Any) -> Any:
    return x.reshape(shape)


def permute_dims(b: Any, x: Any, *, axes: Any) -> Any:
    return x.transpose(axes)


def expand(b: Any, x: Any, *, shape: Any) -> Any:
    return b.xp.broadcast_to(x, shape)


def slice_(b: Any, x: Any, *, start: Any, stop: Any, step: Any) -> Any:
    return x[tuple(map(slice, start, stop, step))]


def pad(b: Any, x: Any, *, pads: Any, value: Any) -> Any:
    """Interior zeros first, then outer pads; negative ones crop what the interior spread."""
    if all(p == (0, 0, 0) for p in pads):
        return x
    y = b.xp.full(tuple(padded(n, *p) for n, p in zip(x.shape, pads, strict=True)), value, dtype=x.dtype)
    into, taken = [], []
    for n, m, (lo, _, interior) in zip(x.shape, y.shape, pads, strict=True):
        step = interior + 1
        first = -(min(lo, 0) // step)  # the first value that lands at 0 or beyond, when the start is cropped
        at = lo + first * step
        count = max(0, min(n - first, -(-(m - at) // step)))
        into.append(slice(at, at + (count - 1) * step + 1 if count else at, step))
        taken.append(slice(first, first + count))
    y[tuple(into)] = x[tuple(taken)]
    return y


def flip(b: Any, x: Any, *, axis: Any) -> Any:
    return b.xp.flip(x, axis=tuple(axis) if isinstance(axis, list) else axis)


def concat(b: Any, *tensors: Any, axis: int) -> Any:
    return b.xp.concatenate(tensors, axis=axis)


KERNELS = {
    "reshape": reshape, "permute_dims": permute_dims, "expand": expand, "slice": slice_, "pad": pad, "flip": flip,
    "concat": concat,
}  # fmt: skip
