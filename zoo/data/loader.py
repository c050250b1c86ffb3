"""Batches in an order that follows from a seed, from any point of any epoch on.

The order of epoch e is a function of (seed, e) and what is random in batch i of it a function of (seed, e, i). So the
state of a Loader is two numbers, and a run that is stopped and resumed sees the batches that it would have seen. Where
several processes train together, their shares of batch i make up the batch i that one process would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.core.random import Generator
from zoo.data.bad import BadRow, Skipped
from zoo.data.workers import Workers

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

    part: (rank, size) of processes that train together: each has a run of the rows of every batch, as long as another's
    or one longer. A batch of fewer rows than processes leaves some of them arrays of no rows. A transform sees the
    whole batch before it is divided, since it may mix rows, and draws for all of them: whoever has one reads every row
    on every process.

    workers: processes that make batches ahead of their use (`zoo.data.workers`); the batches are the same bits.

    skipped: rows for which the data raises BadRow are left out of their batches, and told to this; without it, the
    error goes on. A batch of such rows alone is made of the next row that can be read: steps are as many as ever.
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
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        skipped: Skipped | None = None,
    ):
        self.data, self.batch, self.seed = data, batch, seed
        self.shuffle, self.drop_last, self.transform = shuffle, drop_last, transform
        self.part, self.workers, self.skipped = part, workers, skipped
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
        self.at = np.zeros(0, np.int64)
        """Row numbers of the batch that was handed out last; of a divided one, of this part."""
        self._bad: dict[int, tuple[str, str]] = {}  # rows that could not be read: place, reason
        self._plan: tuple[int, Sequence[np.ndarray]] | None = None  # of the epoch that was asked for last
        self._team: Workers | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.rows // self.batch if self.drop_last else -(-self.rows // self.batch)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches(self.epoch, self.position):
            self.position += 1
            yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """The row numbers of each batch of an epoch."""
        order = stream(self.seed, "order", epoch).permutation(self.rows) if self.shuffle else np.arange(self.rows)
        return [order[i * self.batch : (i + 1) * self.batch] for i in range(len(self))]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on. Changes no state but `at`."""
        tasks = [(epoch, number) for number in range(start, len(self))]
        team = self._workers()
        for batch, self.at, bad in team.make(tasks) if team else (self.make(*task) for task in tasks):
            self._bad |= bad
            if self.skipped is not None:
                for place, why in bad.values():
                    self.skipped.add(place, why)
            yield batch

    def close(self) -> None:
        """Ends the worker processes, if there are any; they are started again when batches are asked for."""
        if self._team is not None:
            self._team.close()
            self._team = None

    def places(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Where rows come from, as messages name them: the data's own word for it, if it has `place(row)`."""
        place = getattr(self.data, "place", None)
        return [place(int(row)) if place else f"row {int(row)}" for row in rows]

    def make(self, epoch: int, number: int) -> tuple[Any, np.ndarray, dict[int, tuple[str, str]]]:
        """A batch, or this process's part of it; the numbers of its rows; and, by number, (place, reason) of rows that
        turned out to be bad on the way."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self.plan(epoch)
        rows = self._plan[1][number]
        if self.transform is None and self.skipped is None and len(own := rows[self._share(rows)]):
            return _take(self.data, own), own, {}
        before = set(self._bad)
        batch, rows = self._read(rows)
        if self.transform is not None:
            batch = self.transform(batch, stream(self.seed, "transform", epoch, number))
        share = self._share(rows)
        if len(rows[share]) < len(rows):
            batch = _part(batch, len(rows), share)
        return batch, rows[share], {row: told for row, told in self._bad.items() if row not in before}

    def _share(self, rows: np.ndarray) -> slice:
        """Which rows of a batch this process has."""
        rank, size = self.part
        return slice(len(rows) * rank // size, len(rows) * (rank + 1) // size)

    def _read(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """A batch of those rows that can be read, and their numbers."""
        first = int(rows[0])
        while True:
            if self._bad:
                rows = np.array([row for row in rows.tolist() if row not in self._bad], np.int64)
            if not len(rows):
                after = ((first + i) % self.rows for i in range(1, self.rows))
                spare = next((row for row in after if row not in self._bad), None)
                if spare is None:
                    raise DataError("there is nothing to load", "no row of the data can be used", "Give other data.")
                rows = np.array([spare], np.int64)
            try:
                return _take(self.data, rows), rows
            except BadRow as error:
                if self.skipped is None:
                    raise
                self._bad[error.row] = error.place, error.why

    def _workers(self) -> Workers | None:
        """The team, if there is to be one, and nobody has it: the same batches are then made here."""
        if self.workers and (self._team is None or not self._team.alive):
            self._team = Workers(self, self.workers)
        return None if self._team is None or self._team.busy else self._team

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets: all but the team, the plan, which it makes itself, and where skipped rows are written."""
        skipped = None if self.skipped is None else Skipped()
        return {**self.__dict__, "_team": None, "_plan": None, "workers": 0, "skipped": skipped}

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


def _part(batch: Any, rows: int, share: slice) -> Any:
    """Those of the rows of each array. Arrays of k times as many rows are k blocks."""
    if isinstance(batch, dict):
        return {name: _part(part, rows, share) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_part(part, rows, share) for part in batch)
    if not isinstance(batch, np.ndarray):
        return batch  # a number for the whole batch
    blocks, rest = divmod(len(batch), rows)
    if rest:
        why = f"an array of {len(batch)} rows in a batch of {rows} has no part for each process"
        raise DataError("the batches cannot be divided", why, "Train with one process, or with other batches.")
    apart = batch.reshape(blocks, rows, *batch.shape[1:])[:, share]
    return apart.reshape(blocks * apart.shape[1], *batch.shape[1:])
