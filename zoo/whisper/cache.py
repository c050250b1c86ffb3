"""What a decoder keeps of a window: keys and values of the audio, worked out once, and of the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.core import ops
from zoo.core.dtype import HALVES, float16, float32, int32
from zoo.core.tensor import Tensor

if TYPE_CHECKING:
    from zoo.whisper.model import Whisper

GROWTH = 64
"""Tokens by which a full cache grows at least; it doubles otherwise."""


class KeysValues(NamedTuple):
    """(B, S, H, D) each."""

    keys: Tensor
    values: Tensor


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
    """Of one layer. `cross` are keys and values of the audio, of A windows; those of tokens are of B = A n rows, the n
    hypotheses of a window beside each other, in `dtype`."""

    def __init__(self, cross: KeysValues, place: Place, dtype: Any):
        self.cross, self.place, self.dtype = cross, place, dtype
        self.stored: KeysValues | None = None

    def room(self, rows: int, capacity: int) -> None:
        """For so many positions; what was there stays."""
        if self.stored is None:
            heads = self.cross.keys.shape[2:]
            device = self.cross.keys.device
            shape, how = (rows, capacity, *heads), {"dtype": self.dtype, "device": device}
            self.stored = KeysValues(ops.zeros(shape, **how), ops.zeros(shape, **how))
        else:
            more = ((0, 0), (0, capacity - self.stored.keys.shape[1]), (0, 0), (0, 0))
            self.stored = KeysValues(*(ops.pad(x, more) for x in self.stored))

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds k, v (B, L, H, D) at the cache's place; returns those there are up to now (B, S, H, D), and how many
        of the S count (None: all)."""
        place = self.place
        assert self.stored is not None and place.positions is not None, "Cache.begin makes room"
        put = (ops.update_rows(x, y, place.positions, donate=True) for x, y in zip(self.stored, (k, v), strict=True))
        self.stored = KeysValues(*put)
        keys, values = (x[:, : place.window] for x in self.stored)
        return keys, values, place.lengths

    def reorder(self, rows: Tensor, length: int) -> None:
        """In place, where there are as many rows as before."""
        if self.stored is None:
            return
        if rows.shape[0] != self.stored.keys.shape[0]:
            self.stored = KeysValues(*(ops.take(x, rows) for x in self.stored))
        else:
            taken = (ops.take(x[:, :length], rows) for x in self.stored)
            put = (ops.update_slice(x, y, (0, 0, 0, 0), donate=True) for x, y in zip(self.stored, taken, strict=True))
            self.stored = KeysValues(*put)


class Cache:
    """Of all layers, for the text of A windows, in n hypotheses each."""

    def __init__(self, model: Whisper, encoded: Tensor, *, capacity: int = 0):
        """encoded (A, S, d_model): what `model.encode` gave. capacity: tokens for which there shall be room at once.

        Keys and values are kept as they come (`model.activations`); those of the audio, where they come in float32
        beside rounded or narrow weights, in float16: for Whisper-base they are as many numbers as the weights of the
        decoder, and are read as often.
        """
        self.windows, self.device = encoded.shape[0], encoded.device
        self.rows, self.capacity, self.wanted = 0, 0, capacity
        self.length = 0
        """Tokens that every layer has seen: where a pass was broken off, some have seen more."""
        self.place = Place()
        self.captured: dict[Any, Any] = {}
        """Passes that write to this memory (step.py)."""
        self.layers: list[LayerCache] = []
        come = model.activations
        for layer in model.model.decoder.layers:
            weight = getattr(layer.encoder_attn.v_proj, "weight", None)  # an adapter has none of its own
            wide = come in HALVES or weight is None or weight.dtype == float32
            heard = layer.encoder_attn.keys_values(encoded)
            kept = KeysValues(*(x.astype(come if wide else float16) for x in heard))
            self.layers.append(LayerCache(kept, self.place, come))

    def room(self, rows: int, new: int) -> None:
        """Makes room for `new` more tokens in so many rows."""
        stop = self.length + new
        if not self.rows or stop > self.capacity:
            self.capacity = max(stop, 2 * self.capacity, GROWTH) if self.rows else max(stop, self.wanted)
            self.rows = rows
            for layer in self.layers:
                layer.room(rows, self.capacity)
            self.captured.clear()

    def begin(self, rows: int, new: int) -> None:
        """A pass over so many new tokens in so many rows begins; `length` grows when it has ended."""
        self.room(rows, new)
        positions = ops.full((rows,), self.length, dtype=int32, device=self.device)
        self.at(positions, None, self.length + new)

    def at(self, positions: Tensor, lengths: Tensor | None, window: int) -> None:
        self.place.positions, self.place.lengths, self.place.window = positions, lengths, window

    def truncate(self, length: int) -> None:
        """Forgets all tokens behind the first `length`."""
        self.length = min(length, self.length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i is from now on what row rows[i] was. There may be more rows than before, or fewer, but n for each
        window, in the order of the windows: what was heard does not move."""
        indices = Tensor(self.device.from_host(np.asarray(rows, np.int32)), self.device)
        for layer in self.layers:
            layer.reorder(indices, self.length)
        if self.rows not in (0, len(rows)):
            self.rows = len(rows)
            self.captured.clear()
