"""Keys and values of the tokens seen so far, so that each new token is worked out once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoo.core import ops
from zoo.core.dtype import bfloat16, float16, float32, int8, int32
from zoo.core.dtype import dtype as dtype_of
from zoo.core.tensor import Tensor
from zoo.llama.config import LlamaConfig

GROWTH = 256
"""Positions by which a full cache grows at least; it doubles otherwise."""
DTYPES = {"f32": float32, "f16": float16, "bf16": bfloat16, "int8": int8}


class Rows:
    """Vectors (B, capacity, H_kv, D) of positions, in a floating-point dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any):
        self.stored = ops.zeros(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stored.size * self.stored.dtype.itemsize

    def put(self, x: Tensor, positions: Tensor) -> None:
        """Writes x (B, L, H_kv, D) from positions (B,) on."""
        self.stored = ops.update_rows(self.stored, x.astype(self.stored.dtype), positions, donate=True)

    def first(self, count: int, like: Tensor) -> Tensor:
        """(B, count, H_kv, D), in the dtype that is stored; of whole numbers, in that of `like`."""
        return self.stored[:, :count]

    def grow(self, capacity: int) -> None:
        self.stored = ops.pad(self.stored, ((0, 0), (0, capacity - self.capacity), (0, 0), (0, 0)))


class Int8Rows(Rows):
    """The same in 8 bits: a vector is 127 steps to each side, and a float32 that says how long a step is. Attention
    reads floating point, so that all of it is written out anew for every token: this saves memory and costs time."""

    def __init__(self, shape: tuple[int, ...], device: Any):
        super().__init__(shape, int8, device)
        self.scales = Rows((*shape[:-1], 1), float32, device)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.scales.nbytes

    def put(self, x: Tensor, positions: Tensor) -> None:
        step = ops.max(ops.abs(x.astype(float32)), axis=-1, keepdims=True) / 127.0
        super().put(ops.round(x / ops.where(step > 0, step, 1.0)), positions)
        self.scales.put(step, positions)

    def first(self, count: int, like: Tensor) -> Tensor:
        return (self.stored[:, :count].astype(float32) * self.scales.stored[:, :count]).astype(like.dtype)

    def grow(self, capacity: int) -> None:
        super().grow(capacity)
        self.scales.grow(capacity)


@dataclass
class Place:
    """Where the new tokens of a pass lie, in all layers of a cache alike."""

    positions: Tensor | None = None
    """(B,) int32: that of the first one."""
    lengths: Tensor | None = None
    """(B,) int32: how many tokens there are with them. None: as many as `window`."""
    window: int = 0
    """Positions that attention looks at."""


class LayerCache:
    """Of one layer: keys and values."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any, place: Place):
        def rows() -> Rows:
            return Int8Rows(shape, device) if dtype == int8 else Rows(shape, dtype, device)

        self.keys, self.values, self.place = rows(), rows(), place

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds k, v (B, L, H_kv, D) at the cache's place; returns those there are up to now as they are kept
        (B, S, H_kv, D), and how many of the S count (None: all)."""
        place = self.place
        assert place.positions is not None, "Cache.begin says where"
        self.keys.put(k, place.positions)
        self.values.put(v, place.positions)
        return self.keys.first(place.window, k), self.values.first(place.window, v), place.lengths


class Cache:
    """Of all layers. `tokens` are those whose keys and values it holds, where `generate` put them there."""

    def __init__(self, config: LlamaConfig, *, batch: int = 1, capacity: int = 0, dtype: Any = float32, device: Any):
        """dtype: in which they are kept: float32, float16, bfloat16, or int8; `model.activations` is how they come."""
        shape = (batch, capacity, config.num_key_value_heads or 0, config.head_dim or 0)
        self.place = Place()
        self.layers = [LayerCache(shape, dtype_of(dtype), device, self.place) for _ in range(config.num_hidden_layers)]
        self.batch, self.device = batch, device
        self.tokens: list[int] = []
        self.length = 0
        """Tokens that every layer has seen: where a pass was broken off, some have seen more."""
        self.captured: dict[Any, Any] = {}
        """Passes that write to this memory (step.py)."""
        self.weights: list[Any] = []
        """Of the model that they were captured of."""

    @property
    def capacity(self) -> int:
        return self.layers[0].keys.capacity

    def room(self, new: int) -> None:
        """Grows, where so many more tokens do not fit."""
        stop = self.length + new
        if stop > self.capacity:
            capacity = max(stop, 2 * self.capacity, GROWTH)
            for layer in self.layers:
                layer.keys.grow(capacity)
                layer.values.grow(capacity)
            self.captured.clear()

    def begin(self, new: int) -> None:
        """A pass over so many new tokens begins; `length` grows when it has ended."""
        self.room(new)
        positions = ops.full((self.batch,), self.length, dtype=int32, device=self.device)
        self.at(positions, None, self.length + new)

    def at(self, positions: Tensor, lengths: Tensor | None, window: int) -> None:
        self.place.positions, self.place.lengths, self.place.window = positions, lengths, window

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def truncate(self, length: int) -> None:
        """Forgets all tokens behind the first `length`."""
        self.length = min(length, self.length)
        del self.tokens[self.length :]


def bytes_of(config: LlamaConfig, tokens: int, dtype: Any = float32) -> int:
    """What the cache of so many tokens takes."""
    vectors = 2 * config.num_hidden_layers * (config.num_key_value_heads or 0) * tokens
    return vectors * ((config.head_dim or 0) * dtype_of(dtype).itemsize + (4 if dtype_of(dtype) == int8 else 0))


def memory(config: LlamaConfig, tokens: int) -> dict[str, int]:
    """Port.memory."""
    return {f"keys and values of {tokens:,} tokens": bytes_of(config, tokens)}
