"""How row-wise work is laid out: teams along rows, tiles down columns, 16 bytes for each thread of what is flat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import contiguous
from zoo.core.dtype import bfloat16, float16, float32

Kernels = dict[str, Callable[..., Any]]
STORED = frozenset((float32, float16, bfloat16))
THREADS = 256
BLOCKS = 1024  # several for every multiprocessor of the largest GPU; one number, for one result on all of them

# (threads of a team, values that each holds): the first that holds the row; 0: it is read again at every pass
TEAMS = ((32, 32), (256, 16), (1024, 16), (1024, 0))


def stored(*arrays: Any) -> bool:
    """Whether kernels load these (None is none), and all hold something."""
    return all(a is None or (a.dtype in STORED and a.size) for a in arrays)


def alike(*arrays: Any) -> bool:
    """As stored, and all of one dtype."""
    return stored(*arrays) and all(a is None or a.dtype == arrays[0].dtype for a in arrays)


def packed(b: Any, *arrays: Any) -> tuple[Any, ...]:
    """Each in one run; of numpy's scalars, which indexing makes where CuPy makes arrays, arrays."""
    return tuple(a if a is None else b.xp.asarray(a) if isinstance(a, np.generic) else contiguous(b, a) for a in arrays)


def vector(dtype: Any) -> int:
    """Values in 16 bytes."""
    return 16 // dtype.itemsize


def divided(n: int, by: int) -> int:
    return -(-n // by)


def flat(places: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of one thread for each place."""
    return (divided(places, THREADS),), (THREADS,)


def rows_of(x: Any) -> tuple[int, int]:
    return x.size // x.shape[-1], x.shape[-1]


class Team(NamedTuple):
    constants: dict[str, int]
    grid: tuple[int]
    block: tuple[int]


def team(rows: int, columns: int, dtype: Any) -> Team:
    """The layout of cu/rows.cuh."""
    threads, held = next(((t, h) for t, h in TEAMS if columns <= t * h), TEAMS[-1])
    constants = {"TEAM": threads, "VECTORS": held // vector(dtype)}
    if threads == 32:
        return Team(constants, (divided(rows, THREADS // 32),), (THREADS,))
    return Team(constants, (rows,), (threads,))


class Tiles(NamedTuple):
    constants: dict[str, int]
    step: int
    parts: int
    grid: tuple[int]


def tiles(outer: int, rows: int, columns: int, dtype: Any) -> Tiles:
    """The layout of cu/columns.cuh: parts of 4 to 64 rows for each thread, so that there are about BLOCKS blocks."""
    lanes = 8 if columns > 2 * vector(dtype) else 1
    across, height = divided(columns, lanes * vector(dtype)), THREADS // lanes
    each = min(max(divided(rows * outer * across, BLOCKS * height), 4), 64)
    step = each * height
    parts = divided(rows, step)
    return Tiles({"LANES": lanes}, step, parts, (outer * parts * across,))


def whole(*values: int) -> tuple[Any, ...]:
    """int64_t arguments."""
    return tuple(np.int64(v) for v in values)


def small(*values: int) -> tuple[Any, ...]:
    """int arguments."""
    return tuple(np.int32(v) for v in values)


def real(*values: float) -> tuple[Any, ...]:
    """float arguments."""
    return tuple(np.float32(v) for v in values)
