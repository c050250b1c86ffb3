"""Activations by the names that published config.json files give them."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,
    "gelu": ops.gelu,
    "gelu_new": ops.gelu_tanh,  # transformers' name of the tanh approximation, and torch's
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "gelu_tanh": ops.gelu_tanh,
    "quick_gelu": ops.quick_gelu,
    "silu": ops.silu,
    "swish": ops.silu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a config calls `name`. Raises ZooError for one that the zoo has not."""
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=1)
        raise ZooError(
            f"unknown activation {name!r}",
            f"known: {', '.join(ACTIVATIONS)}",
            f"Did you mean {near[0]!r}?" if near else "",
        )
    return ACTIVATIONS[name]
