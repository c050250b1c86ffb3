"""What a decoder keeps of a window: keys and values of the audio, worked out once, and of the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zoo.core import ops
from zoo.core.dtype import float16, float32
from zoo.core.tensor import Tensor

if TYPE_CHECKING:
    from zoo.whisper.model import Whisper

GROWTH = 64
"""Tokens by which a full cache grows at least; it doubles otherwise."""


class KeysValues(NamedTuple):
    """(B, S, H, D) each."""

    keys: Tensor
    values: Tensor


class LayerCache:
    """Of one layer. `cross` are keys and values of the audio, of A windows; those of tokens are of B = A n rows, the n
    hypotheses of a window beside each other."""

    def __init__(self, cross: KeysValues, capacity: int):
        self.cross = cross
        self.capacity, self.length = capacity, 0
        self._stored: KeysValues | None = None

    def append(self, k: Tensor, v: Tensor) -> KeysValues:
        """Adds k, v (B, L, H, D); returns those of all tokens up to now (B, S, H, D)."""
        start, stop = self.length, self.length + k.shape[1]
        if self._stored is None:
            shape = (k.shape[0], max(stop, self.capacity), *k.shape[2:])
            self._stored = KeysValues(*(ops.zeros(shape, dtype=k.dtype, device=k.device) for _ in "kv"))
        if stop > (room := self._stored.keys.shape[1]):
            more = ((0, 0), (0, max(stop, 2 * room, GROWTH) - room), (0, 0), (0, 0))
            self._stored = KeysValues(*(ops.pad(x, more) for x in self._stored))
        put = (ops.update_slice(x, y, (0, start, 0, 0), donate=True) for x, y in zip(self._stored, (k, v), strict=True))
        self._stored, self.length = KeysValues(*put), stop
        return KeysValues(*(x[:, :stop] for x in self._stored))

    def reorder(self, rows: Tensor) -> None:
        if self._stored is not None:
            self._stored = KeysValues(*(ops.take(x, rows) for x in self._stored))


class Cache:
    """Of all layers, for the text of A windows, in n hypotheses each."""

    def __init__(self, model: Whisper, encoded: Tensor, *, capacity: int = 0):
        """encoded (A, S, d_model): what `model.encode` gave. capacity: tokens for which there shall be room at once.

        Beside rounded or narrow weights, keys and values of the audio are kept in float16: for Whisper-base they are as
        many numbers as the weights of the decoder, and are read as often.
        """
        self.windows, self.device = encoded.shape[0], encoded.device
        self.layers: list[LayerCache] = []
        for layer in model.model.decoder.layers:
            weight = getattr(layer.encoder_attn.v_proj, "weight", None)  # an adapter has none of its own
            dtype = float32 if weight is None or weight.dtype == float32 else float16
            heard = layer.encoder_attn.keys_values(encoded)
            self.layers.append(LayerCache(KeysValues(*(x.astype(dtype) for x in heard)), capacity))

    @property
    def length(self) -> int:
        """How many tokens every layer has seen."""
        return min(layer.length for layer in self.layers)

    def truncate(self, length: int) -> None:
        """Forgets all tokens behind the first `length`."""
        for layer in self.layers:
            layer.length = min(length, layer.length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i is from now on what row rows[i] was. There may be more rows than before, or fewer, but n for each
        window, in the order of the windows: what was heard does not move."""
        indices = Tensor(self.device.from_host(np.asarray(rows, np.int32)), self.device)
        for layer in self.layers:
            layer.reorder(indices)
