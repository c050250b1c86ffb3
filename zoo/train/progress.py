"""What a run shows on stderr: a bar with loss and speed on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from zoo.train.watch import Epoch, Run, Step, Watcher

REDRAW = 0.1  # seconds between changes of the bar: more is not seen, and would take time from training
PLAIN = 10.0  # seconds between lines where stderr is no terminal


class Progress(Watcher):
    def __init__(self) -> None:
        self._bar: Any = None
        self._rows, self._since, self._next = 0, 0.0, 0.0

    def opened(self, run: Run) -> None:
        self._total, self._rows, self._since = run.total, 0, time.perf_counter()
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
        self._task = self._bar.add_task("training", total=run.total, completed=run.step)

    def stepped(self, step: Step) -> None:
        self._rows += step.rows
        now = time.perf_counter()
        if now < self._next:
            return
        text = f"epoch {step.epoch}  loss {step.loss:.4f}  {self.speed(now):,.0f} examples/s"
        if self._bar is not None:
            self._next = now + REDRAW
            self._bar.update(self._task, completed=step.step, description=text)
        else:
            self._next = now + PLAIN
            print(f"step {step.step}/{self._total}  {text}", file=sys.stderr, flush=True)

    def speed(self, now: float) -> float:
        """Examples per second since `opened`."""
        return self._rows / max(now - self._since, 1e-9)

    def validated(self, epoch: Epoch) -> None:
        found = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
        measured = f" · validation: {found}" if found else ""
        self.say(f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{measured} · {epoch.seconds:.0f} s")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def closed(self, reason: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
