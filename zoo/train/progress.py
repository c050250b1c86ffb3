"""What a run shows on stderr: a bar with loss and speed on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

REDRAW = 0.1  # seconds between changes of the bar: more is not seen, and would take time from training
PLAIN = 10.0  # seconds between lines where stderr is no terminal


class Progress:
    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self._bar: Any = None
        self._rows, self._since, self._next = 0, 0.0, 0.0

    def open(self, step: int, total: int) -> None:
        self._total, self._rows, self._since = total, 0, time.perf_counter()
        if self.quiet:
            return
        if not sys.stderr.isatty():
            self._next = self._since + PLAIN
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("training", total=total, completed=step)

    def step(self, step: int, epoch: int, loss: float, rows: int) -> None:
        """A step is done, which trained on `rows` examples."""
        self._rows += rows
        if self.quiet:
            return
        now = time.perf_counter()
        if now < self._next:
            return
        text = f"epoch {epoch}  loss {loss:.4f}  {self.speed(now):,.0f} examples/s"
        if self._bar is not None:
            self._next = now + REDRAW
            self._bar.update(self._task, completed=step, description=text)
        else:
            self._next = now + PLAIN
            print(f"step {step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def speed(self, now: float) -> float:
        """Examples per second since `open`."""
        return self._rows / max(now - self._since, 1e-9)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
