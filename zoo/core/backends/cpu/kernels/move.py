"""What moves many values and computes nothing: by all cores, where numpy's copies use one."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import Kernels
from zoo.core.backends.cpu.memory import empty
from zoo.core.stats import count

LARGE = 1 << 20  # bytes from which on a second core helps
RUN = 64  # bytes; shorter runs are quicker by numpy's loops


def _bytes(x: np.ndarray) -> np.ndarray:
    """As integers: numpy's bfloat16 has no buffer protocol."""
    return x.view(f"u{x.itemsize}")


def _contiguous(x: Any) -> bool:
    """Along the last axis, in runs that pay."""
    return x.shape[-1] * x.itemsize >= RUN and x.strides[-1] == x.itemsize and x.itemsize <= 8


def concat(b: Any, *tensors: Any, axis: int) -> Any:
    if not tensors[0].ndim or sum(t.nbytes for t in tensors) < LARGE or not all(map(_contiguous, tensors)):
        return NotImplemented
    shape = list(tensors[0].shape)
    axis %= len(shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    if len(shape) > 8:
        return NotImplemented
    out, at = empty(tuple(shape), tensors[0].dtype), 0
    for t in tensors:
        place = out[(slice(None),) * axis + (slice(at, at := at + t.shape[axis]),)]
        b.native.move(_bytes(t), _bytes(place))
    count("cpu.concat")
    return out


def upsample(b: Any, x: Any, *, scale: Any) -> Any:
    if x.nbytes < LARGE or not _contiguous(x) or len(scale) > 3:
        return NotImplemented
    apart, repeated = [x.shape[0]], [x.shape[0]]
    for n, s in zip(x.shape[1:-1], scale, strict=True):
        apart, repeated = [*apart, n, 1], [*repeated, n, s]
    out = empty((x.shape[0], *(n * s for n, s in zip(x.shape[1:-1], scale, strict=True)), x.shape[-1]), x.dtype)
    source = np.broadcast_to(_bytes(x).reshape(*apart, x.shape[-1]), (*repeated, x.shape[-1]))
    b.native.move(source, _bytes(out).reshape(source.shape))
    count("cpu.upsample")
    return out


def update_rows(b: Any, x: Any, update: Any, positions: Any, *, donate: bool) -> Any:
    if not (donate and x.flags.c_contiguous and update.flags.c_contiguous and x.itemsize <= 8):
        return NotImplemented
    b.native.place(_bytes(x), _bytes(update), np.ascontiguousarray(positions, np.int32))
    return x


KERNELS: Kernels = {"concat": concat, "upsample": upsample, "update_rows": update_rows}
