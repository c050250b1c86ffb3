"""What the terminal shows: results on stdout, everything else on stderr.

rich draws the progress bar, and is imported only when there is one to draw.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.core.errors import WeightsError
from zoo.core.stats import peak_memory


class Console:
    """One command's voice. `quiet` silences stderr (errors excepted); `as_json` gathers results into one document."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self._bar: _Bar | None = None
        self._results: list[dict[str, Any]] = []
        self._alone = False

    def say(self, text: str) -> None:
        """A line for the person who watches (stderr)."""
        self._end_progress()
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def result(self, result: Any) -> None:
        """One result: its preview before and its note behind, if it has them, to stderr; itself to stdout, or into
        the JSON document. A plain string is a piece of a text that is still being written: it goes to stdout as it is,
        and of a result that is `streamed` nothing is left to show."""
        self._end_progress()
        if isinstance(result, str):
            if not self.as_json:
                print(result, end="", flush=True)
            return
        if self.as_json:
            self._results.append(result.to_json())
            self._alone = self._alone or getattr(result, "alone", False)
            return
        if hasattr(result, "preview"):
            self.say(result.preview())
        if not getattr(result, "streamed", False):
            print(result, flush=True)
        if hasattr(result, "note"):
            self.say(result.note())

    def document(self, head: dict[str, Any]) -> None:
        """The JSON document: `head`, and the results, or what a result says that is `alone`. Nothing without
        `--json`."""
        self._end_progress()
        if self.as_json:
            print_json({**head, **self._results[0]} if self._alone else {**head, "results": self._results})

    def progress(self, done: float, total: float | None, what: str, note: str = "") -> None:
        """How far something is (bytes, steps): a bar on a terminal, a line per task elsewhere; any text ends it.
        note: how far and fast in its own terms, "12:30 of 45:00, 8.1x real time": behind the bar, or in the line."""
        if self.quiet:
            return
        if self._bar is None or self._bar.what != what:
            self._end_progress()
            self._bar = _Bar(what, note, plain=not sys.stderr.isatty())
        self._bar.update(done, total, note)

    def pause(self) -> None:
        """Takes the bar away, before something else writes to the terminal."""
        self._end_progress()

    def _end_progress(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_progress()


class _Bar:
    """A rich progress bar on stderr, or one plain line where stderr is no terminal."""

    def __init__(self, what: str, note: str, plain: bool):
        self.what = what
        self._rich: Any = None
        if plain:
            print(f"{what}: {note}" if note else f"{what} ...", file=sys.stderr, flush=True)
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._rich = Progress(*columns, console=RichConsole(stderr=True), transient=True)
        self._rich.start()
        self._task = self._rich.add_task(what, total=None, note="")

    def update(self, done: float, total: float | None, note: str) -> None:
        if self._rich is not None:
            self._rich.update(self._task, completed=done, total=total, note=note)

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()


class Stopwatch:
    """Time and peak memory of this process, for the last line."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        text = f"{time.perf_counter() - self._start:.2f} s"
        memory = peak_memory()
        return text if memory is None else f"{text} · peak memory {size(memory)}"


def size(nbytes: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def columns(rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Rows as left-aligned columns, two spaces between."""
    table = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(indent + line for line in lines)


def print_json(document: Any) -> None:
    """One JSON document on stdout. Raises WeightsError if it holds a NaN, which JSON cannot say."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise WeightsError(
            "the result is not a number",
            "the model computed NaN or infinity; its weights may be damaged",
            "Fetch the weights again, or try --dtype f32.",
        ) from error
    print(text, flush=True)
