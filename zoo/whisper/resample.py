"""From any sampling rate to Whisper's 16 kHz: a polyphase filter bank of windowed sincs, by blocks.

    y[n] = sum_k h(t_n - k) x[k],   t_n = n * rate / 16000,   h(t) = c sinc(c t) kaiser(t / W)

With 16000 / rate = L / M in lowest terms, t_n has L different fractions, so h has L sets of taps; each set is scaled to
sum to 1. The filter passes 0 to 0.45 of the lower of the two rates and stops 0.5 of it and more, so that nothing
folds back: Kaiser's formulas for 100 dB give beta = 0.1102 (100 - 8.7) and, for a transition of 0.05, 128 taps of the
lower rate (Oppenheim & Schafer, "Discrete-Time Signal Processing", 7.5.3). It is symmetric: nothing is shifted in time.

A block is about a second. Its outputs are worked out 32 at a time: they read nearly the same inputs, so that their taps
are a band of one matrix, and the whole is a few matrix products. A block depends on nothing but its own inputs, and
all have one size: the same samples come out whatever pieces are asked for.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np

from zoo.whisper.audio import product

RATE = 16000
"""Samples a second that come out."""
STOP_DB = 100
BETA = 0.1102 * (STOP_DB - 8.7)
CUTOFF = 0.475
"""Of the lower rate: the middle of the transition from 0.45 to 0.5."""
HALF = 64
"""Taps to each side, in samples of the lower rate."""
GROUP = 32
"""Outputs of one matrix product. A second of 44.1 kHz takes 0.26 ms (Zen 5, one thread); with 16 0.27, with 64 0.46."""
KEPT = 64 << 20
"""Bytes of matrices that are kept. Usual rates take 0.1 to 3 MB; one that shares no factor with 16000 may take more."""


class Resampler:
    """From `rate` to 16 kHz, in blocks of `block` outputs.

    Block b reads inputs b * step - reach to (b + 1) * step + reach, where what is before the beginning and behind the
    end counts as 0.
    """

    def __init__(self, rate: int):
        common = gcd(rate, RATE)
        repeat = ceil(GROUP / (RATE // common))  # of the pattern of fractions, where that is short
        self._outputs, self._inputs = RATE // common * repeat, rate // common * repeat
        self._periods = max(1, RATE // self._outputs)
        self.block = self._outputs * self._periods
        self.step = self._inputs * self._periods
        stretch = max(1.0, rate / RATE)
        self.reach = ceil(HALF * stretch)
        self._cutoff = 2 * CUTOFF / stretch
        self._window = HALF * stretch
        groups = ceil(self._outputs / GROUP)
        width = int(GROUP * rate / RATE) + 2 * self.reach
        keep = groups if groups * GROUP * width * 4 <= KEPT else 1
        self._matrix = lru_cache(maxsize=keep)(self._make)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """One block: (step + 2 reach,) float32 -> (block,) float32."""
        out = np.empty((self._periods, self._outputs), np.float32)
        for first in range(0, self._outputs, GROUP):
            start, matrix = self._matrix(first)
            rows = np.lib.stride_tricks.as_strided(
                inputs[start:],
                (self._periods, len(matrix)),
                (self._inputs * inputs.itemsize, inputs.itemsize),
                writeable=False,
            )
            # copied: rows that overlap are not what BLAS takes
            product(np.ascontiguousarray(rows), matrix, out=out[:, first : first + GROUP])
        return out.reshape(-1)

    def _make(self, first: int) -> tuple[int, np.ndarray]:
        """(first input read, matrix (inputs, outputs)) of the outputs of a period from `first` on."""
        outputs = np.arange(first, min(first + GROUP, self._outputs))
        base, rest = np.divmod(outputs * self._inputs, self._outputs)
        k = np.arange(1 - self.reach, self.reach + 1)
        t = k - (rest / self._outputs)[:, None]
        taps = np.sinc(self._cutoff * t) * np.i0(BETA * np.sqrt(np.clip(1 - (t / self._window) ** 2, 0, None)))
        taps[np.abs(t) >= self._window] = 0
        taps /= taps.sum(axis=1, keepdims=True)
        matrix = np.zeros((base[-1] - base[0] + len(k), len(outputs)), np.float32)
        for column, (offset, row) in enumerate(zip(base - base[0], taps, strict=True)):
            matrix[offset : offset + len(k), column] = row
        return int(base[0]) + 1, matrix


def length(frames: int, rate: int) -> int:
    """Samples at 16 kHz of so many frames: those whose time is before the end."""
    return -(-frames * RATE // rate)
