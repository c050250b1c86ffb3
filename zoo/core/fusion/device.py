"""Fusion(device): a device that puts elementwise chains off, and calculates each in one pass over memory.

Elementwise ops, casts, reductions along the last axis and what spreads their results again are recorded (node.py).
When a value is needed, what leads to it is gathered into a region (region.py), and runs as one program: on cpu by the
tile interpreter (program.py, tiles.py), on cuda as a kernel of its own (nvrtc.py); every other op is a barrier: its
arguments are calculated and the inner device does it. Where the inner device has neither, or with ZOO_FUSE=interpret,
the record is worked off op by op: the oracle and the off switch. Errors come at the call, from `infer`, never later.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.dtype import bfloat16, bool_, float16, float32, int8, int32, uint8
from zoo.core.errors import ZooError
from zoo.core.fusion.node import Lazy, Node
from zoo.core.fusion.program import NAMES, OUTPUTS, REDUCTIONS, tree
from zoo.core.fusion.region import ALIASES, Region
from zoo.core.fusion.tiles import SMALL, Tiles
from zoo.core.prim import Kind, Ops, Prim
from zoo.core.prims import TABLE
from zoo.core.prims.infer import axes_tuple
from zoo.core.stats import count

FLOATS: frozenset[np.dtype] = frozenset((float32, bfloat16, float16))
CALCULATED: frozenset[np.dtype] = FLOATS | {bool_}  # dtypes of recorded values
READ: frozenset[np.dtype] = CALCULATED | {int8, uint8, int32}  # and of what a cast may read

MAX_NODES = 64  # in one record: it is a Python object that grows with every op
MAX_HELD = 64 << 20  # bytes that a record may keep from being freed, or eight times the bytes of its result
PROGRAMS = 512  # that are remembered


@functools.cache
def _joins(prim: Prim) -> str:
    """How an op is recorded; "" if it is a barrier."""
    if prim.name == "cast" or (prim.kind is Kind.ELEMENTWISE and tree(prim.name) is not None):
        return "elementwise"
    return {"expand": "expand", "reshape": "reshape", "mean": "reduce"}.get(
        prim.name, "reduce" if prim.name in REDUCTIONS else ""
    )


class Fusion:
    """The device `inner`, with elementwise chains put off and fused. One object per inner device."""

    def __new__(cls, inner: Any) -> Fusion:
        return _fusion(device_of(inner))

    inner: Any
    name: str
    ops: Ops
    executor: Any  # what compiles and runs programs (tiles.py, nvrtc.py), or None
    small: int  # below so many numbers nothing is recorded
    _kernels: Any
    _handles: tuple[type, ...]  # what ops in bodies may be given
    _programs: OrderedDict[Any, Any]
    _lock: threading.Lock

    def __repr__(self) -> str:
        return f"Fusion({self.inner!r})"

    # backend protocol

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        joins = _joins(prim)
        if joins:
            node = getattr(self, "_" + joins)(prim, args, attrs)
            if node is not None:
                return node if type(node) is not Node else self._recorded(node)
        elif prim.lower is not None and prim.name not in self._kernels and not any(self._foreign(a) for a in args):
            return prim.lower(self.ops, *args, **attrs)
        return self.inner.bind(prim, [self.value(a) for a in args], attrs)

    def from_host(self, array: np.ndarray) -> Any:
        return self.inner.from_host(array)

    def to_host(self, handle: Any) -> np.ndarray:
        return self.inner.to_host(self.value(handle))

    def activations(self, weights: np.dtype) -> np.dtype:
        return self.inner.activations(weights)

    def sync(self) -> None:
        """Waits for what has begun; what nobody has asked for yet stays a record."""
        self.inner.sync()

    # values go in as they are, and come out calculated

    def variable(self, handle: Any) -> Any:
        return handle

    def value(self, handle: Any) -> Any:
        """The inner device's value: now is when it is calculated."""
        if type(handle) is not Lazy or handle.owner is not self:
            return handle
        if handle.node.value is None:
            self.force([handle.node])
        return handle.node.value

    # recording

    def _known(self, prim: Prim, args: Any, read: frozenset[np.dtype]) -> tuple[list[Any], bool] | None:
        """The arguments as nodes that are not calculated, arrays and numbers, and whether there are such nodes. None if
        one of them is of another kind or dtype."""
        known: list[Any] = []
        pending = False
        for a in args:
            if type(a) is Lazy and a.owner is self:
                node = a.node
                if node.value is None:
                    known.append(node)
                    pending = True
                else:
                    known.append(node.value)
            elif isinstance(a, float | int):
                known.append(a)
                continue
            elif self.executor is None or self.executor.reads(a):
                known.append(a)
            else:
                return None
            if a.dtype not in read:
                return None
        return known, pending

    def _elementwise(self, prim: Prim, args: Any, attrs: Any) -> Any:
        is_cast = prim.name == "cast"
        if is_cast and args[0].dtype == attrs["dtype"]:
            return args[0]
        found = self._known(prim, args, READ if is_cast else CALCULATED)
        if found is None:
            return None
        known, pending = found
        shape, dtype = _meta(prim, known) or prim.infer(*args, **attrs)
        size = math.prod(shape)
        if dtype not in CALCULATED or not size or len(shape) > 7 or not (pending or size >= self.small):
            return None
        space, row = shape, False
        if pending:
            for n in known:
                if type(n) is Node and n.row and n.shape == shape:
                    space, row = n.space, True
                    break
        return Node(prim, known, attrs, shape, dtype, space, row)

    def _reduce(self, prim: Prim, args: Any, attrs: Any) -> Any:
        """Along the last axis, if there is something to reduce."""
        shape = tuple(args[0].shape)
        found = self._known(prim, args, FLOATS)
        if found is None or axes_tuple(attrs["axis"], len(shape)) != (len(shape) - 1,) or len(shape) > 7:
            return None
        known, pending = found
        if shape[-1] < 2 or not math.prod(shape) or not (pending or math.prod(shape) >= self.small):
            return None
        to, dtype = prim.infer(*args, **attrs)
        return Node(prim, known, attrs, to, dtype, shape, True)

    def _expand(self, prim: Prim, args: Any, attrs: Any) -> Any:
        """Of reduced values, over the rows they came from. Everything else is the inner device's view."""
        x, shape = args[0], tuple(attrs["shape"])
        node = x.node if type(x) is Lazy and x.owner is self else None
        if node is None or node.value is not None or not node.row or node.space != shape:
            return None
        return Node(prim, [node], attrs, shape, node.dtype, shape, False) if node.shape == (*shape[:-1], 1) else None

    def _reshape(self, prim: Prim, args: Any, attrs: Any) -> Any:
        """Of reduced values: with or without the axis that was reduced."""
        x, shape = args[0], tuple(attrs["shape"])
        node = x.node if type(x) is Lazy and x.owner is self else None
        if node is None or node.value is not None or not node.row:
            return None
        if shape not in (node.space[:-1], (*node.space[:-1], 1)) or shape == node.shape:
            return x if shape == node.shape else None
        return Node(prim, [node], attrs, shape, node.dtype, node.space, True)

    def _recorded(self, node: Node) -> Lazy:
        handle = Lazy(node, self)
        for a in node.args:
            if type(a) is Node:
                a.uses += 1
                if a.value is None:
                    node.count += a.count
                    node.held += a.held
            elif not isinstance(a, float | int):
                node.held += math.prod(a.shape) * a.dtype.itemsize
        most = max(MAX_HELD, 8 * math.prod(node.shape) * node.dtype.itemsize)
        if node.count > MAX_NODES or node.held > most:
            node.count, node.held = _measured(node)
            if node.count > MAX_NODES or node.held > most:
                self.force([node])
        return handle

    # calculating

    def force(self, nodes: Iterable[Node]) -> None:
        """Calculates these values; those of one space together."""
        waiting = [n for n in nodes if n.value is None]
        for node in waiting:
            args, value = node.args, node.value
            if value is not None:
                continue
            if self.executor is None:
                self._interpret(node)
            elif node.prim.name in ALIASES:
                self.force(args)
                node.keep(self.inner.bind(node.prim, [args[0].value], node.attrs))
            else:
                while node.value is None:
                    self._fuse(node, [n for n in waiting if n.value is None and n.space == node.space])

    def _fuse(self, root: Node, roots: list[Node]) -> None:
        """One run of the interpreter. It may take several until the root is calculated: what has no place in the region
        comes first, and so does half of a region that is too large."""
        region = Region(root.space)
        region.add(root)
        alone = len(region.ops)
        if not region.cuts:
            for other in roots:
                if other.prim.name not in ALIASES:
                    region.add(other)
        if region.cuts:
            return self.force(region.cuts)
        kept = region.results([root, *roots], OUTPUTS)
        columns = root.space[-1] if root.space else 1
        results = tuple((p, NAMES[n.dtype]) for n, p in kept)
        program = self._program(tuple(region.ops), results, self.executor.whole(columns))
        if program is None:
            if len(roots) > 1 and len(region.ops) > alone:
                return self._fuse(root, [root])
            return self._divide(root)
        outputs = [self.executor.empty(n.shape, n.dtype) for n, _ in kept]
        self.executor.run(program, region.inputs, outputs, region.numbers, root.space)
        count("fusion.runs")
        count("fusion.nodes", len(region.nodes))
        for (node, _), array in zip(kept, outputs, strict=True):
            node.keep(array)

    def _foreign(self, a: Any) -> bool:
        """Whether this is a handle that only the inner device understands: a packed weight."""
        return a is not None and not isinstance(a, self._handles)

    def _divide(self, root: Node) -> None:
        pending = [a for a in root.args if type(a) is Node and a.value is None]
        if pending:
            self.force(pending)
        else:
            self._interpret(root)

    def _program(self, ops: Any, outputs: Any, whole: bool) -> Any:
        key = (ops, outputs, whole)
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
                count("fusion.cache_hits")
                return self._programs[key]
        program = self.executor.compiled(ops, outputs, whole)
        count("fusion.compiled")
        with self._lock:
            self._programs[key] = program
            while len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)
        return program

    def _interpret(self, root: Node) -> None:
        """Op by op on the inner device, without recursion over long chains."""
        stack = [root]
        while stack:
            node = stack[-1]
            args, value = node.args, node.value
            if value is None:
                pending = [a for a in args if type(a) is Node and a.value is None]
                if pending:
                    stack += pending
                    continue
                values = [a.value if type(a) is Node else a for a in args]
                node.keep(self.inner.bind(node.prim, values, node.attrs))
            stack.pop()


def _meta(prim: Prim, known: list[Any]) -> tuple[tuple[int, ...], np.dtype] | None:
    """What `infer` says, in a third of the time, where all tensors are of one shape."""
    shape = dtype = None
    for a in known:
        if not isinstance(a, float | int):
            if shape is None:
                shape, dtype = a.shape, a.dtype
            elif a.shape != shape:
                return None
    if shape is None or dtype is None or prim.name in ("where", "cast"):
        return None
    return shape, bool_ if prim.result == "bool" else dtype


def _measured(root: Node) -> tuple[int, int]:
    """How many nodes are not calculated from here on back, and the bytes of the arrays they hold, each counted once."""
    seen, arrays, stack, held = {root}, set(), [root], 0
    while stack:
        for a in stack.pop().args:
            if type(a) is Node:
                if a.value is None and a not in seen:
                    seen.add(a)
                    stack.append(a)
            elif not isinstance(a, float | int) and id(a) not in arrays:
                arrays.add(id(a))
                held += math.prod(a.shape) * a.dtype.itemsize
    return len(seen), held


@functools.cache
def _fusion(inner: Any) -> Fusion:
    mode = os.environ.get("ZOO_FUSE", "")
    if mode not in ("", "interpret"):
        raise ZooError(f"ZOO_FUSE={mode} cannot be used", "there is only ZOO_FUSE=interpret", "Unset it")
    made = object.__new__(Fusion)
    made.inner, made.name = inner, f"fusion({inner.name})"
    made.ops = Ops(made)
    made.executor = None if mode else _executor(inner)
    made.small = made.executor.small if made.executor else SMALL
    array = getattr(getattr(inner, "xp", None), "ndarray", np.ndarray)
    made._handles = (Lazy, array, np.generic, float, int)
    made._kernels = getattr(inner, "kernels", TABLE)  # of a decorator, every composite is its own affair
    made._programs = OrderedDict()
    made._lock = threading.Lock()
    return made


def _executor(inner: Any) -> Any:
    """What runs programs on this device, or None."""
    if hasattr(getattr(inner, "native", None), "TileProgram"):
        return Tiles(inner.native)
    if hasattr(inner, "driver"):
        from zoo.core.fusion.nvrtc import Nvrtc

        return Nvrtc(inner)
    return None
