"""A run on a terminal: curves of the loss and of what is measured, and below them how far and how fast it is.

The picture stands below the lines that were said, which scroll up as on any terminal, and goes when the run ends. It is
drawn by a thread, twice a second, and less often where that would take more than half a percent of the time: a step
pays for one entry in a list. Only characters, colours and the place of the cursor are rich's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment, Segments
from rich.style import Style

from zoo.core.stats import peak_memory
from zoo.train.journal import LOG, read_log
from zoo.train.plot import Line, blocks, bounds, braille, trailing
from zoo.train.progress import Progress, clock, size
from zoo.train.watch import Epoch, Run, Step

REDRAW = 0.5  # seconds between pictures
SHARE = 200  # times as long as a picture takes to draw, to the next one at least: it costs at most 0.5 % of the time
POINTS = 2048  # of a curve in memory; when it has so many, each two become one

RAW, SMOOTH, MEASURED, DIM, STRONG = "grey42", "cyan", "yellow", "bright_black", "bold"
Row = list[tuple[str, str]]
"""Pieces of a line: text and style."""


class Curve:
    """A value at steps, in bounded memory: means over more and more of them."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []
        self._every, self._waiting = 1, list[tuple[float, float]]()

    def add(self, x: float, y: float) -> None:
        self._waiting.append((x, y))
        if len(self._waiting) < self._every:
            return
        self.x.append(self._waiting[-1][0])
        self.y.append(sum(y for _, y in self._waiting) / self._every)
        self._waiting.clear()
        if len(self.x) == POINTS:
            self.x, self.y = self.x[1::2], [(a + b) / 2 for a, b in zip(self.y[::2], self.y[1::2], strict=True)]
            self._every *= 2

    def line(self, style: str) -> Line:
        return Line(np.array(self.x), np.array(self.y), style)


class _Console(Console):
    """One thread prints at a time, from what it asks the hook to what is on the screen."""

    def __init__(self, lock: Any, **settings: Any):
        super().__init__(**settings)
        self._turn = lock

    def print(self, *objects: Any, **settings: Any) -> None:
        with self._turn:
            super().print(*objects, **settings)


class Dashboard(Progress, RenderHook):
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._end: threading.Event | None = None

    # what it is told

    def opened(self, run: Run) -> None:
        self.closed("")
        super().opened(run)
        self._new: deque[Step] = deque()
        self._curves = {name: Curve() for name in ("loss", "lr", "norm", "speed")}
        self._measured: dict[str, Curve] = {}
        for record in read_log(run.out / LOG) if run.out is not None and run.step else []:
            self._went(record)
        self._said: deque[str] = deque(maxlen=100)
        self._height, self._size = 0, (0, 0)  # of the picture that is on the screen; of the screen when it was drawn
        self._console = _Console(self._lock, file=sys.stderr, highlight=False, soft_wrap=True)
        self._stderr, sys.stderr = sys.stderr, FileProxy(self._console, sys.stderr)
        self._console.show_cursor(False)
        self._console.push_render_hook(self)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._draw, args=(self._end,), name="dashboard", daemon=True)
        self._thread.start()

    def _went(self, record: dict[str, Any]) -> None:
        """What a run that goes on had logged."""
        for name, value in record.get("metrics", {}).items():
            self._measured.setdefault(name, Curve()).add(record["step"], value)
        if "metrics" not in record:
            for name, key in (("loss", "loss"), ("lr", "lr"), ("norm", "grad_norm")):
                if record.get(key) is not None:
                    self._curves[name].add(record["step"], record[key])

    def stepped(self, step: Step) -> None:
        self.last = step
        self._new.append(step)
        self._stepped = time.perf_counter()

    def validated(self, epoch: Epoch) -> None:
        with self._lock:
            for name, value in epoch.metrics.items():
                self._measured.setdefault(name, Curve()).add(epoch.step, value)
            super().validated(epoch)

    def write(self, text: str) -> None:
        if self._end is None:
            super().write(text)
        else:
            self._said.append(text)
            self._console.print(text, markup=False)

    def closed(self, reason: str) -> None:
        if self._end is not None:
            self._end.set()
            self._thread.join()
            self._console.pop_render_hook()
            self._console.control(self._erase())
            self._console.show_cursor(True)
            sys.stderr.flush()
            sys.stderr, self._end = self._stderr, None
        super().closed(reason)

    # drawing

    def _draw(self, end: threading.Event) -> None:
        wait = 0.1
        while not end.wait(wait):
            start = time.perf_counter()
            with self._lock:
                if self._console.size != self._size and self._height:
                    self._anew()
                else:
                    self._console.print(Control())  # prints nothing: the hook does
            wait = max(REDRAW, SHARE * (time.perf_counter() - start))

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed, with the picture moved below it. Called by rich."""
        away = self._erase()
        rows = self._picture(*self._console.size)
        self._height, self._size = len(rows), self._console.size
        return [away, *renderables, _segments(rows)]

    def _anew(self) -> None:
        """After a change of size, when nobody knows where lines broke: a clean screen with the last lines on it."""
        self._height = 0
        lines = "\n".join(self._said).splitlines()
        kept = lines[-max(self._console.height - self._rows(self._console.height) - 1, 0) :]
        self._console.control(Control((ControlType.CLEAR,), (ControlType.HOME,)))
        self._console.print("\n".join(kept) if kept else Control(), markup=False)

    def _erase(self) -> Control:
        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (self._height - 1)
        codes: list[Any] = [ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up] if self._height else []
        self._height = 0
        return Control(*codes)

    @staticmethod
    def _rows(height: int) -> int:
        """Of the plots: about half of the screen; none on a very low one."""
        return min((height - 4) // 2, 16) if height >= 14 else 0

    def _picture(self, width: int, height: int) -> list[Row]:
        self._take()
        if self.run is None or self.last is None:
            return [[("training: the first step ...", DIM)]]
        plots = self._plots(width - 1, self._rows(height)) if self._rows(height) and width >= 40 else []
        return [*plots, *self._status(width - 1)]

    def _take(self) -> None:
        """The steps since the last picture, into the curves."""
        while self._new:
            step = self._new.popleft()
            self._recent.append(step)
            self._curves["loss"].add(step.step, step.loss)
            self._curves["lr"].add(step.step, step.lr)
            self._curves["speed"].add(step.step, step.count / max(step.took, 1e-9))
            if step.grad_norm is not None:
                self._curves["norm"].add(step.step, step.grad_norm)

    def _plots(self, width: int, height: int) -> list[Row]:
        raw = self._curves["loss"].line(RAW)
        lines = [raw, Line(raw.x, trailing(raw.y), SMOOTH)]
        titles: Row = [("loss ", STRONG), (f"{lines[1].y[-1]:.3g} ", SMOOTH), (f"now {raw.y[-1]:.3g} ", RAW)]
        if "loss" in self._measured:
            lines.append(self._measured["loss"].line(MEASURED))
            titles.append((f"validation {lines[-1].y[-1]:.3g}", MEASURED))
        panels = [(titles, lines)]
        for name, curve in self._measured.items():
            if name != "loss":
                line = curve.line(MEASURED)
                panels.append(([(f"{name} ", STRONG), (f"{line.y[-1]:.4g}", MEASURED)], [line]))
        panels = panels[: max(1, width // 38)]
        each = (width - 2 * (len(panels) - 1)) // len(panels)
        columns = [panel(title, lines, each, height) for title, lines in panels]
        return [
            [piece for number, row in enumerate(rows) for piece in ([("  ", ""), *row] if number else row)]
            for rows in zip(*columns, strict=True)
        ]

    def _status(self, width: int) -> list[Row]:
        assert self.run is not None and self.last is not None
        run, step = self.run, self.last
        seconds = (
            step.seconds + time.perf_counter() - self._stepped
        )  # it goes on while a step or a validation takes long
        before = f"epoch {step.epoch}/{run.epochs} "
        after = f" {step.step:,}/{run.total:,} steps  {clock(seconds)}, {clock(self.left())} left"
        room = max(width - len(before) - len(after), 4)
        done = round(room * min(step.step / run.total, 1))
        bar: Row = [(before, STRONG), ("━" * done, SMOOTH), ("━" * (room - done), DIM), (after, "")]
        peak = peak_memory()
        memory = "" if step.memory is None else f"{size(step.memory)}, peak {size(peak or step.memory)}"
        facts = [
            ("learning rate", f"{step.lr:.3g}", "lr"),
            ("gradient", self._norm(), "norm"),
            ("", self.speed(), "speed"),
        ]
        across = 2 if width < 100 else 4
        cells: list[Row] = []
        for name, text, curve in facts:
            label = f"{name} {text}".strip()
            room = max(width // across - len(label) - 3, 0)
            line = self._curves[curve].line("")
            spark = blocks(line.x, line.y, min(room, 16)).strip() if len(line.x) and room >= 4 else ""
            cells.append([(f"{label} ", ""), (spark.ljust(room), SMOOTH), ("  ", "")])
        cells.append([(f"memory {memory}" if memory else "", "")])
        rows = [cells[i : i + across] for i in range(0, len(cells), across)]
        return [bar, *([piece for cell in row for piece in cell] for row in rows)]

    def _norm(self) -> str:
        norm = self._curves["norm"].y
        return f"norm {norm[-1]:.3g}" if norm else "norm -"


def panel(title: Row, lines: Sequence[Line], width: int, height: int) -> list[Row]:
    """A plot with its title above, the range of y beside and that of steps below it: height + 2 rows."""
    low, high = bounds(lines)
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    margin = max(map(len, labels.values()), default=0)
    room = width - margin - 1
    rows = [fitted(title, width)]
    for number, row in enumerate(braille(lines, room, height, low, high)):
        rows.append([(labels.get(number, "").rjust(margin) + "│", DIM), *row])
    first, last = f"{int(min(line.x[0] for line in lines)):,}", f"{int(max(line.x[-1] for line in lines)):,}"
    between = "─" * max(room - len(first) - len(last), 0)
    return [*rows, fitted([(" " * margin + "╰" + first + between + last, DIM)], width)]


def fitted(row: Iterable[tuple[str, str]], width: int) -> Row:
    """Cut or filled with spaces to the width."""
    found: Row = []
    for text, style in row:
        found.append((text[:width], style))
        width -= len(found[-1][0])
    return [*found, (" " * width, "")]


_STYLES = {name: Style.parse(name) for name in (RAW, SMOOTH, MEASURED, DIM, STRONG)}


def _segments(rows: list[Row]) -> Segments:
    """Rows without a break after the last one: the cursor stays in it."""
    found = []
    for number, row in enumerate(rows):
        found += [Segment.line()] if number else []
        found += [Segment(text, _STYLES.get(style)) for text, style in row if text]
    return Segments(found)
