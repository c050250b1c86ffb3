"""What may be speech: real and made up, in noise and silence; and what is let through that is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from zoo.whisper import vad
from zoo.whisper.recording import Samples, load
from zoo.whisper.vad import spans

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CLIPS = DATA / "whisper-assets"
RATE = 16000


def noise(seconds: float, colour: int, seed: int = 0) -> np.ndarray:
    """White (0), pink (1) or brown (2), of standard deviation 1."""
    n = int(seconds * RATE)
    f = np.fft.rfftfreq(n)
    f[0] = f[1]
    x = np.fft.irfft(np.fft.rfft(np.random.default_rng(seed).standard_normal(n)) / f ** (colour / 2), n)
    return (x / x.std()).astype(np.float32)


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Like speech: four syllables a second of harmonics whose pitch and formants wander, with a breath after eight."""
    rng = np.random.default_rng(seed)
    out = []
    while sum(map(len, out)) < seconds * RATE:
        for _ in range(8):
            t = np.arange(int(rng.uniform(0.15, 0.3) * RATE)) / RATE
            pitch, formant = rng.uniform(90, 220), rng.uniform(300, 2500)
            k = np.arange(1, int(4000 / pitch))
            height = np.exp(-(((k * pitch - formant) / 400) ** 2)) + 0.3 / k
            out.append(np.sin(np.pi * t / t[-1]) * (height @ np.sin(2 * np.pi * pitch * np.outer(k, t))))
            out.append(np.zeros(int(0.05 * RATE)))
        out.append(np.zeros(int(0.4 * RATE)))
    x = np.concatenate(out)[: int(seconds * RATE)]
    return (x / x.std()).astype(np.float32)


def covered(found: list[tuple[float, float]], speech: np.ndarray) -> tuple[float, float]:
    """Shares of speech that is in the spans, and of the rest that is not."""
    inside = np.zeros(len(speech), bool)
    for start, end in found:
        inside[int(start * RATE) : int(end * RATE)] = True
    return inside[speech].mean(), 1 - inside[~speech].mean()


def scene(speech: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """5 s of silence, speech, 10 s of silence, speech, 5 s of silence; and where it is within 25 dB of its loudest."""
    quiet = np.zeros(5 * RATE, np.float32)
    x = np.concatenate([quiet, speech, quiet, quiet, speech, quiet])
    power = np.convolve(np.square(x, dtype=np.float64), np.ones(1600) / 1600, "same")
    return x, power > power.max() * 10**-2.5


@pytest.mark.parametrize("colour", [0, 1, 2])
@pytest.mark.parametrize("level", [0.3, 1e-3, 1e-6])
def test_steady_noise_is_no_speech(colour, level):
    assert spans(Samples(level * noise(120, colour))) == []


def test_silence_and_hum_are_no_speech():
    t = np.arange(60 * RATE) / RATE
    hum = 0.1 * np.sin(2 * np.pi * 50 * t) + 0.05 * np.sin(2 * np.pi * 100 * t)
    for x in (np.zeros(60 * RATE), np.full(60 * RATE, 0.5), hum, hum + 1e-3 * noise(60, 0), 3e-5 * np.sign(hum)):
        assert spans(Samples(x)) == []


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 5000])
def test_short_recordings(size):
    assert spans(Samples(np.zeros(size))) == []
    assert all(0 <= a < b <= size / RATE for a, b in spans(Samples(babble(1)[:size])))


def speakers() -> dict[str, np.ndarray]:
    found = {"made up": 0.1 * babble(9)}
    if CLIPS.is_dir():
        found |= {"jfk": load(CLIPS / "jfk.wav"), "librispeech": load(CLIPS / "ls_test.flac")}
    return found


@pytest.mark.parametrize("ratio", [60, 20, 10, 5])
@pytest.mark.parametrize("colour", [0, 1])
def test_speech_is_found_in_noise(ratio, colour):
    """All that is loud in it, down to a signal-to-noise ratio of 5 dB; half a second away from it, nothing else."""
    for name, speech in speakers().items():
        x, loud = scene(speech)
        background = noise(len(x) / RATE, colour) * np.sqrt(np.square(speech).mean()) * 10 ** (-ratio / 20)
        found = spans(Samples(x + background))
        assert covered(found, loud)[0] == 1 and len(found) == 2, (name, found)
        silent = np.ones(len(x), bool)
        for begin in (5 * RATE, 15 * RATE + len(speech)):
            silent[begin - RATE // 2 : begin + len(speech) + RATE // 2] = False
        assert covered(found, ~silent)[1] == 1, (name, found)


def test_a_level_that_changes():
    """Half a minute of soft noise, then of loud, with speech in both: the change itself is let through, no more."""
    x = np.concatenate([1e-3 * noise(30, 1), 3e-2 * noise(30, 1, seed=1)])
    for at in (10, 50):
        x[at * RATE : (at + 3) * RATE] += 0.1 * babble(3)
    found = spans(Samples(x), gap=1.0)
    assert [(round(a), round(b)) for a, b in found if b - a > 2.5 and not a < 30 < b] == [(10, 13), (50, 53)]
    assert all(a > 25 and b < 36 for a, b in found if a < 31 < b or a < 30 < b)


def test_gaps_and_padding():
    x = 1e-4 * noise(20, 0)
    for at in (3, 4.5, 12):
        x[int(at * RATE) :][: RATE // 2] += 0.1 * babble(0.5)
    assert len(spans(Samples(x), gap=0.5)) == 3
    joined = spans(Samples(x), gap=2.0)
    assert len(joined) == 2 and len(spans(Samples(x), gap=9.0)) == 1
    (start, end), _ = joined
    (wide, _), _ = spans(Samples(x), gap=2.0, pad=1.0)
    assert start - wide == pytest.approx(0.6) and 2.4 < start < 3 and 5 < end < 5.6
    assert spans(Samples(x[: 4 * RATE]), pad=9) == [(0.0, 4.0)]


def test_what_stands_out_is_let_through_though_it_is_no_speech():
    """It says so of itself: music is, and so is a slammed door. A click is not."""
    x = 1e-4 * noise(20, 0)
    t = np.arange(3 * RATE) / RATE
    x[5 * RATE : 8 * RATE] += (0.1 * np.sin(2 * np.pi * (440 + 100 * np.sin(6 * t)) * t)).astype(np.float32)
    assert len(spans(Samples(x))) == 1
    x = 1e-4 * noise(20, 0)
    x[10 * RATE] = 0.5
    assert spans(Samples(x)) == []


def test_pieces_do_not_matter(monkeypatch):
    x = np.concatenate([1e-3 * noise(5, 0), 0.1 * babble(4), 1e-3 * noise(7, 1)])
    whole = vad._levels(Samples(x))
    for size in (RATE, 5000, 777 * 3):
        monkeypatch.setattr(vad, "AT_ONCE", size)
        np.testing.assert_allclose(vad._levels(Samples(x)), whole, rtol=0, atol=1e-4)
    assert len(whole) == len(x) // vad.STEP + 1
