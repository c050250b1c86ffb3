"""`zoo run whisper` on what people really have: silence, noise, nothing, odd rates and widths, broken files; and two
hours in the memory of two minutes (ZOO_TEST_HOURS=2; a quarter of an hour without it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from zoo.cli.main import main
from zoo.hub import save
from zoo.whisper.config import WhisperConfig
from zoo.whisper.languages import LANGUAGES
from zoo.whisper.model import Whisper
from zoo.whisper.tokenizer import shown_bytes

HOURS = float(os.environ.get("ZOO_TEST_HOURS", "0.25"))


def heard(capsys, model: Path, *files: Path, code: int = 0) -> tuple[list[dict], str]:
    """(results, what was said) of one run."""
    options = ["--weights", str(model), "--device", "cpu", "--json", "--beam-size", "1", "--no-fallback"]
    assert main(["run", "whisper", *map(str, files), *options, "--language", "en"]) == code
    out, err = capsys.readouterr()
    return json.loads(out)["results"] if out else [], err


def talk(recording: Path, seconds: float = 4) -> np.ndarray:
    return soundfile.read(recording, dtype="float32")[0][: int(16000 * seconds)]


SOUNDS = {
    "silence": lambda x: 0 * x,
    "a constant": lambda x: 0 * x + 0.5,
    "noise": lambda x: np.random.default_rng(0).normal(0, 0.3, len(x)),
    "a sample": lambda x: x[:1],
    "far too loud": lambda x: 1e6 * x,
    "not a number": lambda x: np.where(np.arange(len(x)) % 1000 < 10, np.nan, x),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_any_sound_is_written_down_or_passed_over(tiny, recording, tmp_path, capsys, name):
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUNDS[name](talk(recording)), 16000, subtype="FLOAT")
    (result,), said = heard(capsys, tiny, path)
    assert result["file"] == str(path) and isinstance(result["text"], str)
    for segment in result["segments"]:
        assert 0 <= segment["start"] < segment["end"] <= 4.0 + 2.0  # a model may say that a text ends behind the sound
    assert ("no numbers" in said) == (name == "not a number")
    assert "Traceback" not in said


def test_nothing(tiny, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 44100)
    (result,), said = heard(capsys, tiny, path)
    assert result["text"] == "" and result["segments"] == [] and "it holds no samples" in said


@pytest.mark.parametrize(
    ("subtype", "kind"), [("FLOAT", "wav"), ("DOUBLE", "wav"), ("PCM_24", "flac"), ("PCM_U8", "wav")]
)
def test_other_widths_are_the_same_to_it(tiny, recording, tmp_path, capsys, subtype, kind):
    """The text of 16 bits; of 8 bits, which are heard, some text."""
    x = talk(recording)
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype="PCM_16")
    soundfile.write(tmp_path / f"b.{kind}", soundfile.read(tmp_path / "a.wav")[0], 16000, subtype=subtype)
    first, second = heard(capsys, tiny, tmp_path / "a.wav", tmp_path / f"b.{kind}")[0]
    assert first["text"] and second["text"]
    assert subtype == "PCM_U8" or first["segments"] == second["segments"]


def test_eight_kilohertz_stereo(tiny, recording, tmp_path, capsys):
    x = talk(recording)[::2]
    soundfile.write(tmp_path / "a.wav", np.stack([x, 0.5 * x], axis=1), 8000)
    (result,), _ = heard(capsys, tiny, tmp_path / "a.wav")
    assert result["text"]


def test_cut_short(tiny, recording, tmp_path, capsys):
    """The text up to there, and a warning that says where."""
    soundfile.write(tmp_path / "a.wav", talk(recording, 8), 16000)
    soundfile.write(tmp_path / "whole.wav", talk(recording, 4), 16000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: 44 + 2 * 64000])
    (cut, whole), said = heard(capsys, tiny, tmp_path / "a.wav", tmp_path / "whole.wav")
    assert cut["segments"] == whole["segments"]
    assert "cut short: it can be read up to 0:00:04.00 of 0:00:08.00" in said


def test_what_is_no_sound(tiny, tmp_path, capsys):
    """Three lines, and nothing on stdout, before anything is transcribed."""
    good = tmp_path / "good.wav"
    soundfile.write(good, np.zeros(16000), 16000)
    no_sound = [
        ("a.txt", b"hello" * 99, "not sound"), ("a.m4a", b"\0\0\0\x1cftypM4A " * 9, "MP4 or M4A"),
        ("a.wav", b"", "the file is empty"), ("a.flac", b"fLaC" + bytes(99), "damaged"),
    ]  # fmt: skip
    for name, data, why in no_sound:
        (tmp_path / name).write_bytes(data)
        results, said = heard(capsys, tiny, good, tmp_path / name, code=1)
        assert results == [] and f"cannot read {tmp_path / name}" in said and why in said
        assert len(said.strip().splitlines()[-3:]) == 3 and "Traceback" not in said


# --- hours ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thirty_seconds(tmp_path_factory) -> Path:
    """A random model that hears 30 s at once, as published ones do."""
    directory = tmp_path_factory.mktemp("thirty")
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:2], "translate", "transcribe", "startoflm",
             "startofprev", "nospeech", "notimestamps", *(f"{0.02 * i:.2f}" for i in range(1501))]  # fmt: skip
    config = WhisperConfig(
        vocab_size=256 + len(names), encoder_layers=1, encoder_attention_heads=2, decoder_layers=1,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16, max_target_positions=32,
        decoder_start_token_id=257, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    save(Whisper(config).init(0, "numpy"), directory, port="whisper")
    fields = {"model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(shown_bytes())}, "merges": []},
              "added_tokens": [{"id": 256 + i, "content": f"<|{name}|>"} for i, name in enumerate(names)],
              "pre_tokenizer": {"type": "ByteLevel"}}  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    return directory


def minutes_of(path: Path, minutes: float) -> Path:
    """44.1 kHz stereo, of bursts of sound and pauses, as FLAC."""
    rng = np.random.default_rng(0)
    t = np.arange(10 * 44100) / 44100
    burst = (np.sin(2 * np.pi * 170 * t) + rng.normal(0, 0.2, len(t))) * (np.sin(2 * np.pi * 0.2 * t) > 0)
    pcm = (8000 * np.stack([burst, burst], axis=1)).clip(-32768, 32767).astype(np.int16)
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for _ in range(round(6 * minutes)):
            file.write(pcm)
    return path


CODE = """
import sys
from zoo.cli.main import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:  # getrusage would tell the peak of the process that started this one
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(code, peak / 1024, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is told by Linux alone")
def test_hours_in_the_memory_of_minutes(thirty_seconds, tmp_path):
    peaks, texts = [], []
    for minutes in (2.0, 60 * HOURS):
        path = minutes_of(tmp_path / f"{minutes}.flac", minutes)
        arguments = [
            "run", "whisper", str(path), "--weights", str(thirty_seconds), "--device", "cpu", "--language", "en",
            "--beam-size", "1", "--no-fallback", "--output", "srt", "--output-dir", str(tmp_path),
        ]  # fmt: skip
        done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
        code, peak = done.stderr.splitlines()[-1].split()
        assert code == "0", done.stderr
        peaks.append(float(peak))
        texts.append((tmp_path / f"{minutes}.srt").read_text())
        print(f"{minutes:g} minutes: peak {peak} MB; {done.stderr.splitlines()[-3:-1]}")
    last = texts[1].split("\n\n")[-2].splitlines()[1].split(" --> ")[1]
    hours, minutes, seconds = last.replace(",", ".").split(":")
    assert 3600 * int(hours) + 60 * int(minutes) + float(seconds) > 3600 * HOURS - 31
    assert peaks[1] < peaks[0] + 20
