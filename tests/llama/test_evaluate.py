"""Perplexity: which tokens are scored, against transformers' loss, and what rounding the weights costs."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import DataError, ZooError
from zoo.hub import load
from zoo.llama import tokenizer as tokenizers
from zoo.llama.evaluate import Evaluated, evaluate, windows
from zoo.llama.generate import generate
from zoo.llama.sampling import Sampling

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.parametrize("tokens", [2, 3, 9, 10, 11, 37])
@pytest.mark.parametrize(("context", "stride"), [(10, 5), (10, 9), (10, 1), (2, 1), (7, 3)])
def test_every_token_but_the_first_is_scored_once(tokens, context, stride):
    found, before = [], []
    for start, scored, end in windows(tokens, context, stride):
        assert start < scored < end <= min(start + context, tokens)
        found += range(scored, end)
        before += [i - start for i in range(scored, end)]
    assert found == list(range(1, tokens))
    assert all(n >= min(i, context - stride) for i, n in zip(found, before, strict=True))


def measured(model, path: Path, **settings) -> Evaluated:
    (found,) = evaluate(model, data=path, **settings)
    return found


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a naïve 猫. " * 6, encoding="utf-8")
    return path


def test_it_is_the_loss_of_transformers_over_the_same_windows(tiny, text, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    published = tiny.parent / "published"
    assert main(["export", str(tiny), str(published), "--quiet"]) == 0
    theirs = transformers.LlamaForCausalLM.from_pretrained(published).eval()
    model = load(tiny, device="cpu")
    ids = tokenizers.of(model).encode(text.read_text(encoding="utf-8"))
    monkeypatch.setattr(sys.modules[evaluate.__module__], "PIECE", 7)
    for context, stride in ((64, 32), (20, 1), (20, 19)):
        nats = 0.0
        for start, scored, end in windows(len(ids), context, stride):
            labels = torch.tensor([ids[start:end]])
            labels[:, : scored - start] = -100
            with torch.no_grad():  # their loss is the mean over what is learned
                nats += float(theirs(torch.tensor([ids[start:end]]), labels=labels).loss) * (end - scored)
        found = measured(model, text, context=context, stride=stride)
        assert found.tokens == len(ids) - 1
        assert found.perplexity == pytest.approx(math.exp(nats / found.tokens), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.read_bytes()), rel=1e-5)


def test_the_command(tiny, text, capsys):
    command = ["eval", "llama", "--weights", str(tiny), "--data", str(text)]
    assert main([*command, "--json", "--device", "cpu", "--dtype", "int8"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["context"], result["stride"], result["bytes"]) == (64, 32, len(text.read_bytes()))
    assert 50 < result["perplexity"] < 5000  # 258 tokens by a model that knows nothing
    assert main([*command, "--context", "16"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("perplexity ") and "windows of 16 tokens that advance by 8" in shown.err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"context": 65}, "64 tokens at once"),
        ({"context": 1}, "predicting needs 2"),
        ({"stride": 0}, "never end"),
        ({"context": 16, "stride": 16}, "leave tokens out"),
    ],
)
def test_windows_that_make_no_sense(tiny, text, settings, why):
    with pytest.raises(ZooError) as raised:
        measured(load(tiny, device="cpu"), text, **settings)
    assert why in raised.value.why


def test_texts_and_weights_that_cannot_be_measured(tiny, text, tmp_path):
    model = load(tiny, device="cpu")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="nothing to predict"):
        measured(model, tmp_path / "empty.txt")
    with pytest.raises(DataError, match="no perplexity of"):
        measured(model, tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        measured(model, tmp_path / "absent.txt")
    model.set("model.norm.weight", model.model.norm.weight * math.nan)
    with pytest.raises(ZooError, match="predicts nothing"):
        measured(model, text)


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> tuple[Path, Path]:
    """A real model, and text of its kind: its own, drawn at temperature 1."""
    directory = DATA / "stories260k" / "hf"
    if not directory.exists():
        pytest.skip(f"no {directory} (ZOO_TEST_DATA)")
    model = load(directory, device="cpu").prepare()
    tokenizer, sampling = tokenizers.of(model), Sampling(temperature=1.0)
    drawn = [generate(model, [1], sampling, max_tokens=400, stops=frozenset({1, 2}), seed=seed) for seed in range(5)]
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text("\n".join(tokenizer.decode(list(ids)).strip() for ids in drawn), encoding="utf-8")
    return directory, path


@pytest.mark.parametrize(("dtype", "off"), [("bf16", 0.002), ("f16", 0.0005), ("int8", 0.005), ("int4", 0.04)])
def test_what_rounding_costs_a_real_model(stories, dtype, off):
    directory, path = stories
    plain, rounded = (measured(load(directory, device="cpu", dtype=d).prepare(), path) for d in ("f32", dtype))
    assert plain.tokens > 1000 and plain.perplexity < 6
    assert 0 < abs(rounded.perplexity / plain.perplexity - 1) < off


def test_what_rounding_costs_the_model_that_ships(tmp_path):
    """Shakespeare's last twentieth, which it was not trained on; its matrices are wide enough for int4."""
    from zoo.hub import refs

    if "llama" not in refs.available():
        pytest.skip("weights/llama is not there")
    whole = DATA / "text" / "tinyshakespeare.txt"
    if not whole.exists():
        pytest.skip(f"no {whole} (ZOO_TEST_DATA)")
    text = whole.read_text(encoding="utf-8")
    (tmp_path / "end.txt").write_text(text[-len(text) // 40 :], encoding="utf-8")
    found = {d: measured(zoo.load("llama", device="cpu", dtype=d).prepare(), tmp_path / "end.txt").perplexity
             for d in ("f32", "int8", "int4")}  # fmt: skip
    assert found["f32"] < 60
    assert abs(found["int8"] / found["f32"] - 1) < 0.005
    assert 0 < abs(found["int4"] / found["f32"] - 1) < 0.04
    assert np.isfinite(list(found.values())).all()
