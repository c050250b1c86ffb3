"""What a run leaves in its directory while it goes on: `log.jsonl`, one JSON object per line for every logged step and
every epoch, the same as a table in `metrics.csv`, and `run.json`, what was trained, where, and how it ended."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from zoo.core.errors import DataError, WeightsError
from zoo.hub.files import atomic, writing
from zoo.train.watch import Epoch, Pace, Run, Step, Watcher

LOG, TABLE, FACTS = "log.jsonl", "metrics.csv", "run.json"


class Journal(Watcher):
    """Writes them, every so many steps. What a run that goes on had written after the step it goes on from is dropped.
    Raises WeightsError if the disk is full or the directory cannot be written to."""

    def __init__(self, out: Path, every: int = 1):
        self.out, self.every = out, every
        self._log: TextIO | None = None
        self._table: Table | None = None
        self._pace = Pace()
        self._facts: dict[str, Any] = {}

    def opened(self, run: Run) -> None:
        self._close()
        kept = [record for record in read_log(self.out / LOG) if record.get("step", 0) <= run.step]
        with atomic(self.out / LOG) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        with writing(self.out / LOG):
            self._log = (self.out / LOG).open("a", encoding="utf-8", buffering=1)  # by line, for who watches the file
        self._table = Table(self.out / TABLE, [_row(record) for record in kept])
        self._unit = run.unit
        self._facts = {**asdict(run), "out": str(run.out), **environment(), "ended": None}
        self._write_facts()
        self._pace.start()

    def stepped(self, step: Step) -> None:
        self._pace.step(step)
        if step.step % self.every == 0:
            record = {name: getattr(step, name) for name in ("step", "epoch", "loss", "lr", "grad_norm")}
            record |= {"seconds": round(step.seconds, 3), "memory": step.memory, **self._pace.rates(self._unit)}
            self._write(record)
            self._pace.start()

    def validated(self, epoch: Epoch) -> None:
        self._write(asdict(epoch))

    def closed(self, reason: str) -> None:
        if self._log is not None:
            self._facts |= {"ended": reason, "ended_at": _now()}
            with contextlib.suppress(WeightsError):  # a full disk that ended the run is told by who met it first
                self._write_facts()
        self._close()

    def _write(self, record: dict[str, Any]) -> None:
        assert self._log is not None and self._table is not None
        with writing(self.out / LOG):
            self._log.write(json.dumps(record) + "\n")
            self._table.write(_row(record))

    def _write_facts(self) -> None:
        with atomic(self.out / FACTS) as part:
            part.write_text(json.dumps(self._facts, indent=1, default=str) + "\n", encoding="utf-8")

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
        if self._table is not None:
            self._table.close()
        self._log = self._table = None


class Table:
    """A CSV file that grows by rows, and is written anew when a row brings columns that it has not had."""

    def __init__(self, path: Path, rows: list[dict[str, Any]]):
        self.path = path
        self._renew(rows)

    def write(self, row: dict[str, Any]) -> None:
        if all(name in self.columns for name in row):
            self._file.write(self._text([row]))
            return
        self.close()
        with self.path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        self._renew([*rows, row])

    def close(self) -> None:
        self._file.close()

    def _renew(self, rows: list[dict[str, Any]]) -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        head = [dict(zip(self.columns, self.columns, strict=True))] if rows else []
        with atomic(self.path) as part:
            part.write_text(self._text([*head, *rows]), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def _text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


@dataclass(frozen=True)
class Records:
    """What a run left: its facts (run.json), the records of its logged steps and those of its epochs."""

    facts: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


def read(out: Path) -> Records:
    """What is there of a run in `out`, however it ended. Raises DataError if there is no log."""
    if not (out / LOG).is_file():
        why = f"there is no {LOG} in it" if out.is_dir() else "no such directory"
        raise DataError(f"{out} holds no run", why, "Name the directory that `zoo finetune` was given as --out.")
    records = read_log(out / LOG)
    try:
        facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    steps = [record for record in records if "metrics" not in record]
    return Records(facts, steps, [record for record in records if "metrics" in record])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; [] without one. A last line that a crash left unfinished is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Where and by what a run was started."""
    import zoo

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "started": _now(), "command": sys.argv, "host": platform.node(), "pid": os.getpid(),
        "machine": f"{processor()}, {cores} cores, {platform.system()} {platform.release()}",
        "versions": {"zoo": zoo.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }  # fmt: skip


def processor() -> str:
    """Its name, where the system says it; else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of the table: of an epoch, its mean loss and its metrics in columns of their own."""
    if "metrics" not in record:
        return record
    measured = {f"validation_{name}": value for name, value in record["metrics"].items()}
    return {**{k: record[k] for k in ("step", "epoch", "seconds")}, "epoch_loss": record["loss"], **measured}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
