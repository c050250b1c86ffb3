"""Programs on the cpu device: the tile interpreter of csrc/tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.fusion.program import Op, Program, compiled

# numbers; below, they stay in the cache and op by op is quicker: recording takes 5 us an op, a run 20
SMALL = 1 << 17


class Tiles:
    """Compiles and runs programs. What all such executors have: small, array, reads, whole, compiled, empty, run."""

    array = np.ndarray

    def __init__(self, native: Any):
        self.native = native
        self.small = SMALL

    def reads(self, a: Any) -> bool:
        """Whether a program can take this array."""
        return (type(a) is np.ndarray and a.flags.aligned) or isinstance(a, np.generic)

    def whole(self, columns: int) -> bool:
        """Whether rows of so many columns need another program than longer ones."""
        return columns <= self.native.TILE_WHOLE

    def compiled(self, ops: tuple[Op, ...], outputs: tuple[tuple[int, str], ...], whole: bool) -> Program | None:
        return compiled(self.native, ops, outputs, whole)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def run(
        self, program: Program, inputs: list[Any], outputs: list[Any], numbers: list[float], space: tuple[int, ...]
    ) -> None:
        program.run([_plain(a) for a in inputs], [_plain(a) for a in outputs], numbers + program.constants, space)


def _plain(array: np.ndarray) -> np.ndarray:
    """As the buffer protocol knows it: half precision as 16-bit words."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array
