"""Numbers that every candidate gets the same, and weights too many for the caches."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

COLD = 1 << 28  # bytes: several times the last-level cache of what people have
MOST = 16  # copies


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Float32, even over [-0.5, 0.5); begins at a cache line, which numpy's own arrays do not."""
    count = math.prod(shape)
    memory = np.empty(count + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    values = memory[start : start + count]
    np.random.default_rng(seed).random(count, np.float32, values)
    values -= 0.5
    return values.reshape(shape)


def copies(nbytes: int) -> int:
    """How many weights of this size must take turns, so that each comes from memory as in a model of many layers."""
    return max(1, min(MOST, -(-COLD // nbytes)))


def in_turn(runs: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Each call runs the next of them."""
    if len(runs) == 1:
        return runs[0]
    turns = itertools.cycle(runs)
    return lambda: next(turns)()


def threads() -> int:
    """How many threads the runner gives each candidate."""
    return int(os.environ.get("ZOO_BENCH_THREADS", "0")) or os.cpu_count() or 1
