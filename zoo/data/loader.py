"""Batches in an order that follows from a seed, from any point of any epoch on.

The order of epoch e is a function of (seed, e) and what is random in batch i of it a function of (seed, e, i). So the
state of a Loader is two numbers, and a run that is stopped and resumed sees the batches that it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.core.random import Generator

Transform = Callable[[Any, Generator], Any]


def stream(seed: int, *names: object) -> Generator:
    """A generator of its own for every (seed, names): stream(0, "order", 3). Streams do not overlap in practice: their
    seeds are 64 bits of a hash."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return Generator(int.from_bytes(digest, "little"))


class Loader:
    """Iterates over the batches of the current epoch that are left, then stands at the start of the next.

    data: a tuple or dict of arrays with as many rows each, or an object with `len(data)` and `data[indices]`, which
    gives a batch for an array of row numbers. transform(batch, rng) -> batch changes each batch on the host
    (augmentation); what it draws from `rng` is the same for the same batch of the same epoch.
    """

    def __init__(
        self,
        data: Any,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Transform | None = None,
    ):
        self.data, self.batch, self.seed = data, batch, seed
        self.shuffle, self.drop_last, self.transform = shuffle, drop_last, transform
        self.rows = _rows(data)
        if batch < 1:
            raise DataError(f"a batch of {batch} rows", "", "Batches need at least one row.")
        if len(self) == 0:
            why = f"there are {self.rows} rows" + (f", and batches of {batch} are not filled" if self.rows else "")
            raise DataError("there is nothing to load", why, "Give more data, or smaller batches.")
        self.epoch = 0
        """Epochs that are complete."""
        self.position = 0
        """Batches of the current epoch that were handed out."""

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.rows // self.batch if self.drop_last else -(-self.rows // self.batch)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches(self.epoch, self.position):
            self.position += 1
            yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on. Changes no state."""
        order = stream(self.seed, "order", epoch).permutation(self.rows) if self.shuffle else np.arange(self.rows)
        for i in range(start, len(self)):
            batch = _take(self.data, order[i * self.batch : (i + 1) * self.batch])
            if self.transform is not None:
                batch = self.transform(batch, stream(self.seed, "transform", epoch, i))
            yield batch

    def state(self) -> dict[str, Any]:
        """Where the loader stands, and what its order depends on; for JSON."""
        facts = {"rows": self.rows, "batch": self.batch, "seed": self.seed, "shuffle": self.shuffle}
        return {"epoch": self.epoch, "position": self.position, **facts, "drop_last": self.drop_last}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken. Raises DataError if the order would be another one."""
        mine = self.state()
        changed = [k for k in mine if k not in ("epoch", "position") and mine[k] != state.get(k)]
        if changed:
            why = "\n".join(f"{k} was {state.get(k)} and is {mine[k]}" for k in changed)
            raise DataError(
                "the run cannot go on with these batches", why, "Resume with the data and settings it began with."
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


def _rows(data: Any) -> int:
    if not isinstance(data, tuple | list | dict):
        return len(data)
    arrays = list(data.values()) if isinstance(data, dict) else list(data)
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1:
        raise DataError(
            "the arrays of a data set have different lengths", f"they have {lengths} rows", "Make them pair up."
        )
    return lengths[0]


def _take(data: Any, indices: np.ndarray) -> Any:
    if isinstance(data, dict):
        return {name: array[indices] for name, array in data.items()}
    if isinstance(data, tuple | list):
        return tuple(array[indices] for array in data)
    return data[indices]
