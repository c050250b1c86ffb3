"""Counters of what ran (which kernels, which fast paths, how often), and the memory that was needed. Tests assert the
counters, so that a fast path cannot die silently while the values stay right."""

from __future__ import annotations

import os
import sys
from collections import Counter

_COUNTS: Counter[str] = Counter()


def count(name: str, n: int = 1) -> None:
    _COUNTS[name] += n


def stats(reset: bool = False) -> dict[str, int]:
    """A copy of all counters, by name ("cpu.gemm_f32"); `reset=True` then sets them to zero."""
    now = dict(_COUNTS)
    if reset:
        _COUNTS.clear()
    return now


def available_memory() -> int | None:
    """Bytes that a program can take without pushing others out; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kilobytes = {line.partition(":")[0]: line.split()[1] for line in file}
        return int(kilobytes["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def memory() -> int | None:
    """Bytes that this process holds now; None where the system does not say. Takes some 10 us."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:  # Linux: getrusage begins with what the program held that started this one
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
