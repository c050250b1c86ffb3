"""Rows of a data set that cannot be used: where they are, why, and what became of them.

Without being asked, nothing is left out: an error names the row by the file and line that it was read from. Who asks
for it (`--skip-bad`) gets the rest of the data, a count, and every row that was left out in `skipped.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from zoo.core.errors import DataError

FILE = "skipped.jsonl"
SHOWN = 8
"""Rows that a message tells of."""
FIX = "Correct the rows or take them away; --skip-bad leaves them out."


class BadRow(DataError):
    """A row that turned out to be of no use when it was read: its number, and where it comes from."""

    def __init__(self, row: int, place: str, why: str):
        super().__init__(f"cannot use the row {place}", why, FIX)
        self.row, self.place = row, place

    def __reduce__(self) -> Any:
        return BadRow, (self.row, self.place, self.why)


class Skipped:
    """Rows that are left out, by their places, each once. With a directory, they are written into its skipped.jsonl as
    they are met: {"row": PLACE, "why": TEXT}. resume: what that file tells already counts too."""

    def __init__(self, directory: Path | None = None, resume: bool = False):
        self.path = None if directory is None else directory / FILE
        self.rows: dict[str, str] = {}
        if resume and self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line of a run that was killed
                    found = json.loads(line)
                    self.rows[str(found["row"])] = str(found["why"])

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, place: str, why: str) -> None:
        if place in self.rows:
            return
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.rows else "w", encoding="utf-8") as file:
                file.write(json.dumps({"row": place, "why": why}, ensure_ascii=False) + "\n")
        self.rows[place] = why

    def __str__(self) -> str:
        """What to say when all is done; nothing if nothing was skipped."""
        if not self.rows:
            return ""
        many = len(self.rows) != 1
        where = f"; {self.path} lists {'them' if many else 'it'}" if self.path is not None else ""
        head = f"{len(self.rows):,} row{'s' * many} {'were' if many else 'was'} skipped{where}"
        return "\n  ".join([head, *told(self.rows)])


def told(bad: dict[str, str]) -> list[str]:
    """The first rows with their reasons, one line each."""
    lines = [f"{place}: {' '.join(why.split())}" for place, why in list(bad.items())[:SHOWN]]
    return [*lines, f"... and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else lines
