"""What users get wrong: each is told in three lines, without a traceback, and nothing is written."""

from __future__ import annotations

import json
import shutil

import pytest

from zoo.cli.main import main
from zoo.hub.safetensors import write


@pytest.fixture
def told(tiny, capsys):
    """What `zoo run llama` says of the checkpoint `tiny`."""

    def run(*arguments: str) -> str:
        code = main(["run", "llama", *arguments, "--weights", str(tiny), "--device", "cpu"])
        out, err = capsys.readouterr()
        assert code == 1 and "Traceback" not in err and "this is a bug" not in err
        assert out in ("", arguments[0])
        message = err[err.index("zoo: ") :].splitlines()
        assert 2 <= len(message) <= 4, message
        return err

    return run


def test_no_tokenizer(told, tiny):
    (tiny / "tokenizer.json").unlink()
    assert "there is no tokenizer.json beside the weights" in told("Hello")


def test_a_tokenizer_of_another_model(told, tiny):
    text = json.loads((tiny / "tokenizer.json").read_text())
    text["added_tokens"].append({**text["added_tokens"][0], "id": 258, "content": "<more>"})
    (tiny / "tokenizer.json").write_text(json.dumps(text))
    assert "it has 259 tokens, the model has embeddings for 258" in told("Hello")


@pytest.mark.parametrize(
    ("template", "why"),
    [("{% for %}", "Expected"), ("{{ messages[9].content }}", "no element 9"), ("{{ 1 / 0 }}", "ZeroDivisionError")],
)
def test_a_template_that_fails(told, tiny, template, why):
    (tiny / "chat_template.jinja").write_text(template)
    assert why in told("Hello", "--chat")


def test_no_template(told, tiny):
    (tiny / "tokenizer_config.json").write_text("{}")
    assert "it has no chat template" in told("Hello", "--chat")


def test_too_long_and_too_little(told):
    assert "the prompt is too long: 71 tokens" in told("x" * 70)
    assert "--overflow shift" in told("x" * 70)
    assert "--max-tokens is 0" in told("Hello", "--max-tokens", "0")
    assert "--max-tokens is -3" in told("Hello", "--max-tokens", "-3")


@pytest.mark.parametrize("bias", ["5", "x=1", "258=1", "-1=1", "3=nan", "3="])
def test_biases_that_are_none(told, bias):
    assert "a bias is ID=VALUE, with an id from 0 to 257" in told("Hello", "--logit-bias", bias)


def sharded(tiny, spoil) -> None:
    """The checkpoint in two files with an index; `spoil` damages it."""
    from zoo.hub.formats import read

    with read(tiny / "model.safetensors") as tensors:
        arrays = {name: array.copy() for name, array in tensors.items()}
    (tiny / "model.safetensors").unlink()
    names = sorted(arrays)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        write(tiny / file, {name: arrays[name] for name in names if places[name] == file})
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    spoil(tiny, places)


def _missing(tiny, places) -> None:
    (tiny / "model-00002-of-00002.safetensors").unlink()


def _cut(tiny, places) -> None:
    path = tiny / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _swapped(tiny, places) -> None:
    shutil.copyfile(tiny / "model-00001-of-00002.safetensors", tiny / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "why"), [(_missing, "is missing"), (_cut, "truncated"), (_swapped, "which the index")]
)
def test_a_broken_shard(told, tiny, spoil, why):
    sharded(tiny, spoil)
    assert why in told("Hello")


def test_shards_that_are_whole(tiny, capsys):
    sharded(tiny, lambda tiny, places: None)
    assert main(["run", "llama", "Hello", "--weights", str(tiny), "--max-tokens", "3", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("Hello")
