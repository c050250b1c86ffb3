"""Keys and values of the tokens seen so far, so that each new token is worked out once."""

from __future__ import annotations

from typing import Any

from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.tensor import Tensor
from zoo.llama.config import LlamaConfig

GROWTH = 256
"""Positions by which a full cache grows at least; it doubles otherwise."""


class LayerCache:
    """Of one layer: keys and values (B, capacity, H_kv, D), of which the first `length` positions are filled."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k, v (B, L, H_kv, D); returns all of them up to now (B, S, H_kv, D), in the dtype that is stored."""
        start, stop = self.length, self.length + k.shape[1]
        if stop > self.keys.shape[1]:
            self._grow(stop)
        at = (0, start, 0, 0)
        self.keys = ops.update_slice(self.keys, k.astype(self.keys.dtype), at, donate=True)
        self.values = ops.update_slice(self.values, v.astype(self.values.dtype), at, donate=True)
        self.length = stop
        return self.keys[:, :stop], self.values[:, :stop]

    def _grow(self, needed: int) -> None:
        capacity = max(needed, 2 * self.keys.shape[1], GROWTH)
        grown = ((0, 0), (0, capacity - self.keys.shape[1]), (0, 0), (0, 0))
        self.keys, self.values = ops.pad(self.keys, grown), ops.pad(self.values, grown)


class Cache:
    """Of all layers. `length` is how many tokens it has seen."""

    def __init__(self, config: LlamaConfig, *, batch: int = 1, capacity: int = 0, dtype: Any = float32, device: Any):
        shape = (batch, capacity, config.num_key_value_heads, config.head_dim)

        def empty() -> Tensor:
            return ops.zeros(shape, dtype=dtype, device=device)  # type: ignore[arg-type]

        self.layers = [LayerCache(empty(), empty()) for _ in range(config.num_hidden_layers)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forgets all tokens behind the first `length`."""
        for layer in self.layers:
            layer.length = min(layer.length, length)
