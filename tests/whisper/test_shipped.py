"""The checkpoint that ships: what it hears in the recordings that ship with it, word for word, on every device, and
that transformers hears the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.whisper.audio import SAMPLE_RATE, log_mel
from zoo.whisper.evaluate import distance
from zoo.whisper.recording import load
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.transcribe import transcribe

WEIGHTS = Path(__file__).parents[2] / "weights" / "whisper"
CLIPS = WEIGHTS / "clips"
ROWS = [json.loads(line) for line in (CLIPS / "clips.jsonl").read_text().splitlines()]
"""What espeak-ng was told to say."""
HEARD: dict[str, str] = {
    "1_en-us_m2.flac": "fifty three",
    "2_en-us-nyc_m7.flac": "twenty nine",
    "3_en_f3.flac": "fifty six point five eight seven",
    "4_en-gb-x-rp_Andrea.flac": "eighty six",
    "5_en-us_aunty.flac": "three six three three three",
    "6_en-us-nyc_Michael.flac": "three six one oh six five",
    "7_en_rob.flac": "zero three five",
    "8_en-gb-x-rp_victor.flac": "twenty three point nine five one",
    "9_en-us-nyc_Andrea_and_others.flac": (
        "eighty three thirty three one hundred and three point nine seventy five seventy seven seventeen "
        "one three four five six one one thirty two five sixty seven ninety two twenty seven thirty "
        "forty seven eighteen twenty seven sixteen twenty one fourteen fifty sixty five twenty six "
        "eighty eight nine thousand eight hundred and twenty seven eleven fifty eight twenty seven fifty "
        "four"
    ),
}
"""What the model hears."""


@pytest.fixture(params=["numpy", "cpu"])
def model(request: Any) -> Any:
    try:
        return zoo.load("weights/whisper", device=request.param)
    except zoo.DeviceError as error:
        pytest.skip(f"device {request.param}: {error.why}")


def text(model: Any, audio: Any, **settings: Any) -> str:
    return "".join(segment.text for segment in transcribe(model, audio, **settings)).strip()


def test_it_hears_what_it_heard(model):
    model = model.prepare()
    assert {row["audio"]: text(model, CLIPS / row["audio"]) for row in ROWS} == HEARD


def test_the_word_error_rate_is_below_five_percent():
    assert {*HEARD} == {row["audio"] for row in ROWS}
    wrong = sum(distance(row["text"].split(), HEARD[row["audio"]].split()).all for row in ROWS)
    assert wrong / sum(len(row["text"].split()) for row in ROWS) < 0.05
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["word_error_rate"] < 0.05 and int(card["measured"].split()[0]) >= 200
    assert f"{100 * card['word_error_rate']:.1f} %" in card["summary"]


def test_segments_are_where_the_speech_is():
    """The loudness of the recording without noise says where somebody speaks: segments hold it, and pauses do not."""
    name = ROWS[-1]["audio"]
    samples = load(CLIPS / name)
    loud = np.abs(samples[: len(samples) // 800 * 800]).reshape(-1, 800).max(axis=1) > 0.01  # per 50 ms
    inside = np.zeros(len(loud), bool)
    segments = list(transcribe(zoo.load("weights/whisper"), CLIPS / name))
    assert len(segments) >= 8 and all(a.end <= b.start for a, b in pairwise(segments))
    for segment in segments:
        inside[round(segment.start * 20) : round(segment.end * 20)] = True
    assert len(samples) > 30 * SAMPLE_RATE and inside[loud].mean() > 0.9 and inside[~loud].mean() < 0.35


@pytest.mark.parametrize("seconds", [0.5, 8.0, 20.0])
def test_silence_is_no_text(seconds):
    assert text(zoo.load("weights/whisper"), np.zeros(round(seconds * SAMPLE_RATE), np.float32)) == ""


@pytest.mark.parametrize("seconds", [8.0, 20.0])
def test_noise_is_no_text(seconds):
    """As long as a window, as training had it: a burst of half a second between silence is taken for a word."""
    noise = 0.05 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    assert text(zoo.load("weights/whisper"), noise) == ""


def test_transformers_writes_the_same():
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    made = transformers.AutoTokenizer.from_pretrained(WEIGHTS)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(WEIGHTS)
    model = zoo.load("weights/whisper", device="numpy")
    window = model.config.frames * 160
    for row in ROWS[:-1]:
        samples = load(CLIPS / row["audio"])[:window]
        samples = np.pad(samples, (0, window - len(samples)))
        features = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        assert np.abs(features[0].numpy().T - log_mel(samples, 80)).max() < 1e-4
        with torch.no_grad():
            ids = reference.generate(features, return_timestamps=True, num_beams=1, do_sample=False)[0].tolist()
        segments = list(transcribe(model, samples, temperature=0.0, beam_size=1))
        tokenizer = Tokenizer.of(model)
        ours = [token for segment in segments for token in segment.tokens]
        assert ours == [token for token in ids if token < tokenizer.eot or token >= tokenizer.timestamp_begin]
        assert made.decode(ids, skip_special_tokens=True).strip() == text(model, samples, beam_size=1)


def test_the_program_transcribes_them_with_no_argument(capsys):
    assert main(["run", "whisper", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {Path(one["file"]).name: one["text"] for one in found["results"]} == HEARD


def test_it_is_small():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert sum(path.stat().st_size for path in files if path.parent == CLIPS) < 1e6
