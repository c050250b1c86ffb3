"""A whole run of `zoo bench`: which cases there are, measuring them one by one, keeping what was measured in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo import port as ports
from zoo.bench import report
from zoo.bench.case import Case
from zoo.bench.gpu import Gpu
from zoo.bench.machine import Machine
from zoo.bench.runner import Runner
from zoo.core.errors import ZooError

KERNELS = "kernels"


def cases_of(what: str, only: str | None, device: str = "cpu") -> list[Case]:
    """The cases of "kernels" or of a port on a device, whose name contains `only`.  Raises ZooError."""
    if what == KERNELS:
        module = "zoo.bench.kernels"
    else:
        try:
            port = ports.get(what)
        except ZooError as error:
            raise ZooError(
                f"there is nothing to bench named {what!r}", error.why, f"Or: roof, {KERNELS}. {error.fix}"
            ) from error
        if port.bench is None:
            raise ZooError(
                f"{port.name} has no benchmark yet",
                "its record names no module with cases",
                f"Try `zoo bench {KERNELS}`.",
            )
        module = port.bench
    found = import_module(module)
    cases: tuple[Case, ...] = found.CASES if device == "cpu" else getattr(found, "CUDA_CASES", found.CASES)
    chosen = [case for case in cases if only is None or only in case.name]
    if not chosen:
        names = ", ".join(dict.fromkeys(case.name.partition(" ")[0] for case in cases))
        raise ZooError(
            f"no case of {what} has {only!r} in its name",
            f"names begin with: {names}",
            f"`zoo bench {what} --list` shows all.",
        )
    return chosen


class Session:
    """`save`: a file that gets the document after every case; cases that it holds clean are not measured again.
    Raises ZooError if it comes from another machine, instruction set or number of threads."""

    def __init__(self, machine: Machine | Gpu, *, peers: bool, seconds: float, save: Path | None = None):
        self.machine, self.peers, self.seconds, self.save = machine, peers, seconds, save
        before = report.read(save) if save is not None and save.exists() else {"rows": [], "ceilings": {}}
        self._check_machine(before.get("machine"))
        self.rows: dict[str, report.Entry] = {row["case"]: row for row in before["rows"]}
        for kind, rate in before["ceilings"].items():
            machine.ceiling[kind] = max(machine.ceiling[kind], rate)

    def run(
        self, cases: list[Case], watch: Callable[[int, Case], None] = lambda n, case: None
    ) -> Iterator[report.Entry]:
        """The entries of these cases, as they come. `watch(number, case)` hears of each that begins."""
        with Runner(self.machine, peers=self.peers, seconds=self.seconds) as runner:
            self.machine.begin()
            for number, case in enumerate(cases):
                if not self._measured(case):
                    watch(number, case)
                    row = report.entry(runner.measure(case))
                    if isinstance(self.machine, Gpu):
                        row["floor"] = self.machine.floor(case)
                    self.rows[case.name] = row
                    self._write()
                yield self.rows[case.name]

    def document(self) -> dict[str, Any]:
        """All that was measured, and what the file had before."""
        return report.document(self.machine.describe(), self.machine.ceiling, self.rows.values())

    def _measured(self, case: Case) -> bool:
        """It is in the file, clean, with every peer that is asked for and can be had."""
        row = self.rows.get(case.name)
        if row is None or not row["clean"] or (case.memory and not self.machine.settings and not row.get("memory_mb")):
            return False
        return not self.peers or all(name in {**row["peers"], **row["failed"]} for name in case.peers)

    def _check_machine(self, before: Any) -> None:
        now = self.machine.describe()
        for fact in ("processor", "isa", "threads"):
            if before is not None and before[fact] != now[fact]:
                raise ZooError(
                    f"{self.save} was measured elsewhere",
                    f"its {fact}: {before[fact]}; here: {now[fact]}",
                    "Name another file, or remove this one.",
                )

    def _write(self) -> None:
        if self.save is not None:
            part = self.save.with_name(self.save.name + ".part")
            part.write_text(json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, self.save)
