"""Noise as torch's CPU generator draws it, so that a seed gives the picture that it gives in diffusers.

torch.Generator().manual_seed(s) is Mersenne's twister mt19937, seeded by its classic recurrence (not by numpy's
`init_by_array`), and `torch.randn` in float32 turns its words into normal numbers in one of two ways:

n >= 16   n uniform numbers of 24 bits; in each block of 16, the first 8 become radii and the last 8 angles (Box &
          Muller). A tail that does not fill a block takes 16 new numbers for the last 16 places, over what was there.
n < 16    uniform numbers of 53 bits, each from two words; one angle and one radius give two normal numbers, of which
          the second waits for the next call.

The vectorised way (on any x86 processor since 2013) has a logarithm, sine and cosine of its own, Cephes' polynomials
in float32, of which the compiler joins some multiplications and additions. They are repeated here operation by
operation, so that the bits agree. Where torch runs without AVX2 it takes the C library's functions, and the last place
differs in half of the numbers.

Source: ATen/native/cpu/DistributionTemplates.h (normal_fill, normal_distribution), ATen/native/cpu/avx_mathfun.h and
ATen/core/MT19937RNGEngine.h of pytorch (BSD-3-Clause); Moshier's Cephes library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WORDS = 624
BLOCK = 16


class Generator:
    """torch's CPU generator: the same seed, the same normal numbers."""

    def __init__(self, seed: int):
        state = np.empty(WORDS, np.uint32)
        word = seed & 0xFFFFFFFF
        for i in range(WORDS):
            state[i] = word
            word = (1812433253 * (word ^ (word >> 30)) + i + 1) & 0xFFFFFFFF
        self._bits = np.random.MT19937()
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": state, "pos": WORDS}}
        self._waiting: float | None = None

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32 of this shape, in row-major order."""
        n = math.prod(shape)
        drawn = self._many(n) if n >= BLOCK else np.array([self._one() for _ in range(n)], np.float32)
        return drawn.reshape(tuple(shape))

    def _many(self, n: int) -> np.ndarray:
        uniform = self._uniform(n)
        whole = n - n % BLOCK
        result = np.empty(n, np.float32)
        result[:whole] = _box_muller(uniform[:whole])
        if whole < n:
            result[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return result

    def _uniform(self, n: int) -> np.ndarray:
        """24 bits of a word each, in [0, 1)."""
        return (self._words(n) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _one(self) -> float:
        if self._waiting is not None:
            value, self._waiting = self._waiting, None
            return value
        words = [int(word) for word in self._words(4)]
        angle, radius = (((high << 32 | low) & (2**53 - 1)) * 2.0**-53 for high, low in (words[:2], words[2:]))
        angle, radius = 2 * math.pi * angle, math.sqrt(-2 * math.log1p(-radius))
        self._waiting = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _words(self, n: int) -> np.ndarray:
        return self._bits.random_raw(n).astype(np.uint32)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, 0]))
    sine, cosine = _sine_and_cosine(np.float32(2 * math.pi) * blocks[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)


def _fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a b + c with one rounding: in float64 the product is exact, and the sum nearly always."""
    wide = (np.float64(np.float32(v)) if isinstance(v, float) else v.astype(np.float64) for v in (b, c))
    return (a.astype(np.float64) * next(wide) + next(wide)).astype(np.float32)


def _polynomial(x: np.ndarray, *factors: float) -> np.ndarray:
    y = np.full_like(x, np.float32(factors[0]))
    for factor in factors[1:]:
        y = _fma(y, x, factor)
    return y


def _log(x: np.ndarray) -> np.ndarray:
    """Of normal float32 above 0: x = m 2^e with sqrt(1/2) <= m < sqrt(2), and a polynomial in m - 1."""
    m, exponent = np.frexp(x)
    small = m < np.float32(0.707106781186547524)
    e = (exponent - small).astype(np.float32)
    m = np.where(small, m - np.float32(1) + m, m - np.float32(1))
    z = m * m
    y = _polynomial(m, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
    y = _fma(y * m, z, e * np.float32(-2.12194440e-4))
    return _fma(e, 0.693359375, m + _fma(z, -0.5, y))  # the two factors of e make log 2


def _sine_and_cosine(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of float32 from 0 to 2 pi: the octant, what is left of x in three parts of pi / 4, a polynomial for each."""
    octant = (x * np.float32(1.27323954473516)).astype(np.int32) + 1 & ~1
    y = octant.astype(np.float32)
    for part in (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8):
        x = _fma(y, part, x)
    z = x * x
    c = _polynomial(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
    c = _fma(c * z, z, z * np.float32(-0.5)) + np.float32(1)
    s = _polynomial(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
    s = _fma(s * z, x, x)
    straight = octant & 2 == 0
    sine, cosine = np.where(straight, s, c), np.where(straight, c, s)
    return np.where(octant & 4 != 0, -sine, sine), np.where((octant - 2) & 4 == 0, -cosine, cosine)


def latents(generators: Sequence[Generator], shape: tuple[int, int, int]) -> np.ndarray:
    """Noise (B, H, W, C), a generator for each picture. It is drawn as diffusers draws it, with channels first."""
    height, width, channels = shape
    drawn = np.stack([generator.normal((channels, height, width)) for generator in generators])
    return np.ascontiguousarray(drawn.transpose(0, 2, 3, 1))
