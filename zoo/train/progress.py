"""What a run shows on stderr where that is no terminal: a line now and then, one for each epoch, and how it ended."""

from __future__ import annotations

import os
import sys
import time
from collections import deque

from zoo.core.stats import peak_memory
from zoo.train.best import best
from zoo.train.watch import Epoch, Run, Step, Watcher

PLAIN = 10.0  # seconds between lines
REPORT = "report.html"
RECENT = 100  # steps over which the speed is worked out


def screen() -> Watcher:
    """The dashboard on a terminal that can show it, plain lines elsewhere."""
    encoding = (getattr(sys.stderr, "encoding", None) or "").lower().replace("-", "")
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and encoding == "utf8":
        from zoo.train.dashboard import Dashboard

        return Dashboard()
    return Progress()


class Progress(Watcher):
    """Plain lines. What the dashboard (zoo/train/dashboard.py) says in words, it takes from here."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.last: Step | None = None
        self._next = 0.0

    def opened(self, run: Run) -> None:
        self.run, self.last = run, None
        self.epochs: list[Epoch] = []
        self._recent: deque[Step] = deque(maxlen=RECENT)
        self._validation, self._stepped = 0.0, time.perf_counter()  # seconds of a validation, when the last step ended
        self._next = self._stepped + PLAIN

    def stepped(self, step: Step) -> None:
        self.last = step
        self._recent.append(step)
        self._stepped = now = time.perf_counter()
        if now >= self._next and self.run is not None:
            self._next = now + PLAIN
            where = f"step {step.step}/{self.run.total}  epoch {step.epoch}"
            self.write(f"{where}  loss {step.loss:.4f}  {self.speed()}, {clock(self.left())} left")

    def validated(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        self._validation = time.perf_counter() - self._stepped
        found = ", ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
        measured = f" · validation: {found}" if found else ""
        self.write(f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{measured} · {epoch.seconds:.0f} s")

    def say(self, text: str) -> None:
        self.write(text)

    def closed(self, reason: str) -> None:
        run, self.run = self.run, None
        if run is None:
            return
        if self.last is not None and reason == "finished":
            self.write(self.summary(run, self.last))
        if run.out is not None and (run.out / REPORT).is_file():
            self.write(f"report: {run.out / REPORT}")

    def write(self, text: str) -> None:
        """A line that stays."""
        print(text, file=sys.stderr, flush=True)

    def speed(self) -> str:
        """Of the last steps, in the run's unit."""
        assert self.run is not None
        seconds = max(sum(step.took for step in self._recent), 1e-9)
        return f"{short(sum(step.count for step in self._recent) / seconds)} {self.run.unit}/s"

    def left(self) -> float:
        """Seconds to the end, if it goes on as the last steps went."""
        assert self.run is not None and self.last is not None
        each = sum(step.took for step in self._recent) / max(len(self._recent), 1)
        steps = self.run.total - self.last.step
        return steps * each + (steps // self.run.steps_per_epoch) * self._validation

    def summary(self, run: Run, last: Step) -> str:
        """What was trained, how long it took, the best that was measured and when."""
        share = "" if run.trainable == run.parameters else f" of {short(run.parameters)}"
        memory = peak_memory()
        used = "" if memory is None else f", {size(memory)} of memory"
        text = (
            f"trained {run.name}: {short(run.trainable)}{share} parameters, {last.step:,} steps in "
            f"{clock(last.seconds)}{used}"
        )
        found = best(self.epochs)
        if found is None:
            return text
        measured = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        return f"{text}\nbest epoch: {found.epoch} of {self.epochs[-1].epoch}, {measured}"


def clock(seconds: float) -> str:
    """1:02:03, 2:03, 0:03."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """1,234; 431 thousand and more with a letter: 431k, 1.10B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale * (10 if unit == "k" else 1):
            return f"{number / scale:.3g}{unit}" if number / scale < 1000 else f"{number / scale:,.0f}{unit}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def size(nbytes: float) -> str:
    """512 MB, 1.24 GB."""
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
