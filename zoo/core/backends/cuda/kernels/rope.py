"""Rotary positions (cu/rope.cu)."""

from __future__ import annotations

from typing import Any

from zoo.core.backends.cuda.kernels.plan import Kernels, alike, divided, flat, packed, small, stored, vector, whole
from zoo.core.backends.cuda.source import ctype
from zoo.core.stats import count


def rope(b: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool) -> Any:
    if not stored(x) or not alike(cos, sin):
        return NotImplemented
    y = b.xp.empty(x.shape, x.dtype)
    (heads, size), half, n = x.shape[2:], cos.shape[-1], vector(x.dtype)
    items = divided(2 * half if interleaved else half, n) + divided(size - 2 * half, n)
    kernel = b.driver.kernel("rope.cu", "rope", T=ctype(x.dtype), A=ctype(cos.dtype), INTERLEAVED=int(interleaved))
    rows = x.size // size
    kernel(*flat(rows * items), *packed(b, x, cos, sin), y, *whole(rows), *small(heads, size, half),
           *whole(cos.size // half))  # fmt: skip
    count("cuda.rope")
    return y


KERNELS: Kernels = {"rope": rope}
