"""A pass over new tokens behind a cache. Where they are few, as in writing, it is captured (zoo/core/capture.py): run
once and recorded, and from then on replayed with other tokens at other positions."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from zoo.core.capture import Capture, records
from zoo.core.tensor import Tensor
from zoo.llama.cache import Cache
from zoo.llama.model import Llama
from zoo.llama.rope import Rope, angles

FEW = 16
"""Tokens of a row that are captured: one, or one and what was guessed of those behind it. In a pass over more, what ops
cost in Python is little beside their work."""
WINDOW = 256
"""Positions that a captured pass looks at, at least; then twice as many, and so on: what lies beyond the newest token
does not count, but devices without a kernel for that work it out, and so does the cache in 8 bits."""


def step(
    model: Llama, ids: np.ndarray, cache: Cache, last: int = 1, *, starts: Sequence[int] | None = None
) -> np.ndarray:
    """ids (B, L), added to the cache -> logits (B, last, V) behind the last of them. starts: as Llama has them."""
    device, (batch, new) = model.device, ids.shape
    if new > FEW or model.training or not records(device):
        tokens = Tensor(device.from_host(np.ascontiguousarray(ids)), device)
        return model(tokens, cache, last=last, starts=starts).numpy()
    cache.room(new)
    seen, window = cache.length, WINDOW
    while window < seen + new:
        window *= 2
    window = min(window, cache.capacity)
    key = (id(model), last, window, None if starts is None else tuple(starts))
    if key not in cache.captured:
        cache.captured[key] = _captured(model, cache, last, window, starts)
    positions = np.arange(seen, seen + new)
    if starts is not None:
        positions = np.maximum(positions - np.array(starts)[:, None], 0)
    first, lengths = np.full(batch, seen, np.int32), np.full(batch, seen + new, np.int32)
    logits = cache.captured[key](ids, *angles(model.config, positions), first, lengths).numpy().copy()
    cache.length += new
    return logits


def _captured(model: Llama, cache: Cache, last: int, window: int, starts: Sequence[int] | None) -> Capture:
    bias = None if starts is None else model.padding(starts, window)

    def run(ids: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        cache.at(positions, lengths, window)
        return model.run(ids, Rope(cos, sin), cache, bias, last)

    return Capture(run, model.device)


def forget_stale(model: Llama, cache: Cache) -> None:
    """Forgets captured passes that read other weights than the model has now."""
    now = [slot.value for slot in model.slots().values()]
    if len(now) != len(cache.weights) or not all(map(operator.is_, now, cache.weights)):
        cache.captured.clear()
        cache.weights = now
