"""Autodiff(device): a device that records what its values were made from, and is a device itself.

The record belongs to the values (a Var holds its Node, a Node its parents): dropping the loss frees it, there is no
global tape. Gradient rules are written in ops of the inner device, so Autodiff(Autodiff(d)) gives second derivatives,
and whatever the inner device does fast is fast backward too.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.dtype import compute_dtype, is_float
from zoo.core.errors import NotDifferentiable, ShapeError, ZooError
from zoo.core.prim import NO_GRADIENT, Kind, Meta, Ops, Prim
from zoo.core.prims.view import sum_to
from zoo.core.tensor import Tensor, meet

_ticks = itertools.count()


class Node:
    """One recorded op: how to send a cotangent of its result on to what it was made from. A variable has no `prim`."""

    __slots__ = ("args", "attrs", "parents", "prim", "spent", "tick", "y")

    def __init__(self, prim: Prim | None, args: tuple[Any, ...], attrs: Any, parents: tuple[Any, ...], y: Any):
        self.tick = next(_ticks)
        self.prim, self.args, self.attrs, self.parents, self.y = prim, args, attrs, parents, y
        self.spent = False


class Var:
    """A value of an Autodiff device that depends on a variable: the inner value, and the node it came out of."""

    __slots__ = ("__weakref__", "index", "node", "owner", "value")

    def __init__(self, value: Any, node: Node, owner: Autodiff, index: int | None = None):
        self.value, self.node, self.owner, self.index = value, node, owner, index

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype


def _kept(prim: Prim, args: list[Any], attrs: Any, y: Any) -> tuple[tuple[Any, ...], Any]:
    """What the gradient rule will read: values where it says so, else shape and dtype alone."""

    def meta(v: Any) -> Any:
        return Meta(tuple(v.shape), v.dtype) if hasattr(v, "shape") else v

    if prim.vjp is None:
        return tuple(args), meta(y) if type(y) is not tuple else tuple(meta(v) for v in y)
    keep = prim.keep if isinstance(prim.keep, str) else prim.keep(attrs)
    saved = tuple(args) if "x" in keep else tuple(a if str(i) in keep else meta(a) for i, a in enumerate(args))
    return saved, y if "y" in keep else None if type(y) is tuple else meta(y)


class Autodiff:
    """The device `inner`, with gradients. One object per inner device."""

    def __new__(cls, inner: Any) -> Autodiff:
        return _autodiff(device_of(inner))

    inner: Any
    name: str
    ops: Ops
    recording: bool
    change: Callable[[Prim, Any], Any] | None

    def __repr__(self) -> str:
        return f"Autodiff({self.inner!r})"

    # backend protocol

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        if self.change is not None:
            args = self.change(prim, args)
        values: list[Any] = []
        parents: list[tuple[Node, int | None] | None] = []
        tracked = False
        for a in args:
            if type(a) is Var and a.owner is self:
                values.append(a.value)
                parents.append((a.node, a.index))
                tracked = True
            else:
                values.append(a)
                parents.append(None)
        if attrs.get("donate"):  # that memory may be kept for a gradient
            attrs = {**attrs, "donate": False}
        out = self.inner.bind(prim, values, attrs)
        if not tracked or not self.recording or prim.vjp is NO_GRADIENT:
            return out
        if prim.vjp is None and prim.lower is None:
            raise NotDifferentiable(f"no gradient is known for {prim.name}", "it has neither a rule nor a body")
        saved, y = _kept(prim, values, attrs, out)
        node = Node(prim, saved, attrs, tuple(parents), y)
        if type(out) is tuple:
            return tuple(Var(v, node, self, i) if is_float(v.dtype) else v for i, v in enumerate(out))
        return Var(out, node, self) if is_float(out.dtype) else out

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Results are plain values meanwhile: nothing is recorded, and nothing kept."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    @contextlib.contextmanager
    def changing(self, change: Callable[[Prim, Any], Any] | None) -> Iterator[None]:
        """Every op takes change(prim, args) for its arguments meanwhile (zoo/train/precision.py). None: as they are."""
        before, self.change = self.change, change
        try:
            yield
        finally:
            self.change = before

    def opaque(
        self, name: str, value: Any, inputs: Sequence[Var], learned: Sequence[Var], gradient: Callable[..., Any]
    ) -> Var:
        """`value` as the result of an op of the caller's own, made from `inputs`, whose values are kept, and `learned`,
        whose values are not. gradient(g, *values of the inputs) -> for each of both a cotangent, a list of those that
        are added in turn, or None."""
        rule = lambda o, g, *saved: gradient(g, *saved[: len(inputs)])  # noqa: E731 - the form of Prim.vjp
        saved = (*(v.value for v in inputs), *(Meta(v.shape, v.dtype) for v in learned))
        parents = tuple((v.node, v.index) for v in (*inputs, *learned))
        prim = Prim(name, Kind.COMPOSITE, infer=lambda *_: Meta(tuple(value.shape), value.dtype), vjp=rule)
        return Var(value, Node(prim, saved, {}, parents, None), self)

    def from_host(self, array: np.ndarray) -> Any:
        return self.inner.from_host(array)

    def to_host(self, handle: Any) -> np.ndarray:
        return self.inner.to_host(self.value(handle))

    def activations(self, weights: np.dtype) -> np.dtype:
        """Gradients of half precision would vanish: what may be narrow in training, zoo/train/precision.py says."""
        return compute_dtype(weights)

    def sync(self) -> None:
        self.inner.sync()

    # variables and gradients

    def variable(self, handle: Any) -> Any:
        """A fresh variable with this inner value; integers and booleans stay constants."""
        return Var(handle, Node(None, (), {}, (), None), self) if is_float(handle.dtype) else handle

    def value(self, handle: Any) -> Any:
        return handle.value if type(handle) is Var and handle.owner is self else handle

    def backward(self, y: Tensor, gradient: Tensor | None = None) -> Gradients:
        if gradient is None:
            if y.size != 1:
                raise ShapeError(
                    f"the value has shape {y.shape}",
                    "Sum or average it first, or give backward() the gradient that flows in.",
                    what="backward() without an argument starts at a single number",
                )
            seed = self.inner.ops.full(shape=y.shape, value=1, dtype=y.dtype)
        else:
            if gradient.shape != y.shape:
                raise ShapeError(
                    f"it is {gradient.shape}, the value {y.shape}", what="the gradient given has the wrong shape"
                )
            meet(self, gradient.device)
            seed = self.value(gradient.handle)
            if seed.dtype != y.dtype:
                seed = self.inner.ops.cast(seed, dtype=y.dtype)
        if not (type(y.handle) is Var and y.handle.owner is self):
            raise NotDifferentiable(
                "this value does not depend on any variable",
                "nothing it was made from was moved onto the Autodiff device",
                "Make variables first: model.to(zoo.Autodiff(device)), or x.to(zoo.Autodiff(device)).",
            )
        return Gradients(pull(self.inner, [(y.handle, seed)]), self)


@functools.cache
def _autodiff(inner: Any) -> Autodiff:
    made = object.__new__(Autodiff)
    made.inner, made.name = inner, f"autodiff({inner.name})"
    made.ops, made.recording, made.change = Ops(made), True, None
    return made


class Gradients(Mapping[Tensor, Tensor]):
    """Variable -> its gradient, a tensor of the inner device. Holds every variable that the value depends on."""

    def __init__(self, by_node: dict[Node, Any], device: Autodiff):
        self._by_node, self._device = by_node, device

    def __getitem__(self, x: Tensor) -> Tensor:
        node = getattr(x.handle, "node", None)
        if node not in self._by_node:
            raise KeyError("no gradient for this tensor: the value does not depend on it, or it is not a variable")
        return Tensor(self._by_node[node], self._device.inner)

    def __contains__(self, x: object) -> bool:
        return isinstance(x, Tensor) and getattr(x.handle, "node", None) in self._by_node

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError("gradients are looked up by the variable: grads[x]")

    def __len__(self) -> int:
        return len(self._by_node)


def pull(inner: Any, seeds: list[tuple[Var, Any]], apart: Collection[Node] = ()) -> dict[Node, Any]:
    """Walks the record backwards from the values and cotangents given. Nodes are taken by falling tick: whoever used
    a value has a higher tick than whoever made it, so that a node's cotangent is complete when its turn comes. What a
    node saved is freed as it is passed. Of variables in `apart`, what each use gives is listed in the order in which it
    would be added: a walk that goes on from there adds up to the same bits."""
    o = inner.ops
    waiting: dict[Node, Any] = {}
    heap: list[tuple[int, Node]] = []
    found: dict[Node, Any] = {}

    def arrive(node: Node, index: int | None, g: Any) -> None:
        if node in apart:
            found.setdefault(node, []).append(g)
            return
        if node not in waiting:
            heapq.heappush(heap, (-node.tick, node))
            waiting[node] = None if index is None else {}
        if index is None:
            waiting[node] = g if waiting[node] is None else o.add(waiting[node], g)
        else:
            parts = waiting[node]
            parts[index] = o.add(parts[index], g) if index in parts else g

    for y, seed in seeds:
        arrive(y.node, y.index, seed)
    while heap:
        node = heapq.heappop(heap)[1]
        g = waiting.pop(node)
        if node.prim is None:
            found[node] = g
            continue
        if node.spent:
            raise ZooError(
                "backward() ran twice over the same values", "the first run freed what they were made from",
                "Compute the loss again, or add the losses and run backward() once.",
            )  # fmt: skip
        if type(g) is dict:  # several results; None stands for one that nothing used
            g = tuple(g.get(i) for i in range(1 + max(g)))
        for parent, argument, cotangent in zip(node.parents, node.args, _cotangents(inner, node, g), strict=True):
            if parent is None or cotangent is None:
                continue
            for part in cotangent if type(cotangent) is list else (cotangent,):
                c = part() if callable(part) else part
                if node.prim.kind is Kind.ELEMENTWISE:
                    c = sum_to(o, c, tuple(argument.shape))
                if c.dtype != argument.dtype:
                    c = o.cast(c, dtype=argument.dtype)
                arrive(parent[0], parent[1], c)
        node.spent, node.args, node.y = True, (), None
    return found


def _cotangents(inner: Any, node: Node, g: Any) -> tuple[Any, ...]:
    prim = node.prim
    assert prim is not None
    if callable(prim.vjp):
        out = prim.vjp(inner.ops, g, *node.args, node.y, **node.attrs)
        if out is not NotImplemented:
            return out if type(out) is tuple else (out,)
    return _through_body(inner, node, g)


def _through_body(inner: Any, node: Node, g: Any) -> tuple[Any, ...]:
    """The gradient of a composite without a rule: its body is run again, recorded, and walked back."""
    assert node.prim is not None and node.prim.lower is not None
    nested = _autodiff(inner)
    args = [a if parent is None else nested.variable(a) for a, parent in zip(node.args, node.parents, strict=True)]
    with nested.changing(None):  # a body says itself what is worked out in which dtype
        y = node.prim.lower(nested.ops, *args, **node.attrs)
    results, cotangents = (y, g) if type(y) is tuple else ((y,), (g,))
    seeds = [
        (v, c)
        for v, c in zip(results, cotangents, strict=False)
        if type(v) is Var and v.owner is nested and c is not None
    ]
    found = pull(inner, seeds)
    return tuple(
        None if p is None or type(a) is not Var else found.get(a.node) for a, p in zip(args, node.parents, strict=True)
    )
