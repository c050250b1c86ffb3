"""Candidates for the runner's tests, imported in the workers' processes: quick, slow, broken in every way."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from zoo.bench.case import Variants

Run = Callable[[], object]
CASES = ()


def quick(value: float = 2.0) -> Run:
    return lambda: [value, -value]


def slow() -> Run:
    return lambda: time.sleep(0.02) or [2.0, 2.0]


def two_layouts() -> dict[str, Run]:
    return {"slow": slow(), "quick": quick()}


def large() -> Variants:
    def variant(megabytes: int) -> Run:
        kept = bytearray(os.urandom(1 << 20)) * megabytes
        return lambda: [2.0 * len(kept) / len(kept)] * 2

    return Variants({"most": partial(variant, 60), "least": partial(variant, 30)})


def noisy() -> Run:
    print("a library greets on stdout")
    return quick()


def raising() -> Run:
    raise ValueError("no such shape\nsecond line")


def crashing() -> Run:
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(7)


def crashing_later() -> Run:
    left = [4]

    def run() -> object:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return [2.0]

    return run


def missing() -> Run:
    import a_package_that_is_not_there  # noqa: F401

    return quick()


def crowded() -> Run:
    """More busy processes than cores."""
    import multiprocessing

    cores = len(os.sched_getaffinity(0))
    crowd = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(2 * cores)]
    for one in crowd:
        one.start()

    def run() -> object:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass
        return [2.0]

    return run


def _spin() -> None:
    end = time.perf_counter() + 1.5
    while time.perf_counter() < end:
        pass


def process() -> Run:
    return lambda: float(os.getpid())
