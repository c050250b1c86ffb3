"""The resampler against what it claims: an ideal filter, scipy's polyphase one, and itself in other pieces."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.whisper.resample import RATE, Resampler, length

RATES = [8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000, 44056, 15999]


def resampled(x: np.ndarray, rate: int) -> np.ndarray:
    """All of x, block by block."""
    resampler = Resampler(rate)
    total = length(len(x), rate)
    blocks = -(-total // resampler.block)
    padded = np.zeros(blocks * resampler.step + 2 * resampler.reach, np.float32)
    padded[resampler.reach :][: len(x)] = x
    pieces = [
        resampler(padded[b * resampler.step :][: resampler.step + 2 * resampler.reach].copy()) for b in range(blocks)
    ]
    return np.concatenate(pieces)[:total]


def tone(frequency: float, rate: int, seconds: float, phase: float = 0.3) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate + phase).astype(np.float32)


def middle(x: np.ndarray) -> np.ndarray:
    """Without the ends, at which the filter sees the silence around."""
    return x[400:-400]


@pytest.mark.parametrize("rate", RATES)
def test_what_is_heard_goes_through_unchanged(rate):
    """0 to 0.45 of the lower rate: the same tone at the new rate, in time and height, but for what is 80 dB down."""
    lower = min(rate, RATE)
    for part in (0.001, 0.05, 0.21, 0.4, 0.45):
        found = resampled(tone(part * lower, rate, 2.3), rate)
        error = middle(found - tone(part * lower, RATE, 2.3 + 1 / rate)[: len(found)])
        assert 20 * np.log10(np.abs(error).max()) < -80, part


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > RATE])
def test_what_cannot_be_heard_is_not_folded_back(rate):
    """Tones at and above half of the new rate: 95 dB down and more, wherever they would turn up."""
    for frequency in np.linspace(8000, rate / 2, 9):
        left = middle(resampled(tone(float(frequency), rate, 1.2), rate))
        assert 20 * np.log10(np.abs(left).max() + 1e-12) < -95, frequency


@pytest.mark.parametrize("rate", [8000, 11025, 12000])
def test_no_mirror_images_where_the_rate_rises(rate):
    """Of a tone at f, what comes out near rate - f is 95 dB below it."""
    frequency = 0.4 * rate
    found = middle(resampled(tone(frequency, rate, 2.0), rate)).astype(np.float64)
    spectrum = np.abs(np.fft.rfft(found * np.blackman(len(found))))
    at = np.fft.rfftfreq(len(found), 1 / RATE)
    image = spectrum[(at > rate / 2) & (at < rate)].max()
    assert 20 * np.log10(image / spectrum.max()) < -95


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_near_scipy_on_noise_within_the_band(rate):
    """scipy's resample_poly with the same cutoff and window is another implementation of the same filter."""
    signal = pytest.importorskip("scipy.signal", reason="scipy is not installed; it is the peer")
    from zoo.whisper.resample import BETA, CUTOFF, HALF

    rng = np.random.default_rng(3)
    x = rng.standard_normal(rate).astype(np.float32)
    common = int(np.gcd(rate, RATE))
    up, down = RATE // common, rate // common
    half = HALF * max(up, down)
    taps = signal.firwin(2 * half + 1, 2 * CUTOFF / max(up, down), window=("kaiser", BETA))
    theirs = signal.resample_poly(x.astype(np.float64), up, down, window=taps)
    ours = resampled(x, rate)
    assert len(ours) == len(theirs)
    # scipy scales all sets of taps alike, we each to 1; apart from that, float32
    assert np.abs(ours - theirs).max() < 2e-4


def test_a_constant_stays_one():
    for rate in RATES:
        found = middle(resampled(np.full(rate, 0.5, np.float32), rate))
        assert np.abs(found - 0.5).max() < 1e-6, rate


def test_odd_rates_keep_few_matrices():
    """A rate that shares no factor with 16000 has 16000 sets of taps; they are made as they are needed."""
    resampler = Resampler(399_989)
    assert resampler._matrix.cache_parameters()["maxsize"] == 1
    assert Resampler(44100)._matrix.cache_parameters()["maxsize"] == 5


@pytest.mark.parametrize(("frames", "rate", "expected"), [(0, 8000, 0), (1, 8000, 2), (1, 44100, 1), (441, 44100, 160)])
def test_lengths(frames, rate, expected):
    assert length(frames, rate) == expected
    assert len(resampled(np.ones(frames, np.float32), rate)) == expected if frames else True
