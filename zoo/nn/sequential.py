"""Sequential: one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.core.tensor import Tensor
from zoo.nn.module import Module


class Sequential(Module):
    """Applies modules and plain functions in order. Each counts in the numbering of the paths ("0.weight", "2.weight"),
    as in torch, where activations are modules."""

    def __init__(self, *layers: Callable[[Any], Any]):
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)
        self.length = len(layers)

    def __call__(self, x: Tensor) -> Tensor:
        for i in range(self.length):
            x = getattr(self, str(i))(x)
        return x

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return getattr(self, str(range(self.length)[i]))
