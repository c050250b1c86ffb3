"""Captured passes give the bits of passes that are not captured, whatever the cache holds and however it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.stats import stats
from zoo.llama.batch import generate_batch
from zoo.llama.cache import DTYPES, Cache
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import forward, generate
from zoo.llama.model import Llama
from zoo.llama.speculative import Lookup
from zoo.nn import quantize

CPU: Any = pytest.importorskip("zoo.core.backends.cpu._native") and zoo.device("cpu")
SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def model_of(format: str = "f32", **settings: Any) -> Llama:
    model = Llama(LlamaConfig(**{**SHAPE, **settings})).init(0, CPU).eval()
    if format == "bf16":
        model = model.astype("bfloat16")
    return (quantize(model, format) if format in ("int8", "int4") else model).prepare()


def logits(model: Llama, dtype: str = "f32", capacity: int = 20) -> list[np.ndarray]:
    """Behind a prompt, then one by one, then a few at a time, then from an earlier place."""
    cache = Cache(model.config, capacity=capacity, dtype=DTYPES[dtype], device=CPU)
    found = [forward(model, list(range(5)), cache, 3)]
    found += [forward(model, [i % 96], cache) for i in range(40)]
    found += [forward(model, [i, 7, 9], cache, 3) for i in range(3)]
    cache.truncate(9)
    return found + [forward(model, [i % 96], cache) for i in range(5)]


def off(monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(CPU, "off", {"capture"})
        return run()


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4"])
def test_weights(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(format, hidden_size=128 if format == "int4" else 64)
    plain = off(monkeypatch, lambda: logits(model))
    stats(reset=True)
    for got, wanted in zip(logits(model), plain, strict=True):
        assert got.tobytes() == wanted.tobytes()
    counted = stats()
    assert counted["capture.replayed"] > 40 and counted["capture.recorded"] <= 6 and "capture.eager" not in counted


@pytest.mark.parametrize("dtype", DTYPES)
def test_caches(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    for got, wanted in zip(logits(model, dtype), off(monkeypatch, lambda: logits(model, dtype)), strict=True):
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("scaling", [None, {"rope_type": "dynamic", "factor": 2.0}])
def test_texts(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, with guesses, past the end of the context, and several side by side."""
    model, prompt = model_of(rope_scaling=scaling), [5, 6, 7, 8, 9]

    def run() -> Any:
        return (
            list(generate(model, prompt, max_tokens=50)),
            list(generate(model, prompt, max_tokens=150, overflow="shift", proposer=Lookup(4))),
            list(generate_batch(model, [prompt, prompt[:2], [1]], max_tokens=20)),
        )

    assert run() == off(monkeypatch, run)


def test_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was captured with weights that the model no longer has is forgotten."""
    model = model_of()
    cache = Cache(model.config, capacity=64, device=CPU)
    first = list(generate(model, [1, 2, 3], max_tokens=20, cache=cache))
    other = Llama(model.config).init(7, CPU).eval().prepare()
    model.update(other.state())
    cache.truncate(0)
    second = list(generate(model, [1, 2, 3], max_tokens=20, cache=cache))
    assert second == list(generate(other, [1, 2, 3], max_tokens=20)) != first


def test_a_step_in_training_is_not_captured() -> None:
    """There may be random numbers in it."""
    model = model_of().train()
    cache = Cache(model.config, capacity=64, device=CPU)
    stats(reset=True)
    forward(model, [1], cache)
    assert not any(name.startswith("capture") for name in stats())
