"""Cases of `zoo bench whisper`: Whisper-base's shape (73 million weights), hearing 30 seconds and writing down a text.

Weights are fresh ones from a seed, the same for every candidate, and spell a text: positions lead from each token to
the next, and what the layers add is small beside that. So every candidate writes the same tokens, however it rounds,
is sure of them, and ends where it should; no time depends on anything else that weights say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from zoo.bench.case import Case, Run
from zoo.bench.inputs import numbers
from zoo.core.tensor import Tensor
from zoo.hub.refs import Checkpoint
from zoo.nn import quantize
from zoo.whisper.audio import HOP
from zoo.whisper.cache import Cache
from zoo.whisper.config import WhisperConfig
from zoo.whisper.decoding import forward
from zoo.whisper.model import Whisper
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.transcribe import Options, transcribe

END, START, ENGLISH, TRANSCRIBE, NO_TIMESTAMPS = 50257, 50258, 50259, 50359, 50363
"""Of the multilingual vocabulary."""
TIMESTAMPS = 50364
"""The first of them: 0 s; the next are 0.02 s apart."""
PROMPT = [START, ENGLISH, TRANSCRIBE, NO_TIMESTAMPS]
SHAPES = {
    "base": WhisperConfig(
        d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, decoder_layers=6,
        decoder_attention_heads=8, decoder_ffn_dim=2048, bos_token_id=END, eos_token_id=END, pad_token_id=END,
        decoder_start_token_id=START,
    ),
    "tiny": WhisperConfig(
        d_model=64, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=256, decoder_layers=1,
        decoder_attention_heads=1, decoder_ffn_dim=256, bos_token_id=END, eos_token_id=END, pad_token_id=END,
        decoder_start_token_id=START,
    ),
}  # fmt: skip
SPREAD = 0.07  # of numbers between -0.5 and 0.5: a deviation of 0.02, as models of this kind begin
WRITTEN = 64
"""Tokens of the text: some 20 seconds of speech."""
TEXT = [int(token) for token in np.random.default_rng(5).choice(np.arange(300, 50000), WRITTEN, replace=False)]
SECONDS = 30


class Weights(Mapping[str, np.ndarray]):
    """transformers' name -> values in its layout."""

    def __init__(self, config: WhisperConfig):
        self.config = config
        self.shapes = {name: slot.shape for name, slot in Whisper(config).spec().items()}
        for name in ("model.encoder.conv1.weight", "model.encoder.conv2.weight"):
            outputs, window, inputs = self.shapes[name]
            self.shapes[name] = (outputs, inputs, window)
        self.seeds = {name: i for i, name in enumerate(self.shapes)}

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        if name == "model.decoder.embed_positions.weight":
            return self._spelling(shape)
        made = numbers(self.seeds[name], *shape)
        if name == "model.decoder.embed_tokens.weight":
            made *= 2 * 3**0.5  # a deviation of 1
        elif name.endswith("norm.weight"):
            made += 1
        else:
            made *= SPREAD
        return made

    def _spelling(self, shape: tuple[int, ...]) -> np.ndarray:
        """What lies between a token and the next, for the positions of the text; nothing behind it."""
        tokens = self["model.decoder.embed_tokens.weight"][[*PROMPT, *TEXT, END]]
        made = np.zeros(shape, np.float32)
        made[len(PROMPT) - 1 : len(tokens) - 1] = (tokens[1:] - tokens[:-1])[len(PROMPT) - 1 :]
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def fresh(model: str, format: str, device: str) -> Whisper:
    """model: one of SHAPES. format: f32, f16, int8."""
    weights = dict(Weights(SHAPES[model]))
    for name in ("model.encoder.conv1.weight", "model.encoder.conv2.weight"):
        weights[name] = weights[name].transpose(0, 2, 1)
    dtype = "float16" if format == "f16" else "float32"
    made = Whisper(SHAPES[model]).load(weights, device=device, dtype=dtype).eval()
    return (quantize(made, format) if format == "int8" else made).prepare()


def features(config: WhisperConfig) -> np.ndarray:
    """A window (frames, num_mel_bins), within the limits of log-mel features."""
    return numbers(1, config.frames, config.num_mel_bins) * 2


def encoder(model: str, format: str, device: str = "cpu") -> Run:
    """A window; of what comes out, some channels: all of them together are normalised."""
    whisper = fresh(model, format, device)
    heard = _placed(whisper, features(whisper.config)[None])
    return lambda: whisper.encode(heard)[:, :, :8]


def decoder(model: str, format: str, device: str = "cpu") -> Run:
    """The text after its prompt; what was heard is in the cache already."""
    whisper = fresh(model, format, device)
    cache = Cache(whisper, whisper.encode(_placed(whisper, features(whisper.config)[None])), capacity=80)

    def run() -> Any:
        cache.truncate(0)
        return greedy(whisper, cache)

    return run


def greedy(whisper: Whisper, cache: Cache) -> list[int]:
    """The text's tokens, one by one, up to the one that ends it."""
    written, given = [], PROMPT
    while given[-1] != END:
        given = [int(forward(whisper, np.array([given]), cache)[0].argmax())]
        written += given
    return written


def tokenizer() -> Any:
    """A vocabulary of made-up words with Whisper's special tokens at their places."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {f"\u0120w{i}": i for i in range(len(letters), END)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)} | words, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    languages = ["en", *(f"l{i}" for i in range(1, 99))]
    names = ["endoftext", "startoftranscript", *languages, "translate", "transcribe", "startoflm", "startofprev",
             "nospeech", "notimestamps"]  # fmt: skip
    made.add_special_tokens([f"<|{name}|>" for name in names])
    assert made.token_to_id("<|notimestamps|>") == NO_TIMESTAMPS
    return made


def samples(config: WhisperConfig) -> np.ndarray:
    """Noise that fills a window."""
    return numbers(2, config.frames * HOP) * 0.1


def window(model: str, format: str, device: str = "cpu") -> Run:
    """The samples of a window as tokens, by the whole of our pipeline."""
    whisper = fresh(model, format, device)
    heard = samples(whisper.config)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer().save(str(Path(directory) / "tokenizer.json"))
        whisper.source = Checkpoint(Path(directory) / "model.safetensors", Path(directory))
        Tokenizer.of(whisper)  # it stays
    options = Options(language="en", temperature=0.0, beam_size=1, without_timestamps=True, suppress_tokens=(),
                      condition_on_previous_text=False)  # fmt: skip
    return lambda: [token for segment in transcribe(whisper, heard, options) for token in segment.tokens]


def _placed(whisper: Whisper, array: np.ndarray) -> Tensor:
    return Tensor(whisper.device.from_host(array), whisper.device)


PEERS = {
    "encoder": ("transformers", "ctranslate2"),
    "decoder": ("transformers", "ctranslate2"),
    "window": ("faster-whisper", "pywhispercpp"),
}
MODULES = {"transformers": "transformers", "ctranslate2": "ctranslate2", "faster-whisper": "faster_whisper",
           "pywhispercpp": "whisper_cpp"}  # fmt: skip


HEARD = 87_367_680_000
"""Operations of base's encoder on a window (torch.utils.flop_counter counts them)."""


def work(what: str, format: str) -> dict[str, float]:
    """flops and floor_bytes of base: the encoder's; of the decoder, for each token the weights of its products and of
    the head, and the keys and values of what was heard (half precision, but for f32). Tables and norms are left out."""
    c = SHAPES["base"]
    size, frames, square = {"f32": 4, "f16": 2, "int8": 1}[format], c.max_source_positions, c.d_model**2
    encoder, crossed = 12 * c.encoder_layers * square, 2 * c.decoder_layers * square
    token = 14 * c.decoder_layers * square + c.vocab_size * c.d_model
    heard = 2 * c.decoder_layers * frames * c.d_model  # numbers
    passes, tokens = len(TEXT) + 1, len(PROMPT) + len(TEXT)
    flops = {"encoder": HEARD, "decoder": 2 * tokens * token + 2 * heard * tokens}
    moved = {"encoder": size * encoder, "decoder": passes * (size * token + (4 if format == "f32" else 2) * heard)}
    flops["window"] = sum(flops.values()) + 2 * frames * crossed
    moved["window"] = sum(moved.values()) + size * crossed
    return {"flops": flops[what], "floor_bytes": moved[what]}


def _case(what: str, format: str, unit: str, work: float, peers: tuple[str, ...] | None = None, **floor: Any) -> Case:
    named = {name: f"zoo.whisper.peers:{what}_{MODULES[name]}" for name in (PEERS[what] if peers is None else peers)}
    # of rounded weights: each rounds its activations in its own way
    return Case(f"base {format} {what}", unit, work, f"zoo.whisper.bench:{what}", named,
                {"model": "base", "format": format}, group=f"Whisper, {what}", agree=1e-3 if format == "f32" else 0.05,
                **floor)  # fmt: skip


CASES = (
    _case("encoder", "f32", "s/s", SECONDS),
    _case("encoder", "int8", "s/s", SECONDS),
    _case("decoder", "f32", "tokens/s", WRITTEN),
    _case("decoder", "int8", "tokens/s", WRITTEN),
    _case("window", "f32", "s/s", SECONDS),
    _case("window", "int8", "s/s", SECONDS),
)
"""s/s: seconds of sound in a second."""

CUDA_CASES = tuple(
    _case(what, format, unit, amount, ("transformers",), **work(what, format))
    for what, unit, amount in (
        ("encoder", "s/s", SECONDS),
        ("decoder", "tokens/s", WRITTEN),
        ("window", "s/s", SECONDS),
    )
    for format in ("f32", "f16", "int8")
)
