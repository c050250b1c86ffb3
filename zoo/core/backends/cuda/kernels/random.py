"""Counter-based random numbers (cu/random.cu): those of zoo/core/philox.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.backends.cuda.kernels.plan import STORED, Kernels, divided, flat, packed, real, stored, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import float32
from zoo.core.stats import count


def _signed(bits: int, size: int) -> int:
    """The whole number that has these `size` bits."""
    return bits - (bits >> (size - 1) << size)


def _run(
    b: Any, name: str, y: Any, inputs: tuple[Any, ...], seed: int, offset: int, numbers: tuple[Any, ...] = ()
) -> Any:
    kernel = b.driver.kernel("random.cu", name, T=ctype(y.dtype))
    keys = (np.int32(_signed(seed >> shift & 0xFFFFFFFF, 32)) for shift in (0, 32))
    kernel(*flat(divided(y.size, 4)), *inputs, y, *whole(y.size, _signed(offset, 64)), *keys, *numbers)
    count(f"cuda.{name}")
    return y


def _random(name: str) -> Any:
    def kernel(b: Any, start: Any = None, *, shape: Any, seed: int, offset: int, dtype: Any = float32) -> Any:
        if dtype not in STORED or 0 in shape or start is not None:
            return NotImplemented
        return _run(b, name, b.xp.empty(tuple(shape), dtype), (), seed, offset)

    return kernel


def dropout(b: Any, x: Any, start: Any = None, *, p: float, seed: int, offset: int) -> Any:
    if not stored(x) or start is not None:
        return NotImplemented
    return _run(b, "dropout", b.xp.empty(x.shape, x.dtype), packed(b, x), seed, offset, real(p, 1 / (1 - p)))


KERNELS: Kernels = {"uniform": _random("uniform"), "normal": _random("normal"), "dropout": dropout}
