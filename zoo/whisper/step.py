"""A pass over new tokens behind a cache. One token in each row is a captured pass (zoo/core/capture.py): run once and
recorded, and from then on replayed with other tokens at other positions."""

from __future__ import annotations

import numpy as np

from zoo.core.capture import Capture, records
from zoo.core.tensor import Tensor
from zoo.whisper.cache import Cache
from zoo.whisper.model import Whisper


def step(model: Whisper, ids: np.ndarray, cache: Cache) -> np.ndarray:
    """ids (R, L), added to the cache -> logits (R, 1, V) behind the last of each row; where they lie is written to
    again by the next pass."""
    device, (rows, new) = model.device, ids.shape
    if new > 1 or model.training or not records(device):
        return model.decode(Tensor(device.from_host(np.ascontiguousarray(ids)), device), cache, last=1).numpy()
    seen = cache.length
    model.check_room(seen + new)
    cache.room(rows, new)
    key = (id(model), rows)
    if key not in cache.captured:
        cache.captured[key] = _captured(model, cache)
    first, lengths = np.full(rows, seen, np.int32), np.full(rows, seen + new, np.int32)
    logits = cache.captured[key](ids, np.array([seen], np.int32), first, lengths).numpy()
    cache.length += new
    return logits


def _captured(model: Whisper, cache: Cache) -> Capture:
    def run(ids: Tensor, positions: Tensor, first: Tensor, lengths: Tensor) -> Tensor:
        cache.at(first, lengths, cache.capacity)
        return model.run(ids, positions, cache, 1)

    return Capture(run, model.device)
