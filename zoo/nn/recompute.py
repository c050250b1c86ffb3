"""Gradient checkpointing (Chen et al. 2016): what a layer works out on its way forward is not kept for the gradient;
it is worked out again when the gradient comes by. A stack of layers then keeps one activation for each, and the insides
of one, for one more forward pass: about a third more time.

    run = recomputed if self.recompute else called
    for layer in self.layers:
        x = run(layer, x, rope)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from zoo.core.autodiff import Autodiff, Var, pull
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.nn.module import Slot

Run = Callable[..., Tensor]
"""run(layer, *args): one of the two below."""


def called(layer: Any, *args: Any) -> Tensor:
    """layer(*args), all that it works out being kept."""
    return layer(*args)


def recomputed(layer: Any, *args: Any) -> Tensor:
    """layer(*args) of a Module: one tensor. On an Autodiff device its gradients flow to the tensors among `args` and to
    the layer's parameters; what else it reads must be constants. The second time is as the first: it draws again what
    it drew (dropout), and finds its buffers (running statistics) as they were then; they stay as that time left them.
    """
    state = layer.state().values()
    device = next((t.device for t in (*args, *state) if isinstance(t, Tensor) and isinstance(t.device, Autodiff)), None)
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and _recorded(a, device)]
    learned = [t.handle for t in state if _recorded(t, device)]
    if device is None or not (places or learned):
        return layer(*args)
    rng = layer.rng
    start = 0 if rng is None else rng.offset
    buffers = [(slot, slot.value) for slot in layer.slots().values() if slot.buffer]
    with device.paused():
        value = device.value(layer(*args).handle)
    given = [None if i in places else a for i, a in enumerate(args)]

    def gradient(g: Any, *values: Any) -> tuple[Any, ...]:
        fresh = [device.variable(v) for v in values]
        again = list(given)
        for i, handle in zip(places, fresh, strict=True):
            again[i] = Tensor(handle, device)
        with _from(rng, start), _with(buffers):
            y = layer(*again)
        every = [v.node for v in (*fresh, *learned)]
        found = pull(device.inner, [(y.handle, g)], apart=set(every))
        return tuple(found.get(node) for node in every)

    inputs = [args[i].handle for i in places]
    return Tensor(device.opaque("recomputed", value, inputs, learned, gradient), device)


def _recorded(tensor: Tensor, device: Any) -> bool:
    return type(tensor.handle) is Var and tensor.handle.owner is device


@contextlib.contextmanager
def _from(rng: Generator | None, offset: int) -> Iterator[None]:
    """`rng` draws from `offset` on meanwhile."""
    if rng is None:
        yield
        return
    now, rng.offset = rng.offset, offset
    try:
        yield
    finally:
        rng.offset = now


@contextlib.contextmanager
def _with(buffers: list[tuple[Slot, Tensor]]) -> Iterator[None]:
    """Buffers have these values meanwhile."""
    now = [slot.value for slot, _ in buffers]
    for slot, value in buffers:
        slot.holder[slot.key] = value
    try:
        yield
    finally:
        for (slot, _), value in zip(buffers, now, strict=True):
            slot.holder[slot.key] = value
