"""Several texts side by side: each is what it would be alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoo.cli.main import main
from zoo.core.errors import ZooError
from zoo.hub import load
from zoo.llama import tokenizer as tokenizers
from zoo.llama.batch import generate_batch
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import generate
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling


def model_of(seed: int, device: str = "cpu", **changed) -> Llama:
    shape = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    return Llama(LlamaConfig(**{**shape, **changed})).init(seed, device).prepare()


def together(model, prompts, **settings) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in generate_batch(model, prompts, **settings):
        rows[row].append(token)
    return rows


def prompts_of(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 60, n).tolist() for n in lengths]


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, repetition_penalty=1.2)])
def test_every_row_is_what_it_is_alone(device, seed, sampling, monkeypatch):
    model, prompts = model_of(seed, device), prompts_of([12, 1, 30, 7])
    alone = [list(generate(model, p, sampling, max_tokens=25, seed=5 + i)) for i, p in enumerate(prompts)]
    assert together(model, prompts, sampling=sampling, max_tokens=25, seed=5) == alone
    monkeypatch.setattr("zoo.llama.batch.PREFILL", 4)  # some rows begin several parts later than others
    assert together(model, prompts, sampling=sampling, max_tokens=25, seed=5) == alone


def test_rows_end_by_themselves():
    model, prompts = model_of(1), prompts_of([5, 60, 9])
    whole = together(model, prompts, max_tokens=20)
    assert [len(row) for row in whole] == [20, 4, 20]  # the second fills the context
    stop = whole[0][6]
    cut = together(model, prompts, max_tokens=20, stops=frozenset([stop]))
    assert cut == [row[: row.index(stop)] if stop in row else row for row in whole]
    ended: set[int] = set()
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in generate_batch(model, prompts, max_tokens=20, ended=ended):
        rows[row].append(token)
        if row == 2 and len(rows[2]) == 3:
            ended.add(2)
    assert rows == [whole[0], whole[1], whole[2][:3]]


def test_what_cannot_be_continued():
    model = model_of(0)
    with pytest.raises(ZooError, match="the prompt is too long: 64 tokens"):
        together(model, prompts_of([3, 64]), max_tokens=5)
    with pytest.raises(ZooError, match="nothing to write"):
        together(model, prompts_of([3, 4]), max_tokens=0)


def test_commands(tiny, capsys):
    def run(*options: str) -> tuple[int, str, str]:
        code = main(["run", "llama", *options, "--weights", str(tiny), "--max-tokens", "8"])
        return code, *capsys.readouterr()

    texts = ["Hello", "a b", "猫"]
    alone = [json.loads(run(text, "--json")[1]) for text in texts]
    results = json.loads(run(*texts, "--json")[1])["results"]
    for one, row in zip(alone, results, strict=True):
        assert {k: v for k, v in one.items() if k in row and k != "stats"} == {
            k: v for k, v in row.items() if k != "stats"
        }
    _, out, err = run(*texts)
    assert out == "".join(f"{text}{row['text']}\n" for text, row in zip(texts, results, strict=True))
    assert err.count("stopped by --max-tokens") == 3
    chats = json.loads(run("a", "b", "--chat", "--json")[1])["results"]
    tokenizer = tokenizers.of(load(tiny, device="cpu"))
    assert [c["prompt_tokens"] for c in chats] == [tokenizer.chat([{"role": "user", "content": t}]) for t in "ab"]
    stop = results[0]["text"][3]
    stopped = json.loads(run(*texts, "--json", "--stop", stop)[1])["results"]
    assert stopped[0]["stopped"] == "stop" and stopped[0]["text"] == results[0]["text"].partition(stop)[0]
    code, _, err = run("a", "b", "--lookup", "3")
    assert code == 1 and "one text at a time" in err
