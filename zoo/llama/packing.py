"""Texts packed into rows of equal length, with memory that does not grow with the text.

tokens   ids of all texts, one after the other: 16 bits where the vocabulary allows it, else 32; the highest bit says
         that an id is seen but not learned
pieces   of which texts consist: (place in tokens, inputs, text, learned), cut where a text is longer than a row
plan     pieces in the order of the rows that they make up; rows: where each one's begin

Each is a `Column`: in memory, or a file of which only what is asked for is read. It is not mapped: pages of a mapped
file that were read once count as memory of this process, and an epoch reads all of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.data.files import HELD_OUT
from zoo.train.tokens import IGNORED

WINDOW = 1 << 16
"""Pieces among which those that fill a row together are looked for: 20 MB at most."""


class Column:
    """Rows of `width` numbers that are appended, and read by slices; in a file, or in memory without a path."""

    def __init__(self, dtype: Any, width: int, path: Path | None = None, count: int | None = None):
        """count: rows that the file holds; without it, it is begun anew."""
        self.dtype, self.width, self.path = np.dtype(dtype), width, path
        self.count = count or 0
        self._file: Any = io.BytesIO() if path is None else path.open("w+b" if count is None else "rb")

    def __len__(self) -> int:
        return self.count

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.dtype)
        self._file.write(data)
        self.count += data.size // self.width

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(n, width), or (n,) of width 1. Raises DataError if the file does not hold them (any more)."""
        first, last, _ = rows.indices(self.count)
        size = self.dtype.itemsize * self.width
        self._file.seek(first * size)
        data = self._file.read(max(0, last - first) * size)
        if len(data) != max(0, last - first) * size:
            raise DataError(f"cannot read {self.path}", "it is cut short", "Begin again: it is made anew.")
        found = np.frombuffer(data, self.dtype)
        return found.reshape(-1, self.width) if self.width > 1 else found

    def close(self) -> None:
        if self.path is not None:
            self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the file itself."""
        data = self._file.getvalue() if self.path is None else None
        return {**vars(self), "_file": data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = io.BytesIO(state["_file"]) if self.path is None else self.path.open("rb")


class Packed:
    """Data for a Loader: rows of `length` tokens with several texts each."""

    def __init__(self, tokens: Column, plan: Column, rows: Column, length: int, learned: int):
        """learned: tokens that are learned, in all."""
        self.tokens, self.plan, self.rows, self.length, self.learned = tokens, plan, rows, length, learned

    def __len__(self) -> int:
        return len(self.rows) - 1

    def _members(self, row: int) -> np.ndarray:
        first, last = self.rows[row : row + 2]
        return self.plan[int(first) : int(last)]

    def place(self, row: int) -> str:
        return f"row {row} (texts {', '.join(str(text + 1) for _, _, text, _ in self._members(row).tolist())})"

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """inputs, targets, and the number of the text that each token belongs to, (rows, length), int32. What is not
        learned is IGNORED, and so is what fills a row."""
        inputs, texts = np.zeros((2, len(rows), self.length), np.int32)
        targets = np.full((len(rows), self.length), IGNORED, np.int32)
        hidden = 1 << (8 * self.tokens.dtype.itemsize - 1)
        for i, row in enumerate(rows):
            at = 0
            for number, (place, size, _, _) in enumerate(self._members(int(row)).tolist()):
                codes = self.tokens[place : place + size + 1].astype(np.int64)
                ids, end = codes & (hidden - 1), at + size
                inputs[i, at:end] = ids[:-1]
                targets[i, at:end] = np.where(codes[1:] & hidden, IGNORED, ids[1:])
                texts[i, at:] = number  # what fills the row comes last
                at = end
        return inputs, targets, texts


class Packing:
    """Takes texts, one by one, and makes rows of them. Files are in the folder; without one, all is in memory."""

    def __init__(self, length: int, vocab_size: int, folder: Path | None = None):
        self.length, self.folder = length, folder
        self._hidden, dtype = (1 << 15, "<u2") if vocab_size <= 1 << 15 else (1 << 31, "<u4")
        self.tokens = self._column("tokens", dtype, 1)
        self._pieces = self._column("pieces", "<i8", 4)
        self.texts = 0

    def _column(self, name: str, dtype: Any, width: int) -> Column:
        return Column(dtype, width, None if self.folder is None else self.folder / f"{name}.bin")

    def add(self, parts: Iterable[tuple[Any, Any]]) -> None:
        """A text in parts (ids, whether each is learned; None: all are).

        A text that fits into a row is never cut, so that no answer is learned without its prompt; longer ones are cut
        into whole rows and a rest. Pieces without anything to learn are left out.
        """
        first, flags = len(self.tokens), []
        for ids, learned in parts:
            codes = np.asarray(ids, np.int64)
            if learned is not None:
                flags.append((len(self.tokens) - first, np.asarray(learned, bool)))
                codes = np.where(flags[-1][1], codes, codes | self._hidden)
            self.tokens.append(codes)
        total = len(self.tokens) - first
        starts = np.arange(0, max(total - 1, 0), self.length)
        sizes = np.minimum(self.length, total - 1 - starts)
        counts = sizes
        if flags:
            known = np.ones(total, bool)
            for at, learned in flags:
                known[at : at + len(learned)] = learned
            sums = np.concatenate([[0], np.cumsum(known)])
            counts = sums[starts + sizes + 1] - sums[starts + 1]
        kept = counts > 0
        texts = np.full(len(starts), self.texts)
        self._pieces.append(np.stack([first + starts, sizes, texts, counts], axis=1)[kept])
        self.texts += 1

    def rows(self, name: str = "all") -> Packed:
        """All that was added, as one set of rows. Raises DataError if nothing is to be learned."""
        return self._rows(name, lambda pieces, first: np.ones(len(pieces), bool))

    def parts(self) -> tuple[Packed, Packed]:
        """(to train on, held out): every tenth text, or of fewer than ten texts the last tenth of all.

        Raises DataError if either would be empty.
        """
        last = len(self._pieces) - max(1, len(self._pieces) // HELD_OUT)

        def unseen(pieces: np.ndarray, first: int) -> np.ndarray:
            if self.texts < HELD_OUT:
                return np.arange(first, first + len(pieces)) >= last
            return pieces[:, 2] % HELD_OUT == 0

        if len(self._pieces) < 2:
            why = f"{len(self._pieces)} row of {self.length} tokens leaves nothing to hold out"
            raise DataError("there is too little text", why, "Give more, a valid file, or a shorter --context.")
        return self._rows("train", lambda pieces, first: ~unseen(pieces, first)), self._rows("unseen", unseen)

    def _rows(self, name: str, chosen: Any) -> Packed:
        """Pieces go where they leave the least room, the longest first (best-fit decreasing: Ding et al. 2024)."""
        plan, rows = self._column(f"{name}-plan", "<i8", 4), self._column(f"{name}-rows", "<i8", 1)
        rows.append(np.zeros(1))
        learned = 0
        for at in range(0, len(self._pieces), WINDOW):
            pieces = self._pieces[at : at + WINDOW]
            pieces = pieces[chosen(pieces, at)]
            fitted = _fitted(pieces[:, 1], self.length)
            counts = np.array([len(row) for row in fitted], np.int64)
            rows.append(len(plan) + np.cumsum(counts))
            plan.append(pieces[np.array([i for row in fitted for i in row], np.int64)])
            learned += int(pieces[:, 3].sum())
        if not learned:
            fix = "Give texts of two tokens and more; a prompt needs its completion."
            raise DataError("there is nothing to learn", "no row has an answer of one token or more", fix)
        return Packed(self.tokens, plan, rows, self.length, learned)


def pack(examples: Sequence[Any], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples (`ids`, `learned`) as arrays of rows: inputs, targets and texts as `Packed` has them."""
    packing = Packing(length, 1 << 31)
    for example in examples:
        packing.add([(example.ids, example.learned)])
    rows = packing.rows()
    return rows[np.arange(len(rows))]


def _fitted(sizes: np.ndarray, length: int) -> list[list[int]]:
    """Which pieces share a row. Rows are in the order of their first piece, and pieces in theirs."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r: there is a row with room r
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        if fits := rooms >> size:
            room = size + (fits & -fits).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if left := room - size:
            by_room[left].append(row)
            rooms |= 1 << left
    return sorted(sorted(row) for row in rows)
