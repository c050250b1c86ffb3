"""What this machine can do: ceilings of arithmetic and memory, and the short probe that says whether it can do so now.

Machines are bistable: a neighbour on the same physical core halves what one gets, for seconds or minutes. So every
repetition stands between two probes of 0.1 ms of register arithmetic, and counts only if both reached 0.9 of the
highest rate ever seen (and if no other process had the cores meanwhile, which the system counts). What memory can do is
bistable too, and independently: 45 or 72 GB/s were read for minutes each, by the same two cores. So a repetition that
memory limits also stands between two probes of 5 ms of reading or copying, and is compared with those.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from zoo.bench.case import ROOFS
from zoo.core.device import device

CLEAN = 0.9
SHORT, MEMORY, MEDIUM, LONG = 1e-4, 5e-3, 2e-2, 0.25  # seconds of a probe
LEAST_BUFFER, MOST_BUFFER = 1 << 28, 1 << 31


class Machine:
    """The native kernels' view of this machine, with `threads` threads (None: one for each physical core).

    `ceiling` holds the highest rate seen so far of each kind, in the units of ROOFS; 0 is what the processor lacks.
    Raises DeviceError where the native kernels were not built.
    """

    def __init__(self, threads: int | None = None):
        self.settings: dict[str, Any] = {}  # what every builder is told beside the case's own
        self.device: Any = device("cpu")
        self._native = self.device.native
        self.threads = threads or self._native.threads()
        self.ceiling = dict.fromkeys(ROOFS, 0.0)
        self._buffer: np.ndarray | None = None
        self._position = 0

    def probe(self) -> float:
        """GFLOP/s of registers now: the best of three tries, since threads that slept take a moment to run."""
        now = max(self._rate("fma", SHORT) for _ in range(3))
        self.ceiling["fma"] = max(self.ceiling["fma"], now)
        return now

    def clean(self, probe: float) -> bool:
        return probe >= CLEAN * self.ceiling["fma"]

    def bandwidth(self, kind: str) -> float:
        """GB/s now, of "read" or "copy"."""
        now = self._rate(kind, MEMORY)
        self.ceiling[kind] = max(self.ceiling[kind], now)
        return now

    def look(self, kind: str, seconds: float = MEDIUM) -> float:
        """Measures a ceiling, five times; -> the highest rate of the session."""
        best = max(self._rate(kind, seconds) for _ in range(5))
        self.ceiling[kind] = max(self.ceiling[kind], best)
        return self.ceiling[kind]

    def begin(self) -> None:
        """The ceilings that no probe beside a repetition finds."""
        for kind in ("fma", "int8", "bf16"):
            self.look(kind)

    def roofs(self) -> dict[str, float]:
        """Every ceiling, measured at length."""
        return {kind: self.look(kind, LONG) for kind in ROOFS}

    def _rate(self, kind: str, seconds: float) -> float:
        before = self._native.threads()
        self._native.set_threads(self.threads)
        try:
            return (
                self._native.probe(kind, seconds, self._memory() if kind in ("read", "copy") else None, self._position)
                / 1e9
            )
        finally:
            self._native.set_threads(before)

    def _memory(self) -> np.ndarray:
        """Eight times what the last-level cache holds, at least 256 MB; each probe begins elsewhere."""
        if self._buffer is None:
            nbytes = min(MOST_BUFFER, max(LEAST_BUFFER, 8 * _last_level_cache())) // (1 << 20) * (1 << 20)
            raw = np.ones(nbytes // 4 + 16, np.float32)
            start = -raw.ctypes.data % 64 // 4
            self._buffer = raw[start : start + nbytes // 4]
        self._position += 1 << 21
        return self._buffer

    def describe(self) -> dict[str, Any]:
        """Processor, instruction set, threads, caches: what figures are worth nothing without."""
        return {
            "processor": _processor(),
            "features": self._native.features(),
            "isa": self._native.isa(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": self.threads,
            "last_level_cache": _last_level_cache(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        }


def _last_level_cache() -> int:
    """Bytes; 0 where the system does not say."""
    for level in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE"):
        if level in getattr(os, "sysconf_names", {}) and os.sysconf(level) > 0:
            return os.sysconf(level)
    return 0


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
