"""What the cache keeps: dtypes, what is forgotten where the context is full, and how much memory it takes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import ZooError
from zoo.hub import load
from zoo.llama import tokenizer as tokenizers
from zoo.llama.cache import DTYPES, Cache, bytes_of
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import KEPT, generate, shifted
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.speculative import Lookup
from zoo.llama.writer import Writer


def model_of(**changed) -> Llama:
    shape = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    return Llama(LlamaConfig(**{**shape, **changed})).init(0, "cpu").prepare()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("f32", 1e-6),
        ("f16", 5e-4),  # 2^-11 of a key or value
        ("bf16", 4e-3),  # 2^-8
        ("int8", 4e-3),  # half a step is 1/254 of a vector's largest entry
    ],
)
def test_logits_with_a_narrow_cache(device, name, tolerance):
    """Of the largest logit: rounded keys and values are averaged over, so a logit is less off than they are."""
    model = Llama(model_of().config).init(0, device)
    ids = np.random.default_rng(0).integers(0, 60, (1, 40)).astype(np.int32)
    whole = model(zoo.tensor(ids, device=model.device)).numpy()[0]
    cache = Cache(model.config, capacity=3, dtype=DTYPES[name], device=model.device)  # it must grow, too
    parts = [model(zoo.tensor(ids[:, i : i + 8], device=model.device), cache).numpy()[0] for i in range(0, 40, 8)]
    error = np.abs(np.concatenate(parts) - whole).max() / np.abs(whole).max()
    assert error < tolerance and (name == "f32" or error > 1e-7)


@pytest.mark.parametrize("name", DTYPES)
def test_bytes(name):
    model = model_of()
    cache = Cache(model.config, capacity=50, dtype=DTYPES[name], device=model.device)
    assert cache.nbytes == bytes_of(model.config, 50, DTYPES[name])
    # layers x (keys and values) x heads x positions x (16 numbers, and in int8 the length of a step)
    assert cache.nbytes == 2 * 2 * 2 * 50 * {"f32": 64, "f16": 32, "bf16": 32, "int8": 20}[name]


def test_int8_survives_zeros_and_large_numbers():
    model = model_of()
    cache = Cache(model.config, dtype="int8", device=model.device)
    x = np.zeros((1, 3, 2, 16), np.float32)
    x[0, 1] = np.linspace(-1e30, 1e30, 16)
    cache.begin(3)
    k, _, _ = cache.layers[0].append(zoo.tensor(x, device=model.device), zoo.tensor(x, device=model.device))
    assert np.abs(k.numpy() - x).max() <= 1e30 / 253 and not k.numpy()[0, [0, 2]].any()


# --- a context that is full -------------------------------------------------------------------------------------------


def test_what_stays():
    text = list(range(100, 165))
    assert shifted(text[:64], 64) == text[:64]
    assert shifted(text, 64) == text[:KEPT] + text[-30:]
    assert shifted([1, 2, 3], 2) == [1, 3]


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_text_goes_on_past_the_context(kind):
    """The tokens after a shift are those of a fresh start from the tokens that stay."""
    scaling = {"rope_type": "dynamic", "factor": 2.0} if kind == "dynamic" else None
    model = model_of(rope_scaling=scaling)
    prompt = [5, 6, 7, 8, 9]
    cache = Cache(model.config, device=model.device)
    settings = {"sampling": Sampling(temperature=1.0), "seed": 3}
    tokens = list(generate(model, prompt, max_tokens=300, overflow="shift", cache=cache, **settings))
    assert len(tokens) == 300 and cache.length <= 64 and len(set(tokens)) > 10
    greedy = list(generate(model, prompt, max_tokens=300, overflow="shift"))
    text, again = list(prompt), []
    while len(again) < 300:
        text = text if len(text) <= 64 else [*text[:KEPT], *text[-30:]]
        logits = model(zoo.tensor(np.array([text], np.int32), device=model.device), last=1).numpy()[0, 0]
        assert np.isfinite(logits).all()
        again.append(int(logits.argmax()))  # without a cache, from the kept tokens alone
        text.append(again[-1])
    assert greedy == again
    assert greedy[:59] == list(generate(model, prompt, max_tokens=300))  # which stops where the context is full
    assert list(generate(model, prompt, max_tokens=300, overflow="shift", proposer=Lookup(4))) == greedy


def test_a_prompt_that_is_too_long_can_be_shifted():
    model = model_of()
    prompt = np.random.default_rng(1).integers(0, 60, 100).tolist()
    with pytest.raises(ZooError, match="the prompt is too long"):
        next(generate(model, prompt, max_tokens=5))
    tokens = list(generate(model, prompt, max_tokens=5, overflow="shift"))
    assert tokens == list(generate(model, [*prompt[:KEPT], *prompt[-30:]], max_tokens=5))


def test_a_conversation_outlives_the_context(tiny):
    model = load(tiny, device="cpu").prepare()
    writer = Writer(model, tokenizers.of(model), Sampling(), max_tokens=30, overflow="shift")
    ids = writer.tokenizer.encode("abc")
    for _ in range(5):
        *_, answer = writer.write(ids)
        ids = [*ids, *answer.tokens, *writer.tokenizer.encode("de")[1:]]
        assert writer.cache.length == len(writer.cache.tokens) <= 64
    assert len(ids) > 128


def test_commands(tiny, capsys):
    def run(*options: str) -> dict:
        command = ["run", "llama", "x" * 40, "--weights", str(tiny), "--max-tokens", "60", "--json", *options]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)

    assert run()["stopped"] == "context"
    long = run("--overflow", "shift")
    assert long["stopped"] == "length" and len(long["tokens"]) == 60
    for name in DTYPES:
        assert run("--cache", name)["tokens"][0] == long["tokens"][0]


def test_a_pass_that_breaks_off_leaves_a_cache_that_can_be_used(monkeypatch):
    """Ctrl-C may come between two layers."""
    model = model_of()
    prompt = list(range(10))
    plain = list(generate(model, prompt, max_tokens=12))
    cache = Cache(model.config, device=model.device)
    tokens = generate(model, prompt, max_tokens=12, cache=cache)
    first = [next(tokens) for _ in range(4)]
    layer = type(model.model.layers[1])
    call = layer.__call__

    def broken(self, *arguments):
        if self is model.model.layers[1]:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(layer, "__call__", broken)
    cache.captured.clear()  # what is replayed does not come by here
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    monkeypatch.setattr(layer, "__call__", call)
    assert cache.length == len(cache.tokens) == 13
    assert list(generate(model, [*prompt, *first], max_tokens=8, cache=cache)) == plain[4:]
