"""Random numbers that are the same on every device and in every resumed run (see philox.py for how)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from zoo.core import philox
from zoo.core.dtype import float32
from zoo.core.errors import ZooError
from zoo.core.prims import TABLE
from zoo.core.tensor import Tensor, bind

BLOCK = philox.WORDS  # numbers that a step of `offset` stands for


class Generator:
    """A stream of random numbers: `seed` names the stream, `offset` counts the blocks that were drawn from it.

    The two integers are the whole state: save them, and the stream goes on exactly where it was.
    """

    start: Tensor | None = None
    """While a step is captured: what it draws is counted from here, one int64 that is another in every replay."""

    def __init__(self, seed: int = 0, offset: int = 0):
        self.seed, self.offset = int(seed) % 2**64, int(offset)

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, offset={self.offset})"

    @contextlib.contextmanager
    def counted_from(self, start: Tensor) -> Iterator[None]:
        """Offsets are relative to `start` meanwhile, which must hold what `offset` is now; then it goes on behind what
        was drawn. For ops that take a start (dropout); everything else refuses to draw."""
        begin, self.offset, self.start = self.offset, 0, start
        try:
            yield
        finally:
            self.offset, self.start = begin + self.offset, None

    def _not_captured(self) -> None:
        if self.start is not None:
            raise ZooError(
                "this step cannot be captured", "it draws numbers that would be those of its first run ever after",
                "Draw them outside, and give them to the step.",
            )  # fmt: skip

    def take(self, n: int) -> int:
        """Reserves the blocks for n numbers and returns the offset of the first."""
        at = self.offset
        self.offset += philox.blocks_for(n)
        return at

    def uniform(
        self, shape: Any, *, low: float = 0.0, high: float = 1.0, dtype: Any = float32, device: Any = None
    ) -> Tensor:
        """Values in [low, high)."""
        u = self._draw("uniform", shape, device)
        u = u if (low, high) == (0.0, 1.0) else u * (high - low) + low
        return u.astype(dtype)

    def normal(
        self, shape: Any, *, mean: float = 0.0, std: float = 1.0, dtype: Any = float32, device: Any = None
    ) -> Tensor:
        z = self._draw("normal", shape, device)
        z = z if (mean, std) == (0.0, 1.0) else z * std + mean
        return z.astype(dtype)

    def _draw(self, name: str, shape: Any, device: Any) -> Tensor:
        from zoo.core.device import device as device_of

        self._not_captured()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        offset = self.take(math.prod(shape))
        return bind(TABLE[name], shape=shape, seed=self.seed, offset=offset, dtype=float32, device=device_of(device))

    def permutation(self, n: int) -> np.ndarray:
        """0 ... n-1 in random order, on the host (int64)."""
        self._not_captured()
        words = philox.bits(np, self.seed, self.take(2 * n), 2 * n).astype(np.uint64)
        return np.argsort(words[0::2] << np.uint64(32) | words[1::2], kind="stable")

    def integers(self, low: int, high: int, n: int) -> np.ndarray:
        """n integers in [low, high), on the host (int64). high - low must be below 2^31: the bias is then under
        2^-33."""
        self._not_captured()
        words = philox.bits(np, self.seed, self.take(2 * n), 2 * n).astype(np.uint64)
        wide = words[0::2] << np.uint64(32) | words[1::2]
        return (low + (wide % np.uint64(high - low)).astype(np.int64)).astype(np.int64)
