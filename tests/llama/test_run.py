"""`zoo run llama`, as a user types it."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from zoo.cli.main import main
from zoo.hub import load
from zoo.llama import tokenizer as tokenizers
from zoo.llama.generate import generate
from zoo.llama.sampling import Sampling
from zoo.llama.writer import Answer, Writer


@pytest.fixture
def zoo(capsys, tiny):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["run", "llama", *arguments, "--weights", str(tiny), "--device", "cpu"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_a_text_goes_on(zoo, tiny):
    code, out, err = zoo("Hello", "--max-tokens", "12")
    model = load(tiny, device="cpu").prepare()
    tokenizer = tokenizers.of(model)
    prompt = tokenizer.encode("Hello")
    tokens = list(generate(model, prompt, max_tokens=12, stops=tokenizer.stops))
    expected = "".join(piece for _, piece in tokenizer.stream(tokens, after=prompt))
    assert code == 0 and out == "Hello" + expected + "\n"
    assert "prompt 6 tokens" in err and "first after" in err


def test_json(zoo):
    command = ("Hello", "--max-tokens", "5", "--json", "--temperature", "0.8", "--seed", "1")
    code, out, _ = zoo(*command)
    document = json.loads(out)
    assert code == 0 and document["model"] == "llama" and len(document["tokens"]) == 5
    assert document["prompt_tokens"][0] == 256 and document["stopped"] == "length"
    assert set(document["stats"]) == {"prefill_tps", "decode_tps", "ttft_s", "peak_mb"}
    assert json.loads(zoo(*command)[1])["tokens"] == document["tokens"]
    assert json.loads(zoo(*command[:-1], "2")[1])["tokens"] != document["tokens"]


def test_standard_input_and_an_empty_prompt(zoo, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert json.loads(zoo("-", "--json", "--max-tokens", "1")[1])["prompt_tokens"][0] == 256
    assert json.loads(zoo("--json", "--max-tokens", "1")[1])["prompt_tokens"] == [256]


def test_one_answer_of_a_chat(zoo):
    document = json.loads(zoo("Hi", "--chat", "--system", "Be short.", "--json", "--max-tokens", "2")[1])
    assert len(document["prompt_tokens"]) == 1 + len("[system]Be short.\n[user]Hi\n[assistant]")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("x" * 70,), "the prompt is too long: 71 tokens"),
        (("x" * 63,), "the prompt is too long: 64 tokens"),
        (("x", "--temperature", "-1"), "temperature = -1"),
        (("x", "--top-p", "0"), "top_p = 0"),
    ],
)
def test_errors_in_three_lines(zoo, arguments, why):
    code, out, err = zoo(*arguments)
    assert code == 1 and out in ("", arguments[0]) and why in err and "Traceback" not in err


def test_the_context_ends_the_answer(zoo):
    document = json.loads(zoo("x" * 60, "--json")[1])
    assert document["stopped"] == "context" and len(document["tokens"]) == 3


def test_a_second_turn_knows_the_first(tiny):
    model = load(tiny, device="cpu").prepare()
    tokenizer = tokenizers.of(model)
    writer = Writer(model, tokenizer, Sampling(), max_tokens=4)
    first = tokenizer.encode("abc")
    *_, answer = writer.write(first)
    assert isinstance(answer, Answer) and answer.cached == 0
    second = [*first, *answer.tokens, *tokenizer.encode("de")[1:]]
    *_, again = writer.write(second)
    assert again.cached == len(first) + len(answer.tokens) - 1
    assert again.tokens == list(generate(model, second, max_tokens=4, stops=tokenizer.stops))
    *_, other = writer.write(tokenizer.encode("xyz"))
    assert other.cached == 1  # the beginning of the text


def test_an_answer_that_is_broken_off_keeps_what_it_has_seen(tiny):
    model = load(tiny, device="cpu").prepare()
    writer = Writer(model, tokenizers.of(model), Sampling(), max_tokens=20)
    ids = writer.tokenizer.encode("abc")
    pieces = writer.write(ids)
    next(pieces)
    pieces.close()
    assert writer.cache.length == len(writer.cache.tokens) >= len(ids)
    assert np.array_equal(writer.cache.tokens[: len(ids)], ids)
