"""Measured choices between algorithms, remembered in a file of the user's cache.

Algorithms differ in the last bits of their results, so nothing is measured unless it is asked for: ZOO_TUNE=1 measures
every shape that is not in the file when it first occurs (a few calls of each candidate) and adds it; without it the
file is followed and never changed; ZOO_TUNE=0 leaves it unread.

The file holds {machine: {shape: choice}}, machine being processor, instruction set, threads and the version of the
kernels. It is replaced as a whole, by a rename, after what others wrote meanwhile was read in: a reader never sees half
a file; of two processes that write in the same moment one may lose what it added, which is measured again next time.
A file that is not such a document counts as empty.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from zoo.core.stats import count

VERSION = 2  # of the kernels: raised when what is fastest may have changed
ROUNDS, MOST = 5, 0.3  # rounds of a measurement, unless they take longer than this in seconds


class Choices:
    def __init__(self, mode: str | None, path: Path | None = None):
        """mode: the value of ZOO_TUNE."""
        self.follows, self.measures = mode != "0", mode == "1"
        self._path = path
        self._known: dict[str, dict[str, Any]] | None = None

    @property
    def path(self) -> Path:
        from platformdirs import user_cache_path

        return self._path or user_cache_path("zoo-models", appauthor=False) / "tuning.json"

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            document = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(document, dict):
            return {}
        return {str(machine): dict(shapes) for machine, shapes in document.items() if isinstance(shapes, dict)}

    def find(self, machine: str, shape: str, candidates: Callable[[], Mapping[int, Callable[[], Any]]]) -> int | None:
        """The choice for this shape; None where nothing is known and nothing may be measured.  candidates: makes what
        is to be timed, by choice."""
        if not self.follows:
            return None
        if self._known is None:
            self._known = self._read()
        found = self._known.get(machine, {}).get(shape)
        if isinstance(found, int) or not self.measures:
            return found if isinstance(found, int) else None
        best = fastest(candidates())
        self._add(machine, shape, best)
        return best

    def _add(self, machine: str, shape: str, choice: int) -> None:
        known = self._read()
        for place, shapes in (self._known or {}).items():
            known.setdefault(place, {}).update(shapes)
        known.setdefault(machine, {})[shape] = choice
        self._known = known
        count("cpu.tuned")
        with contextlib.suppress(OSError):  # a cache that cannot be written is only measured again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(known, file, indent=1, sort_keys=True)
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise


def fastest(candidates: Mapping[int, Callable[[], Any]]) -> int:
    """The candidate with the shortest run, of rounds in which each runs once: a slow spell of the machine meets all."""
    for run in candidates.values():
        run()
    best = dict.fromkeys(candidates, float("inf"))
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for choice, run in candidates.items():
            start = time.perf_counter()
            run()
            best[choice] = min(best[choice], time.perf_counter() - start)
        if time.perf_counter() - began > MOST:
            break
    return min(best, key=lambda choice: best[choice])


@cache
def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(native: Any) -> str:
    return f"{processor()}, {native.isa()}, {native.threads()} threads, kernels {VERSION}"
