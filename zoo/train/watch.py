"""What a run tells to those who watch it: the screen, the log, the report, and whoever is given as Learner(watchers=).

    class Beep(Watcher):
        def validated(self, epoch):
            print("\\a")

    Learner(model, data, ..., watchers=[Beep()]).fit(epochs=3)

A watcher is called between steps, by the thread that trains: what it takes is taken from training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A run as it begins or goes on. step: how many are done before (not 0 after a resume); total: how many will be
    done in all. Parameters are counted in values. unit: what `Step.count` counts, "tokens" or "examples"."""

    name: str
    step: int
    total: int
    steps_per_epoch: int
    trainable: int
    parameters: int
    device: str
    unit: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None

    @property
    def epochs(self) -> int:
        return -(-self.total // self.steps_per_epoch)


@dataclass(frozen=True)
class Step:
    """A step that is done, on `rows` examples, of which `count` entries (tokens, or the examples themselves). epoch is
    counted from 1; seconds of training so far; took: seconds of this step and its data, without validation; memory in
    bytes that the process holds (None where the system does not say); grad_norm before clipping
    (None where it was not worked out)."""

    step: int
    epoch: int
    loss: float
    lr: float
    rows: int
    count: float
    grad_norm: float | None
    seconds: float
    took: float
    memory: int | None


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: the mean loss of its steps, seconds of training so far, validation metrics."""

    epoch: int
    step: int
    loss: float
    seconds: float
    metrics: dict[str, float]


class Watcher:
    """Is told of a run; what it does not care for, it leaves out."""

    def opened(self, run: Run) -> None:
        """Training begins, or goes on after a resume. A second `fit` opens again."""

    def stepped(self, step: Step) -> None:
        """A step is done; called after every one."""

    def validated(self, epoch: Epoch) -> None:
        """An epoch is done and validated."""

    def say(self, text: str) -> None:
        """Something that whoever trains should read."""

    def closed(self, reason: str) -> None:
        """Training ended: "finished", "stopped" (Ctrl-C, SIGTERM), or what went wrong. Called also when `opened` of a
        later watcher failed."""


class Watchers(Watcher):
    """Several as one, told in their order; all are told of the end, also when one fails at it."""

    def __init__(self, each: Iterable[Watcher]):
        self.each = list(each)

    def opened(self, run: Run) -> None:
        for watcher in self.each:
            watcher.opened(run)

    def stepped(self, step: Step) -> None:
        for watcher in self.each:
            watcher.stepped(step)

    def validated(self, epoch: Epoch) -> None:
        for watcher in self.each:
            watcher.validated(epoch)

    def say(self, text: str) -> None:
        for watcher in self.each:
            watcher.say(text)

    def closed(self, reason: str) -> None:
        with contextlib.ExitStack() as stack:
            for watcher in reversed(self.each):
                stack.callback(watcher.closed, reason)


class Pace:
    """Examples and entries per second over some steps."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.rows, self.count, self.seconds = 0, 0.0, 0.0

    def step(self, step: Step) -> None:
        self.rows, self.count, self.seconds = self.rows + step.rows, self.count + step.count, self.seconds + step.took

    def rates(self, unit: str) -> dict[str, float]:
        """Name -> per second: of examples, and of the run's unit where that is another."""
        seconds = max(self.seconds, 1e-9)
        found = {"examples_per_second": round(self.rows / seconds, 2)}
        return found if unit == "examples" else {**found, f"{unit}_per_second": round(self.count / seconds, 2)}
