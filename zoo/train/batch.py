"""A batch: arrays with the same rows, in tuples and dicts, and what is no array and belongs to the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zoo.core.tensor import Tensor


def mapped(batch: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """The batch with change(array) for each of its arrays."""
    if isinstance(batch, np.ndarray):
        return change(batch)
    if isinstance(batch, dict):
        return {name: mapped(part, change) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(mapped(part, change) for part in batch)
    return batch


def on_device(batch: Any, device: Any) -> Any:
    """The arrays of a batch as tensors; what is no array stays."""
    return mapped(batch, lambda array: Tensor(device.from_host(array), device))


def size(batch: Any) -> int:
    """Rows."""
    while not hasattr(batch, "shape"):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return int(batch.shape[0])


def take(batch: Any, which: np.ndarray) -> Any:
    """Some rows of a batch. Arrays of other lengths than most stay whole: they are no rows."""
    n = size(batch)
    return mapped(batch, lambda array: array[which] if array.ndim and len(array) == n else array)


def arrays(batch: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Path ("0", "labels", "1.text") and array of each."""
    if isinstance(batch, np.ndarray):
        yield path or "0", batch
    elif isinstance(batch, dict | tuple | list):
        for key, part in batch.items() if isinstance(batch, dict) else enumerate(batch):
            yield from arrays(part, f"{path}.{key}" if path else str(key))
