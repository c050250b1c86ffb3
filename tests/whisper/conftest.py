"""What the tests of Whisper share."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest

from zoo.hub import save
from zoo.port import Port
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.tokenizer import shown_bytes
from zoo.whisper.weights import table


@pytest.fixture(scope="session")
def port() -> Port:
    """The model without its command."""
    return Port(name="whisper", task="", config=WhisperConfig, model=Whisper, weights=table, run=lambda model: [])


@pytest.fixture(scope="session")
def data() -> Path:
    found = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not found.exists():
        pytest.skip(f"no {found} (ZOO_TEST_DATA)")
    return found


WINDOW = 100
"""Positions of the encoder of the model below: 2 seconds."""
CODES = ("en", "de", "ja")


def specials() -> list[str]:
    names = ["endoftext", "startoftranscript", *CODES, "translate", "transcribe", "startoflm", "startofprev",
             "nospeech", "notimestamps", *(f"{0.02 * i:.2f}" for i in range(WINDOW + 1))]  # fmt: skip
    return [f"<|{name}|>" for name in names]


def tiny_tokenizer(directory: Path) -> None:
    """256 bytes and no merges, three languages, timestamps up to 2 s."""
    letters = {character: byte for byte, character in enumerate(shown_bytes())}
    added = [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(specials())]
    fields = {"model": {"type": "BPE", "vocab": letters, "merges": []}, "added_tokens": added,
              "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(fields))


def tiny_model(directory: Path, seed: int = 0) -> Path:
    """A random model with decided opinions: large weights, letters that are likelier than other bytes, texts that end.
    It hears windows of 2 s, and writes up to 24 tokens."""
    config = WhisperConfig(
        vocab_size=256 + len(specials()), num_mel_bins=80, encoder_layers=1, encoder_attention_heads=2,
        decoder_layers=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16,
        max_source_positions=WINDOW, max_target_positions=48, decoder_start_token_id=257, bos_token_id=256,
        eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    model = Whisper(config).init(0, "numpy")
    rng = np.random.default_rng(seed)
    weights = {}
    for name, value in model.state().items():
        array = rng.normal(0, 0.1, value.shape).astype(np.float32)
        if name.endswith("norm.weight"):
            array += 1
        elif len(value.shape) > 1:
            array *= 10 / np.sqrt(16)
        if name.endswith("embed_tokens.weight"):
            array[:256] *= 0.5
            array[[32, *range(97, 123)]] *= 4
            array[256] *= 2
            array[266:] *= 1.6
        weights[name] = array
    save(model.load(weights, device="numpy"), directory, port="whisper")
    tiny_tokenizer(directory)
    generation = {"suppress_tokens": [35, 64, *range(257, 265)], "begin_suppress_tokens": [32, 256],
                  "no_timestamps_token_id": 266, "is_multilingual": True}  # fmt: skip
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, (n,) float32 at 16 kHz."""
    n = round(16000 * seconds)
    swell = 1 + np.sin(np.arange(n) / 3000) + 0.3 * np.sin(np.arange(n) / 700)
    return (np.random.default_rng(seed).normal(0, 0.1, n) * swell).astype(np.float32)


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Path:
    """9.5 s as a WAV file of 16 bits."""
    path = tmp_path_factory.mktemp("sound") / "talk.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((speech(9.5).clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path
