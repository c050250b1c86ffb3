"""What a GPU can do, asked of NVIDIA's own code and not of the kernels that are compared with it: copies by the driver,
products by cuBLAS. Times are the host's clock's, from one wait for the GPU to the next, around as much work as makes a
launch count for nothing.

A GPU has no neighbour who takes half of it, but it has clocks that fall, and other programs: so every repetition stands
between two probes of 5 ms that copy memory, and counts only if both reach 0.9 of the highest rate ever seen.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.bench.case import Case
from zoo.bench.machine import CLEAN, LONG, MEDIUM, MEMORY
from zoo.core.device import device
from zoo.core.dtype import bfloat16

GPU_ROOFS = {"fma": "GFLOP/s", "tf32": "GFLOP/s", "bf16": "GFLOP/s", "f16": "GFLOP/s", "copy": "GB/s"}
"""As ROOFS. "fma": products of float32 as it is."""
WIDTH = 8192  # of the matrices: 1.1 TFLOP a product
BUFFER = 1 << 28  # bytes copied at once: several times the L2 of what people have
DTYPES: dict[str, Any] = {"fma": np.float32, "tf32": np.float32, "bf16": bfloat16, "f16": np.float16}
PEAKS = {"f32": "fma", "bf16": "bf16", "f16": "f16"}
"""Case.numbers -> the ceiling of its products; those of whole numbers have none here."""


class Gpu:
    """As Machine, of the GPU called `name`. `threads`: the host's, which launch.  Raises DeviceError."""

    def __init__(self, name: str, threads: int | None = None):
        self.device: Any = device(name)
        self.settings: dict[str, Any] = {"device": name}
        self.threads = threads or os.cpu_count() or 1
        self.ceiling = dict.fromkeys((*GPU_ROOFS, "read", "int8"), 0.0)  # no probe of the last: no share of it
        self._work: dict[str, tuple[Callable[[], None], float]] = {}

    def probe(self) -> float:
        """GB/s of copying now."""
        return self.bandwidth("copy")

    def clean(self, probe: float) -> bool:
        return probe >= CLEAN * self.ceiling["copy"]

    def bandwidth(self, kind: str) -> float:
        """GB/s now, of a copy, which also stands for "read"."""
        now = self._rate("copy", MEMORY)
        for name in ("copy", "read"):
            self.ceiling[name] = max(self.ceiling[name], now)
        return now

    def look(self, kind: str, seconds: float = MEDIUM) -> float:
        """Measures a ceiling, five times; -> the highest rate of the session."""
        best = max(self._rate(kind, seconds) for _ in range(5))
        self.ceiling[kind] = max(self.ceiling[kind], best)
        return self.ceiling[kind]

    def begin(self) -> None:
        """The ceilings that no probe beside a repetition finds; the memory they took is given back."""
        for _ in range(5):
            self.bandwidth("copy")
        for kind in DTYPES:
            self.look(kind)
            self._work.pop(kind, None)
        self.device.driver.release()

    def roofs(self) -> dict[str, float]:
        """Every ceiling, measured at length."""
        return {kind: self.look(kind, LONG) for kind in GPU_ROOFS}

    def floor(self, case: Case) -> dict[str, float] | None:
        """{"gflop", "gb", "milliseconds"}: what a run computes, what it moves, and the time of the slower of both at
        the ceilings; None where neither was counted."""
        if not (case.flops or case.floor_bytes):
            return None
        peak = self.ceiling.get(PEAKS.get(case.numbers, ""), 0.0)
        products = case.flops / 1e9 / peak if peak else 0.0
        moved = case.floor_bytes / 1e9 / self.ceiling["copy"] if self.ceiling["copy"] else 0.0
        return {"gflop": case.flops / 1e9, "gb": case.floor_bytes / 1e9, "milliseconds": 1000 * max(products, moved)}

    def describe(self) -> dict[str, Any]:
        driver, xp = self.device.driver, self.device.driver.xp
        return {
            "processor": driver.gpu,
            "isa": f"sm_{driver.arch}",
            "multiprocessors": driver.multiprocessors,
            "memory": driver.memory()[1],
            "driver": _driver(),
            "cuda": _cuda(xp),
            "cupy": xp.__version__,
            "threads": self.threads,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        }

    def _rate(self, kind: str, seconds: float) -> float:
        """In the unit of GPU_ROOFS; 0 for what the GPU lacks."""
        if kind in ("tf32", "bf16") and self.device.driver.arch < 80:
            return 0.0
        driver = self.device.driver
        with driver.current():
            if kind not in self._work:
                self._work[kind] = self._copy() if kind == "copy" else self._product(kind)
                self._timed(kind, 1)  # whatever the first call sets up
            once = self._timed(kind, 1)
            count = max(1, round(seconds / once))
            return count * self._work[kind][1] / self._timed(kind, count) / 1e9

    def _timed(self, kind: str, count: int) -> float:
        run, _ = self._work[kind]
        self.device.sync()
        start = time.perf_counter()
        for _ in range(count):
            run()
        self.device.sync()
        return max(time.perf_counter() - start, 1e-9)

    def _copy(self) -> tuple[Callable[[], None], float]:
        """(run, bytes read and written)"""
        xp = self.device.driver.xp
        source, target = xp.ones(BUFFER // 4, np.float32), xp.empty(BUFFER // 4, np.float32)
        return lambda: xp.copyto(target, source), 2.0 * source.nbytes

    def _product(self, kind: str) -> tuple[Callable[[], None], float]:
        """(run, operations). Of numbers that are not all alike, for power, and with it the clock, depends on them."""
        driver, n = self.device.driver, WIDTH
        values = np.random.default_rng(0).random((n, n), np.float32) - 0.5
        a, b = (driver.upload(part.astype(DTYPES[kind], copy=False)) for part in (values, values[::-1].copy()))
        c = driver.xp.empty((n, n), a.dtype)
        return lambda: driver.gemm(False, False, n, n, n, 1.0, a, n, 0, b, n, 0, 0.0, c, n, 0, 1,
                                   tf32=kind == "tf32"), 2.0 * n**3  # fmt: skip


def _driver() -> str:
    """Of the kernel's module, as nvidia-smi shows it; empty where the system does not say."""
    try:
        with open("/proc/driver/nvidia/version", encoding="ascii") as file:
            words = file.readline().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _cuda(xp: Any) -> str:
    """The newest CUDA that the driver knows."""
    version = xp.cuda.runtime.driverGetVersion()
    return f"{version // 1000}.{version % 1000 // 10}"
