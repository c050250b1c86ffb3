"""The spectrogram against the reference's filters and transformers' extractor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from zoo.whisper.audio import HOP, log_mel, mel_filters

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
ASSETS = DATA / "whisper-assets"


def sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    t = np.arange(480_000) / 16000
    tone = np.sin(2 * np.pi * 440 * t)
    return {
        "noise": 0.1 * rng.standard_normal(480_000),
        "a tone": tone,
        "a tone in faint noise": tone + 1e-4 * rng.standard_normal(480_000),
        "two seconds, then silence": np.where(t < 2, tone, 0),
        "silence": 0 * t,
        "faint": 1e-5 * rng.standard_normal(480_000),
    }


@pytest.mark.parametrize("n_mels", [80, 128])
def test_the_filters_are_the_published_ones(n_mels):
    if not ASSETS.is_dir():
        pytest.skip(f"no {ASSETS} (ZOO_TEST_DATA)")
    published = np.load(ASSETS / "mel_filters.npz")[f"mel_{n_mels}"]
    assert mel_filters(n_mels).dtype == published.dtype
    np.testing.assert_allclose(mel_filters(n_mels), published, rtol=0, atol=4e-9)  # one place of float32 at 0.04


def test_filters_without_the_published_file():
    """Slaney's: triangles of equal area, whose middles are evenly spaced up to 1000 Hz and by a factor above."""
    filters = mel_filters(80)
    assert filters.shape == (80, 201) and (filters >= 0).all()
    peaks = filters.argmax(axis=1) * 40.0
    # 8000 Hz are 15 + 27 ln 8 / ln 6.4 = 45.25 mels, cut into 81 steps of 37.2 Hz each, or of 6.4^(0.559/27) = 1.0391
    low, high = peaks[(peaks > 100) & (peaks < 1000)], peaks[peaks > 2000]
    assert abs(np.diff(low).mean() - 37.2) < 1.5 and abs((high[1:] / high[:-1]).mean() - 1.0391) < 5e-4
    # the sum over a spectrum's steps of 40 Hz is about a filter's area, 1, where it is several steps wide
    assert np.abs(filters[60:].sum(axis=1) * 40 - 1).max() < 0.01


@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_are_those_of_transformers(n_mels):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    cases = sounds()
    if ASSETS.is_dir():
        import soundfile

        jfk, rate = soundfile.read(ASSETS / "jfk.wav", dtype="float32")
        assert rate == 16000
        cases["jfk"] = np.pad(jfk, (0, 480_000 - len(jfk)))
    for name, samples in cases.items():
        samples = samples.astype(np.float32)
        # numpy's, in float64; torch's, in float32, is up to 2.4e-5 from it
        theirs = extractor._np_extract_fbank_features(samples[None], "cpu")[0].T
        np.testing.assert_allclose(log_mel(samples, n_mels), theirs, rtol=0, atol=2e-5, err_msg=name)


def direct(samples: np.ndarray, n_mels: int) -> np.ndarray:
    """The formula at the head of audio.py, word by word, in float64."""
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    n = np.arange(400)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(201), n) / 400) * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400))
    power = [np.abs(dft @ padded[160 * t : 160 * t + 400]) ** 2 for t in range(len(samples) // 160)]
    m = np.log10(np.maximum(np.array(power) @ mel_filters(n_mels).T.astype(np.float64), 1e-10))
    return (np.maximum(m, m.max() - 8) + 4) / 4


@pytest.mark.parametrize("n_mels", [4, 80, 128])
def test_features_are_the_formula(n_mels):
    for name, samples in sounds().items():
        samples = samples[30_000:50_123].astype(np.float32)
        found = log_mel(samples, n_mels)
        assert found.shape == (len(samples) // HOP, n_mels) and found.dtype == np.float32
        np.testing.assert_allclose(found, direct(samples, n_mels), rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("size", [0, 1, 159, 160, 161, 399, 400, 1000])
def test_any_length(size):
    found = log_mel(np.ones(size, np.float32), 80)
    assert found.shape == (size // 160, 80) and np.isfinite(found).all()


def test_samples_are_left_alone():
    samples = np.linspace(-1, 1, 4000, dtype=np.float32)
    before = samples.copy()
    log_mel(samples, 80)
    log_mel(samples[::2], 80)
    np.testing.assert_array_equal(samples, before)
    with pytest.raises(ValueError, match="one channel"):
        log_mel(np.zeros((2, 400), np.float32), 80)
