"""Counters of what ran: which kernels, which fast paths, how often. Tests assert them, so that a fast path cannot die
silently while the values stay right."""

from __future__ import annotations

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
