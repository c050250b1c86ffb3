"""Rows of a data set from the formats that people keep them in, one at a time, each with the place it comes from.

.jsonl  .jsonl.gz    an object a line
.csv                 names in the first line, then a row a line; a place with nothing in it counts as absent
.parquet             where pyarrow is installed
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoo.core.errors import DataError, ZooError
from zoo.data.bad import FIX, Skipped, told

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
ROW_BYTES = 64 << 20
"""A row may be a book; a line of more than this is no row, and is passed over without being kept."""
_CHUNK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """place: FILE:LINE, by which messages name it."""

    place: str
    values: dict[str, Any]

    def text(self, *names: str) -> str:
        """The first of these fields that is there. Raises ValueError if none is, or it is no text."""
        found = next((name for name in names if name in self.values), None)
        if found is None:
            raise ValueError(f"it has {', '.join(map(repr, self.values)) or 'nothing'}, and no {' or '.join(names)}")
        value = self.values[found]
        if not isinstance(value, str):
            raise ValueError(f"{found} is no text but {value!r}"[:200])
        return value


def read(path: Path, make: Callable[[Row], T], *, form: str, skipped: Skipped | None = None) -> Iterator[T]:
    """What `make` makes of each row of a file. Rows that cannot be read, and those for which it raises ValueError or a
    ZooError, are told to `skipped`.

    Without it, raises DataError at the end that names every such row (the first of them with the reason), and in any
    case if the file cannot be read or leaves no row. form: what a row should look like.
    """
    bad: dict[str, str] = {}
    good = 0
    for place, found in _rows(path):
        try:
            if isinstance(found, Exception):
                raise found
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
            made = make(Row(place, found))
        except ZooError as error:
            bad[place] = f"{error.what}: {error.why}" if error.what else error.why
        except (ValueError, OSError, RecursionError) as error:
            bad[place] = str(error) or type(error).__name__
        else:
            good += 1
            yield made
            continue
        if skipped is not None:
            skipped.add(place, bad.pop(place))
    if bad:
        what = f"cannot use {len(bad):,} of {good + len(bad):,} rows of {path}"
        raise DataError(what, "\n".join(told(bad)), f"{form} {FIX}")
    if not good:
        raise DataError(f"there is nothing in {path}", "it has no rows" if not skipped else "no row can be used", form)


def suffix(path: Path) -> str:
    """ ".jsonl.gz" of rows.jsonl.gz; of other names, the last suffix."""
    return "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, values, or the exception that says why there are none)."""
    kind = suffix(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with gzip.open(path) if kind.endswith(".gz") else path.open("rb") as file:
            yield from (_csv if kind.startswith(".csv") else _json)(path, file)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {path}", why, "Check the file and its rights.") from error


def _lines(file: Any) -> Iterator[bytes]:
    """Lines, of which none is kept beyond ROW_BYTES + 1."""
    first = True
    while line := file.readline(ROW_BYTES + 1):
        if len(line) > ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
        yield line.removeprefix(b"\xef\xbb\xbf") if first else line  # a byte order mark, as Windows writes it
        first = False


def _json(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        if len(line) > ROW_BYTES:
            yield place, ValueError(f"the line is longer than {ROW_BYTES >> 20} MB")
            continue
        try:
            yield place, json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield place, ValueError(f"it is not UTF-8 ({error.reason}, byte {error.start})")
        except (ValueError, RecursionError) as error:
            yield place, error


def _csv(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(ROW_BYTES)  # of the whole process; what Python begins with is 131,072
    lines = csv.reader((line.decode(errors="surrogateescape") for line in _lines(file)), strict=True)
    names: list[str] = []
    while True:
        place = f"{path}:{lines.line_num + 1}"
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, ValueError(str(error))
            continue
        if not fields:
            continue
        if not names:
            names = fields
            continue
        if len(fields) != len(names):
            yield place, ValueError(f"it has {len(fields)} columns; the first line names {len(names)}")
        elif any("\ud800" <= sign <= "\udfff" for field in fields for sign in field):
            yield place, ValueError("it is not UTF-8")
        else:
            yield place, {name: field for name, field in zip(names, fields, strict=True) if field}


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        why = "Parquet is read by pyarrow, which is not installed"
        raise DataError(f"cannot read {path}", why, "pip install pyarrow, or save the rows as .jsonl.") from None
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", {name: value for name, value in values.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}", str(error), "Check the file and its rights.") from error
