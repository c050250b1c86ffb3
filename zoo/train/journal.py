"""The log of a run: one JSON object per line, with the step it belongs to; for a step and for an epoch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from zoo.hub.files import atomic
from zoo.train.watch import Epoch, Run, Step, Watcher


class Journal(Watcher):
    """Appends a record every so many steps and every epoch. A run that goes on first drops what came after the step
    it goes on from."""

    def __init__(self, path: Path, every: int = 1):
        self.path, self.every = path, every
        self._file: TextIO | None = None

    def opened(self, run: Run) -> None:
        self.cut(run.step)

    def stepped(self, step: Step) -> None:
        if step.step % self.every == 0:
            seconds = round(step.seconds, 3)
            self.write(step=step.step, epoch=step.epoch, loss=step.loss, lr=step.lr, seconds=seconds)

    def validated(self, epoch: Epoch) -> None:
        self.write(**asdict(epoch))

    def closed(self, reason: str) -> None:
        self._close()

    def write(self, **record: Any) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)  # by line, for who watches the file
        self._file.write(json.dumps(record) + "\n")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def cut(self, step: int) -> None:
        """Keeps the records up to `step`. A last line that a crash left unfinished goes too."""
        self._close()
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("step", 0) <= step:
                kept.append(line + "\n")
        with atomic(self.path) as part:
            part.write_text("".join(kept), encoding="utf-8")
