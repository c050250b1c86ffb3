"""Where somebody may be speaking: what stands out from the background, without a neural network.

    level[t, b]  = power in 12 mel bands of 100 to 5000 Hz, 32 ms every 16, averaged over 80 ms, in dB
    floor[t, b]  = the least level within 4 s before and after, and never below -80 dB (Martin 2001, minimum statistics)
    above[t]     = mean of the 4 largest of level - floor
    speech       = runs of above > STAY that reach START; gaps shorter than `gap` are closed, `pad` is put around

Between syllables, speech falls back to the background in every band, and a fan, a hiss or a hum do not rise above it:
that is all that is known here. It is not Silero or any model of speech: music, laughter, a slammed door stand out as
well and are let through, and what is said more softly than the background is lost. It saves the time that silence and
steady noise would take, and the text that a Whisper invents in them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from zoo.whisper.audio import SAMPLE_RATE, product

WINDOW = 512
STEP = 256
BANDS = 12
RANGE = (100.0, 5000.0)
"""Hz: where speech has its power."""
LARGEST = 4
SMOOTH = 5
"""Frames of one level: 80 ms, half a syllable."""
QUIET = -80.0
"""dB of full scale, of a band: the noise of 16 bits is below it."""
BLOCK = 16
"""Frames (0.26 s) of which the floor is found together."""
AROUND = 16
"""Blocks before and behind whose least level is the floor: 4.1 s, in which every speaker takes breath."""
START, STAY = 9.0, 6.0
"""dB above the floor. Ten minutes of white noise reach 6.7, words in a quiet room 20 to 50."""
AT_ONCE = 4 * SAMPLE_RATE
"""Samples of which levels are worked out together: 10 minutes take 56 ms, a minute at once 124. An hour's are 11 MB."""


def spans(recording: Any, *, gap: float = 2.0, pad: float = 0.4, least: float = 0.1) -> list[tuple[float, float]]:
    """(start, end) in seconds of what may be speech, in order, apart.

    gap: silence of fewer seconds belongs to the speech around it: a model hears 30 s at once, and pauses help it
    pad: seconds of silence that are kept before and behind: soft beginnings and ends of words are in them
    least: what stands out for fewer seconds is a click
    """
    level = _levels(recording)
    if not len(level):
        return []
    above = np.sort(level - _floor(level), axis=1)[:, -LARGEST:].mean(axis=1)
    end = len(level) * STEP / SAMPLE_RATE
    found: list[tuple[float, float]] = []
    for first, last in _runs(above):
        start, stop = first * STEP / SAMPLE_RATE, last * STEP / SAMPLE_RATE
        if stop - start < least:
            continue
        if found and start - found[-1][1] < max(gap, 2 * pad):
            start = found.pop()[0]
        found.append((start, stop))
    total = recording.duration if recording.duration is not None else end
    return [(max(0.0, start - pad), min(total, stop + pad)) for start, stop in found]


def _levels(recording: Any) -> np.ndarray:
    """(frames, BANDS) float32, dB of full scale."""
    half = WINDOW // 2
    parts, at, before = [], 0, np.zeros(0, np.float32)
    while True:
        samples = recording.read(at, AT_ONCE)
        last = len(samples) < AT_ONCE
        if not at and len(samples) > half:  # reflected at the ends, where a step from silence would stand out
            before = samples[half:0:-1]
        at += len(samples)
        x = np.concatenate([before, samples])
        if last and len(x) > 1:
            x = np.pad(x, (0, half), mode="reflect")
        if len(x) >= WINDOW:
            frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::STEP]
            spectrum = np.fft.rfft(frames * _window())
            parts.append(np.empty((len(frames), BANDS), np.float32))
            product(np.square(spectrum.real) + np.square(spectrum.imag), _bands(), out=parts[-1])
            x = x[len(frames) * STEP :]
        before = x
        if last:
            break
    if not parts:
        return np.zeros((0, BANDS), np.float32)
    power = np.concatenate(parts)
    sums = np.cumsum(np.pad(power, ((SMOOTH // 2 + 1, SMOOTH // 2), (0, 0))), axis=0, dtype=np.float64)
    level: np.ndarray = 10 * np.log10(np.maximum((sums[SMOOTH:] - sums[:-SMOOTH]) / SMOOTH, 10 ** (QUIET / 10)))
    return level.astype(np.float32)


def _floor(level: np.ndarray) -> np.ndarray:
    """(frames, BANDS): the least level around each frame."""
    blocks = -(-len(level) // BLOCK)
    padded = np.pad(level, ((0, blocks * BLOCK - len(level)), (0, 0)), mode="edge")
    least = padded.reshape(blocks, BLOCK, BANDS).min(axis=1)
    wide = np.pad(least, ((AROUND, AROUND), (0, 0)), mode="edge")
    floor = np.lib.stride_tricks.sliding_window_view(wide, 2 * AROUND + 1, axis=0).min(axis=-1)
    return np.repeat(floor, BLOCK, axis=0)[: len(level)]


def _runs(above: np.ndarray) -> list[tuple[int, int]]:
    """(first frame, end) of the runs above STAY that reach START."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], above > STAY, [0]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if above[a:b].max() > START]


@cache
def _window() -> np.ndarray:
    """Hann's, scaled so that a sine of full scale has a power of 1 (0 dB) in its band."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return (hann * np.sqrt(4 / (WINDOW * np.square(hann).sum()))).astype(np.float32)


@cache
def _bands() -> np.ndarray:
    """(WINDOW / 2 + 1, BANDS) float32 of 0 and 1: which frequency is in which band, by O'Shaughnessy's mels."""
    low, high = 2595 * np.log10(1 + np.array(RANGE) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 1) / 2595) - 1)
    band = np.digitize(np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE), edges) - 1
    return (band[:, None] == np.arange(BANDS)).astype(np.float32)
