"""Captured passes of the decoder give the bits of passes that are not captured: greedy, in beams, window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.nn import quantize
from zoo.whisper.cache import Cache
from zoo.whisper.config import WhisperConfig
from zoo.whisper.decoding import forward
from zoo.whisper.model import Whisper

CPU: Any = pytest.importorskip("zoo.core.backends.cpu._native") and zoo.device("cpu")


def model_of(format: str) -> Whisper:
    config = WhisperConfig(
        vocab_size=80, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=20,
        max_target_positions=48,
    )  # fmt: skip
    model = Whisper(config).init(0, CPU).eval()
    if format == "bf16":
        model = model.astype("bfloat16")
    return (quantize(model, format) if format in ("int8", "int4") else model).prepare()


def logits(model: Whisper, capacity: int) -> list[np.ndarray]:
    """Two windows: a prompt, some tokens, three hypotheses each mixed between tokens, and once more."""
    features = np.random.default_rng(0).normal(size=(2, 40, 80)).astype(np.float32)
    cache = Cache(model, model.encode(Tensor(CPU.from_host(features), CPU)), capacity=capacity)
    found = [forward(model, np.array([[1, 2, 3], [4, 5, 6]]), cache)]
    found += [forward(model, np.array([[i], [i + 9]]), cache) for i in range(5)]
    cache.reorder([0, 0, 0, 1, 1, 1])
    for i in range(30):
        found.append(forward(model, np.arange(6)[:, None] + i, cache))
        cache.reorder([1, 0, 0, 4, 5, 3])
    cache.truncate(0)
    cache.reorder([0, 3])
    return [*found, *(forward(model, np.array([[i], [i + 9]]), cache) for i in range(5))]


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("capacity", [0, 48])
def test_the_same_bits(format: str, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(format)
    with monkeypatch.context() as patch:
        patch.setattr(CPU, "off", {"capture"})
        plain = logits(model, capacity)
    stats(reset=True)
    for got, wanted in zip(logits(model, capacity), plain, strict=True):
        assert got.tobytes() == wanted.tobytes()
    counted = stats()
    assert counted["capture.replayed"] >= 35 and counted["capture.recorded"] <= 4 and "capture.eager" not in counted
