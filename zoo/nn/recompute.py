"""Gradient checkpointing (Chen et al. 2016): what a layer works out on its way forward is not kept for the gradient;
it is worked out again when the gradient comes by. A stack of layers then keeps one activation for each, and the insides
of one, for one more forward pass: about a third more time.

    for layer in self.layers:
        x = recomputed(layer, x, rope)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from zoo.core.autodiff import Autodiff, Var, pull
from zoo.core.random import Generator
from zoo.core.tensor import Tensor


def recomputed(layer: Any, *args: Any) -> Tensor:
    """layer(*args) of a Module: one tensor. On an Autodiff device its gradients flow to the tensors among `args` and to
    the layer's parameters; what else it reads must be constants. What it draws (dropout) it draws again; a layer that
    changes itself (running statistics) would change twice.
    """
    state = layer.state().values()
    device = next((t.device for t in (*args, *state) if isinstance(t, Tensor) and isinstance(t.device, Autodiff)), None)
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and _recorded(a, device)]
    learned = [t.handle for t in state if _recorded(t, device)]
    if device is None or not (places or learned):
        return layer(*args)
    rng = layer.rng
    start = 0 if rng is None else rng.offset
    with device.paused():
        value = device.value(layer(*args).handle)
    given = [None if i in places else a for i, a in enumerate(args)]

    def gradient(g: Any, *values: Any) -> tuple[Any, ...]:
        fresh = [device.variable(v) for v in values]
        again = list(given)
        for i, handle in zip(places, fresh, strict=True):
            again[i] = Tensor(handle, device)
        with _from(rng, start):
            y = layer(*again)
        found = pull(device.inner, [(y.handle, g)])
        return tuple(found.get(v.node) for v in (*fresh, *learned))

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
