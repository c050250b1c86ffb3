"""What looks up, places and moves values (cu/index.cu, cu/scatter.cu), and the k largest (cu/topk.cu)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.backends.cuda.kernels.plan import STORED, Kernels, flat, packed, rows_of, small, stored, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.backends.numpy.index import check_range
from zoo.core.dtype import int32
from zoo.core.prims.view import padded
from zoo.core.stats import count

SLOTS = 4096  # keys that topk sorts in shared memory
AXES = 4  # that pad walks over, once those without padding have joined their neighbours


class Watched:
    """with Watched(b, indices, n) as fault: the launch of a kernel that sets fault[0] where an index is not within
    0 .. n - 1. Raises ShapeError afterwards if it did. While a graph is captured nothing may be waited for: there the
    kernel's own guard (it reads and writes nothing out of range) is all."""

    def __init__(self, b: Any, indices: Any, n: int):
        self.b, self.indices, self.n = b, indices, n

    def __enter__(self) -> Any:
        fault = getattr(self.b, "index_fault", None)
        if fault is None:
            fault = self.b.index_fault = self.b.xp.zeros(1, int32)
        return fault

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None and not self.b.driver.capturing and int(self.b.index_fault[0]):
            self.b.index_fault.fill(0)  # and stays where it is: graphs write there
            check_range(self.indices, self.n)


def _words(x: Any) -> Any:
    """The values as unsigned integers of their size."""
    return x.view(f"u{x.dtype.itemsize}")


def _wide(x: Any, run: int) -> int:
    """How many values a thread moves, of runs of `run`: 16 bytes, or one."""
    size = x.dtype.itemsize
    return 16 // size if run * size % 16 == 0 else 1


def _kernel(b: Any, name: str, x: Any, wide: int, index: Any = int32) -> Any:
    return b.driver.kernel("index.cu", name, VALUE=f"uint{8 * x.dtype.itemsize}_t", WIDE=wide, INDEX=ctype(index))


def _move(b: Any, name: str, x: Any, run: int, lines: int, *args: Any, index: Any = int32) -> None:
    """x in words; a thread for each 16 bytes of `lines` of `run` values."""
    wide = _wide(x, run)
    _kernel(b, name, x, wide, index)(*flat(lines * (run // wide)), x, *args)
    count(f"cuda.{name}")


def take(b: Any, x: Any, indices: Any) -> Any:
    run = math.prod(x.shape[1:])
    y = b.xp.empty((*indices.shape, *x.shape[1:]), x.dtype)
    if not y.size or not x.size:
        return NotImplemented
    x, indices = packed(b, x, indices)
    with Watched(b, indices, x.shape[0]) as fault:
        sizes = whole(indices.size, x.shape[0], run)
        _move(b, "take", _words(x), run, indices.size, indices, _words(y), fault, *sizes, index=indices.dtype)
    return y


def gather(b: Any, x: Any, indices: Any, *, axis: int) -> Any:
    if not x.size or not indices.size:
        return NotImplemented
    axis %= len(x.shape)
    y = b.xp.empty(indices.shape, x.dtype)
    x, indices = packed(b, x, indices)
    run = math.prod(x.shape[axis + 1 :])
    with Watched(b, indices, x.shape[axis]) as fault:
        sizes = whole(y.size, x.shape[axis], indices.shape[axis], run)
        _move(b, "gather", _words(x), 1, y.size, indices, _words(y), fault, *sizes, index=indices.dtype)
    return y


def scatter_add(b: Any, x: Any, indices: Any, updates: Any) -> Any:
    if x.dtype not in STORED or updates.dtype != x.dtype or not x.size or not indices.size:
        return NotImplemented
    x, updates = packed(b, x, updates)
    places = indices.reshape(-1)
    order = b.xp.argsort(places, kind="stable")
    y, run = x.copy(), math.prod(x.shape[1:])
    kernel = b.driver.kernel("scatter.cu", "scatter_add", T=ctype(x.dtype), INDEX=ctype(indices.dtype))
    with Watched(b, indices, x.shape[0]) as fault:
        sizes = whole(places.size, x.shape[0], run)
        kernel(*flat(places.size * run), x, places[order], order, updates, y, fault, *sizes)
    count("cuda.scatter_add")
    return y


def concat(b: Any, *tensors: Any, axis: int) -> Any:
    shape = list(tensors[0].shape)
    axis %= len(shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    y = b.xp.empty(tuple(shape), tensors[0].dtype)
    after, outer, at = math.prod(shape[axis + 1 :]), math.prod(shape[:axis]), 0
    runs = [t.shape[axis] * after for t in tensors]
    if not y.size:
        return y
    words, all_runs = _words(y), shape[axis] * after
    wide = _wide(y, math.gcd(*runs))  # one width for all, so that each part begins where 16 bytes may be written
    kernel = _kernel(b, "place", y, wide)
    for t, run in zip(tensors, runs, strict=True):
        if run:
            (x,) = packed(b, t)
            kernel(*flat(outer * (run // wide)), _words(x), words, *whole(outer, run, all_runs, at))
        at += run
    count("cuda.concat")
    return y


def upsample(b: Any, x: Any, *, scale: Any) -> Any:
    y = b.xp.empty((x.shape[0], *(n * s for n, s in zip(x.shape[1:-1], scale, strict=True)), x.shape[-1]), x.dtype)
    if not y.size or len(scale) > 2:
        return NotImplemented
    height, width = (1, *x.shape[1:-1])[-2:]
    by_height, by_width = (1, *scale)[-2:]
    (x,) = packed(b, x)
    run, lines = x.shape[-1], y.size // x.shape[-1]
    _move(b, "upsample", _words(x), run, lines, _words(y), *whole(x.shape[0]), *small(height, width), *whole(run),
          *small(by_height, by_width))  # fmt: skip
    return y


def pad(b: Any, x: Any, *, pads: Any, value: Any) -> Any:
    """Neighbouring axes without padding are one; of the others there may be four."""
    shape = tuple(padded(n, *p) for n, p in zip(x.shape, pads, strict=True))
    if not x.size or not math.prod(shape) or all(p == (0, 0, 0) for p in pads):
        return NotImplemented
    axes: list[tuple[int, int, int, int]] = []  # size, size of the result, low, step
    for n, m, (low, _, interior) in zip(x.shape, shape, pads, strict=True):
        plain = n == m and low == 0 and (interior == 0 or n == 1)
        if plain and axes and axes[-1][0] == axes[-1][1] and axes[-1][2:] == (0, 1):
            axes[-1] = (axes[-1][0] * n, axes[-1][1] * m, 0, 1)
        else:
            axes.append((n, m, low, 1 if plain else interior + 1))
    run = axes.pop()[0] if axes[-1][0] == axes[-1][1] and axes[-1][2:] == (0, 1) else 1
    if len(axes) > AXES:
        return NotImplemented
    axes = [(1, 1, 0, 1)] * (AXES - len(axes)) + axes
    y = b.xp.empty(shape, x.dtype)
    (x,) = packed(b, x)
    filled = int(_words(np.asarray(value).astype(x.dtype).reshape(1))[0])
    sizes = whole(filled - (filled >> 63 << 64), run, *(a[k] for k in range(4) for a in axes))
    _move(b, "pad", _words(x), run, y.size // run, _words(y), *sizes)
    return y


def topk(b: Any, x: Any, *, k: int) -> Any:
    if not stored(x) or k > SLOTS:
        return NotImplemented
    shape = (*x.shape[:-1], k)
    values, places = b.xp.empty(shape, x.dtype), b.xp.empty(shape, int32)
    rows, columns = rows_of(x)
    kernel = b.driver.kernel("topk.cu", "topk", T=ctype(x.dtype), SLOTS=SLOTS)
    kernel((rows,), (1024,), *packed(b, x), values, places, *small(columns, k))
    count("cuda.topk")
    return values, places


KERNELS: Kernels = {
    "take": take, "gather": gather, "scatter_add": scatter_add, "concat": concat, "upsample": upsample, "pad": pad,
    "topk": topk,
}  # fmt: skip
