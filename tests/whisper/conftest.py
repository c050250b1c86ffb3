"""What the tests of Whisper share."""

from __future__ import annotations

import json
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.hub import save
from zoo.port import Port
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.tokenizer import Tokenizer, shown_bytes
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


def decided(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights of the small models, by their published name."""
    array = rng.normal(0, 0.1, shape).astype(np.float32)
    if name.endswith(("norm.weight", "_ln.weight", "ln_post.weight", "decoder.ln.weight")):
        array += 1
    elif len(shape) > 1:
        array *= 10 / np.sqrt(16)
        if "encoder_attn" in name or "cross_attn" in name or "positi" in name:
            array *= 2  # what is heard, and where, matters
    if name.endswith(("embed_tokens.weight", "token_embedding.weight")):
        array[:256] *= 0.5
        array[[32, *range(97, 123)]] *= 4
        array[256] *= 2.6
        array[266:] *= 1.6
    return array


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
        weights[name] = decided(name, value.shape, rng)
    save(model.load(weights, device="numpy"), directory, port="whisper")
    tiny_tokenizer(directory)
    generation = {"suppress_tokens": [35, 64, *range(257, 265)], "begin_suppress_tokens": [32, 256],
                  "no_timestamps_token_id": 266, "is_multilingual": True}  # fmt: skip
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), seed=2)


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


@pytest.fixture(scope="session")
def openai(tmp_path_factory):
    """(openai/whisper, a small random model of it that hears windows of 2 s, the same model here, its directory)."""
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    torch.set_num_threads(1)  # so small a model is slower on several
    theirs = pytest.importorskip("whisper", reason="openai-whisper is not installed; it is the reference")
    directory = tmp_path_factory.mktemp("openai")
    width = {"n_audio_state": 16, "n_audio_head": 2, "n_text_state": 16, "n_text_head": 2}
    dims = {"n_mels": 80, "n_audio_ctx": WINDOW, "n_vocab": 256 + len(specials()), "n_text_ctx": 48,
            "n_audio_layer": 1, "n_text_layer": 2, **width}  # fmt: skip

    class Multilingual(theirs.model.Whisper):
        is_multilingual = True  # openai tells by the size of the vocabulary
        num_languages = len(CODES)

    reference = Multilingual(theirs.model.ModelDimensions(**dims)).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, value in reference.named_parameters():
            value.copy_(torch.tensor(decided(name, tuple(value.shape), rng)))
    torch.save({"dims": dims, "model_state_dict": reference.state_dict()}, directory / "tiny.pt")
    tiny_tokenizer(directory)
    model = zoo.load(str(directory), device="cpu")

    class Theirs:
        """Our tokenizer under their names: tokens are compared elsewhere, and their tables know 51,865 of them."""

        def __init__(self, language: str | None, task: str | None):
            self.own = Tokenizer.of(model)
            self.language, self.task = language or "en", task or "transcribe"
            self.sot_sequence = tuple(self.own.sot_sequence(self.language, self.task))
            self.sot_sequence_including_notimestamps = (*self.sot_sequence, self.no_timestamps)
            self.language_token = self.own.languages[self.language]
            self.all_language_codes = tuple(self.own.languages)
            self.all_language_tokens = tuple(self.own.languages.values())

        def __getattr__(self, name: str):
            return getattr(self.own, name)

        def split_to_word_tokens(self, tokens):
            return self.own.words(tokens, self.language)

    def get_tokenizer(multilingual, *, num_languages=0, language=None, task=None):
        return Theirs(language, task)

    with pytest.MonkeyPatch.context() as patch:
        # by sys.modules: the package has functions of the same names
        decoding, transcribe, timing = (sys.modules[f"whisper.{name}"] for name in ("decoding", "transcribe", "timing"))
        for module in (decoding, transcribe):
            patch.setattr(module, "get_tokenizer", get_tokenizer)
        patch.setattr(transcribe, "N_FRAMES", 2 * WINDOW)
        patch.setattr(transcribe, "N_SAMPLES", 320 * WINDOW)
        patch.setattr(decoding, "CHUNK_LENGTH", 0.02 * WINDOW)
        patch.setattr(timing, "dtw_cpu", timing.dtw_cpu.py_func)  # numba takes longer to compile it than this runs
        patch.setattr(timing, "backtrace", timing.backtrace.py_func)
        yield theirs, reference, model, directory


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """(torch, a small random model of transformers that hears windows of 2 s, its directory)."""
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    torch.set_num_threads(1)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    directory = tiny_model(tmp_path_factory.mktemp("hugging_face"), seed=4)
    config = transformers.WhisperConfig(**json.loads((directory / "config.json").read_text()))
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    rng = np.random.default_rng(4)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.copy_(torch.tensor(decided(name, tuple(value.shape), rng)))
    generation = (directory / "generation_config.json").read_text()
    for path in directory.glob("*.safetensors"):
        path.unlink()
    theirs.save_pretrained(directory)
    (directory / "generation_config.json").write_text(generation)
    return torch, theirs, directory
