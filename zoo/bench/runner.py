"""Measures a case: its candidates take turns, each in its own process, and every repetition stands between two probes
of arithmetic, and two of memory if that limits the case.

A candidate that does not have its turn is stopped (SIGSTOP): the threads of BLAS libraries spin for a while after their
work, and would take half the machine from the next one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from zoo.bench.case import Case

WAITED = 0.05  # share of a repetition for which its threads may wait for a core that another process has
REPETITION = 0.015  # seconds that a repetition lasts at least; shorter runs are repeated within it
ROUNDS, ENOUGH = 3, 15  # repetitions of each candidate: at least, and when that many were clean, no more
PATIENCE = 600.0  # seconds until an answer is no longer waited for: OpenVINO converts a U-Net in 230
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ZOO_THREADS", "ZOO_BENCH_THREADS")
OURS = "ours"


class Prober(Protocol):
    """What the runner asks of a Machine."""

    threads: int
    ceiling: dict[str, float]
    settings: dict[str, Any]

    def probe(self) -> float: ...
    def clean(self, probe: float) -> bool: ...
    def bandwidth(self, kind: str) -> float: ...


class Failed(Exception):
    """A candidate cannot be measured: why, and the module that is not installed, if it is that."""

    def __init__(self, why: str, missing: str | None = None):
        super().__init__(why)
        self.missing = missing


class Worker:
    """A process that runs candidates of one package; started when first asked, and again after it was lost."""

    def __init__(self, package: str, threads: int):
        self.package = package
        self._environment = os.environ | dict.fromkeys(THREADS, str(threads))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer.  Raises Failed if that is an error, if it dies, and if none comes."""
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            self._signal("SIGCONT")
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], PATIENCE)[0]:
                self.close()
                raise Failed(f"no answer within {PATIENCE:.0f} seconds")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise Failed(self._last_words())
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], answer.get("missing"))
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
            self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "zoo.bench.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=self._environment
        )
        return self._process

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process is not None:
            self._process.send_signal(getattr(signal, name))

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        self.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"its process ended ({how})" + (f": {said[-1]}" if said else "")


@dataclass
class Repetition:
    seconds: float
    probe: float
    """GFLOP/s, the lower of those before and after; 0 if other processes had its cores."""
    bandwidth: float
    """GB/s, the mean of those before and after; 0 if memory does not limit the case."""


@dataclass
class Taken:
    """What was measured of one candidate: rates in the case's unit, the clean ones if there are any."""

    rates: list[float]
    clean: bool
    """False: no repetition was clean, and the best one stands for them all."""
    kept: int
    repetitions: int
    variant: str = ""
    version: str = ""
    bandwidths: list[float] = field(default_factory=list)
    """What memory could do beside each of `rates`, if it limits the case."""

    @property
    def bandwidth(self) -> float:
        return statistics.median(self.bandwidths)

    @property
    def share(self) -> float:
        """Of the bandwidth beside it."""
        return statistics.median(rate / most for rate, most in zip(self.rates, self.bandwidths, strict=True))

    @property
    def rate(self) -> float:
        return statistics.median(self.rates) if self.clean else max(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        if len(self.rates) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rates, n=4, method="inclusive")
        return (high - low) / 2 / statistics.median(self.rates)


@dataclass
class Row:
    """A case and what came out. `failed`: candidate -> why it has no figure."""

    case: Case
    taken: dict[str, Taken] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Candidate -> the module that is not installed."""
    ceiling: float = 0.0
    """The highest rate seen of what limits the case; 0 if nothing single does."""
    memory: dict[str, int] = field(default_factory=dict)
    """Candidate -> the most bytes that it took, of its variants the one that took least."""

    @property
    def roof(self) -> float:
        """What ours is compared with: the ceiling, or what memory could do beside it."""
        ours = self.taken.get(OURS)
        return ours.bandwidth if ours is not None and ours.bandwidths else self.ceiling

    @property
    def share(self) -> float | None:
        """Of the roof."""
        ours = self.taken.get(OURS)
        if ours is None or not self.ceiling:
            return None
        return ours.share if ours.bandwidths else ours.rate / self.ceiling


def _package(name: str) -> str:
    return "zoo-models" if name == OURS else name


def _function(case: Case, name: str) -> str:
    return case.ours if name == OURS else case.peers[name]


class Runner:
    """Holds the processes; close it, or use it in a `with`."""

    def __init__(self, machine: Prober, *, peers: bool, seconds: float):
        self.machine, self.peers, self.seconds = machine, peers, seconds
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def measure(self, case: Case, on_repetition: Callable[[], None] = lambda: None) -> Row:
        """Builds the candidates one after the other, and lets them take turns for `seconds`, or until each has enough
        clean repetitions, but three times in any case."""
        row = Row(case)
        built = self._build(case, row)
        counts = {name: max(1, round(REPETITION / max(answer["seconds"], 1e-9))) for name, answer in built.items()}
        times: dict[str, list[Repetition]] = {name: [] for name in built}
        end, rounds, before = time.monotonic() + self.seconds, 0, self._probes(case)
        while times and (rounds < ROUNDS or (time.monotonic() < end and not self._enough(times))):
            for name in list(times):
                try:
                    answer = self._workers[name].ask(run=counts[name])
                except Failed as failure:
                    row.failed[name] = str(failure)
                    del times[name]
                    continue
                after = self._probes(case)
                probe = min(before[0], after[0]) if answer["waited"] <= WAITED else 0.0
                times[name].append(Repetition(answer["seconds"], probe, (before[1] + after[1]) / 2))
                before = after
                on_repetition()
            rounds += 1
        row.ceiling = self.machine.ceiling[case.roof] if case.roof else 0.0
        row.taken = {name: self._taken(case, found, built[name]) for name, found in times.items()}
        if case.memory and not self.machine.settings:  # what a GPU's memory holds, no system call tells
            self._measure_memory(case, row, built)
        return row

    def _measure_memory(self, case: Case, row: Row, built: Mapping[str, Mapping[str, Any]]) -> None:
        for name in row.taken:
            try:
                row.memory[name] = self._peak(case, name, built[name]["variants"])
            except Failed as failure:
                row.failed[name] = f"its memory: {failure}"

    def _peak(self, case: Case, name: str, variants: list[str]) -> int:
        """Bytes. Each variant has a new process, for memory that another left behind would hide what it takes."""
        package, found = _package(name), []
        for variant in variants:
            worker = Worker(package, self.machine.threads)
            request = {"peak": _function(case, name), "settings": dict(case.settings), "package": package}
            try:
                found.append(worker.ask(**request, variant=variant)["bytes"])
            finally:
                worker.close()
        return min(found)

    def _probes(self, case: Case) -> tuple[float, float]:
        """GFLOP/s and GB/s now."""
        bandwidth = self.machine.bandwidth(case.roof) if case.roof and case.limited_by_memory else 0.0
        return self.machine.probe(), bandwidth

    def _build(self, case: Case, row: Row) -> dict[str, Mapping[str, Any]]:
        built: dict[str, Mapping[str, Any]] = {}
        for name in (OURS, *(case.peers if self.peers else ())):
            package = _package(name)
            if name not in self._workers:
                self._workers[name] = Worker(package, self.machine.threads)
            try:
                built[name] = self._workers[name].ask(
                    build=_function(case, name), settings={**case.settings, **self.machine.settings}, package=package
                )
                row.failed |= {f"{name}, {variant}": why for variant, why in built[name].get("dropped", {}).items()}
            except Failed as failure:
                row.failed[name] = str(failure)
                if failure.missing:
                    row.missing[name] = failure.missing
        if OURS in built:
            true = built[OURS]["rms"]
            for name in [n for n in built if abs(built[n]["rms"] - true) > case.agree * abs(true)]:
                row.failed[name] = (
                    f"computes something else: root mean square {built.pop(name)['rms']:.6g}, ours {true:.6g}"
                )
        return built

    def _enough(self, times: Mapping[str, list[Repetition]]) -> bool:
        return all(sum(self.machine.clean(r.probe) for r in found) >= ENOUGH for found in times.values())

    def _taken(self, case: Case, found: list[Repetition], built: Mapping[str, Any]) -> Taken:
        clean = [r for r in found if self.machine.clean(r.probe)]
        rates = [case.rate(r.seconds) for r in clean or found]
        bandwidths = [r.bandwidth for r in clean or found] if case.limited_by_memory else []
        kept = (bool(clean), len(clean), len(found))
        return Taken(rates, *kept, built["variant"], built["version"], bandwidths)
