"""What Whisper hears: the log-mel spectrogram of sound at 16 kHz (Radford et al. 2022, 2.2; openai/whisper audio.py).

    S[t, f] = |sum_n hann[n] x[160 t + n - 200] e^(-2 pi i f n / 400)|^2      25 ms every 10 ms, the ends reflected
    m[t]    = log10(max(S[t] @ filters.T, 1e-10))
    out     = (max(m, max(m) - 8) + 4) / 4                                   8 decades below the loudest, about -1..1

The filters are triangles that are evenly spaced on Slaney's mel scale (Auditory Toolbox, 1998: linear to 1000 Hz, above
it 27 steps to a factor of 6.4) and have equal areas, as librosa.filters.mel makes them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

SAMPLE_RATE = 16000
N_FFT = 400
HOP = 160
FLOOR = 1e-10
"""Below which a power is as good as nothing."""
RANGE = 8.0
"""Decades below the loudest that are kept."""
FRAMES_AT_ONCE = 256
"""Spectra that are worked out together: 0.8 MB, so that they stay in a core's cache."""

ALONE = 4 * 65536
"""Multiplications of a product up to which OpenBLAS starts no thread. Its threads wait for each other by spinning: on a
machine with something else to do, four minutes of transcription took 3.6 s with them, of which 2.5 were spent here, and
0.7 s without."""

HZ_PER_MEL = 200 / 3
"""Below 1000 Hz."""
LINEAR_MELS = 15
LOG_STEP = np.log(6.4) / 27


def log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    """samples (n,) float32 at 16 kHz -> (n // 160, n_mels) float32, relative to the loudest of what is given.

    A model wants a whole window, as it was trained: silence (zeros) behind the samples where they end before it.
    """
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise ValueError(f"samples are one channel, (n,), not {samples.shape}")
    frames = len(samples) // HOP
    if not frames:
        return np.zeros((0, n_mels), np.float32)
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    spans = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[: frames * HOP : HOP]
    window, filters = hann(), mel_filters(n_mels).T
    out = np.empty((frames, n_mels), np.float32)
    for start in range(0, frames, FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(spans[start : start + FRAMES_AT_ONCE] * window)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        product(power, filters, out=out[start : start + len(power)])
    np.maximum(out, FLOOR, out=out)
    np.log10(out, out=out)
    np.maximum(out, out.max() - np.float32(RANGE), out=out)
    out += 4
    out /= 4
    return out


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a @ b by BLAS, in pieces so small that it works on each of them in one thread."""
    rows = max(1, ALONE // b.size)
    whole = len(a) // rows * rows
    if whole:
        np.matmul(a[:whole].reshape(-1, rows, a.shape[1]), b, out=out[:whole].reshape(-1, rows, b.shape[1]))
    if whole < len(a):
        np.matmul(a[whole:], b, out=out[whole:])


@cache
def hann() -> np.ndarray:
    """A period of 0.5 (1 - cos): (400,) float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


@cache
def mel_filters(n_mels: int) -> np.ndarray:
    """(n_mels, 201) float32: how much of each frequency of a spectrum, 0 to 8000 Hz, a mel band takes."""
    frequencies = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    corners = _hz(np.linspace(0, _mel(SAMPLE_RATE / 2), n_mels + 2))
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rise, fall))
    return (triangles * 2 / (high - low)).astype(np.float32)


def _mel(hz: float) -> float:
    if hz < LINEAR_MELS * HZ_PER_MEL:
        return hz / HZ_PER_MEL
    return float(LINEAR_MELS + np.log(hz / (LINEAR_MELS * HZ_PER_MEL)) / LOG_STEP)


def _hz(mel: np.ndarray) -> np.ndarray:
    above = LINEAR_MELS * HZ_PER_MEL * np.exp(LOG_STEP * (mel - LINEAR_MELS))
    return np.where(mel < LINEAR_MELS, mel * HZ_PER_MEL, above)
