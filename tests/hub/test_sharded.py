"""Checkpoints in several files: whole, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.hub import refs
from zoo.hub.formats import read
from zoo.hub.safetensors import write

A, B, C = (np.full((2, 2), value, np.float32) for value in (1, 2, 3))
MAP = {"a": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors", "b": "model-1-of-2.safetensors"}


def index(directory: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return directory / name


@pytest.fixture
def whole(tmp_path) -> Path:
    write(tmp_path / MAP["a"], {"a": A, "b": B}, {"format": "pt"})
    write(tmp_path / MAP["c"], {"c": C})
    return index(tmp_path, MAP)


def refused(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as raised:
        read(path)
    assert raised.value.why and raised.value.fix and len(str(raised.value).splitlines()) == 3
    return raised.value


def test_all_shards_are_one(whole):
    with read(whole) as tensors:
        assert tensors.nbytes == sum((whole.parent / file).stat().st_size for file in set(MAP.values()))
        assert list(tensors) == ["a", "c", "b"] and tensors.metadata == {"format": "pt"}
        assert all(np.array_equal(tensors[name], array) for name, array in (("a", A), ("b", B), ("c", C)))


def test_a_directory_with_an_index_is_a_checkpoint(whole):
    assert refs.resolve(whole.parent).file == whole


def test_shards_of_torch_save(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files of this test")
    for file, value in (("pytorch_model-1.bin", A), ("pytorch_model-2.bin", B)):
        torch.save({file[-5]: torch.from_numpy(value)}, tmp_path / file)
    path = index(tmp_path, {"1": "pytorch_model-1.bin", "2": "pytorch_model-2.bin"}, "pytorch_model.bin.index.json")
    assert refs.resolve(tmp_path).file == path
    assert np.array_equal(read(path)["2"], B)


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a/b.safetensors", "..", ".", "", "C:x", "a\\b", ".hidden", "a\0b", 3, None, ["x"],
     "model.safetensors.index.json"],
)  # fmt: skip
def test_names_that_lead_elsewhere(whole, name):
    assert "no file beside it" in refused(index(whole.parent, {**MAP, "a": name})).why


def test_a_shard_that_is_missing(whole):
    (whole.parent / MAP["a"]).unlink()
    assert "model-1-of-2.safetensors is missing, with 2 tensors (a, ...)" in refused(whole).why


def test_a_shard_that_is_truncated(whole):
    shard = whole.parent / MAP["c"]
    shard.write_bytes(shard.read_bytes()[:-1])
    error = refused(whole)
    assert error.what == f"cannot read {shard}" and "truncated" in error.why


def test_a_tensor_that_its_shard_lacks(whole):
    assert "lacks d, and 1 more" in refused(index(whole.parent, {**MAP, "d": MAP["c"], "e": MAP["a"]})).why


def test_a_tensor_that_the_index_does_not_know(whole):
    assert "holds b, which the index puts into no file" in refused(
        index(whole.parent, {k: v for k, v in MAP.items() if k != "b"})).why  # fmt: skip


def test_a_tensor_in_two_shards(whole):
    write(whole.parent / MAP["c"], {"c": C, "a": A})
    assert "holds a, which the index puts into model-1-of-2" in refused(whole).why


def test_a_name_that_the_index_has_twice(whole):
    whole.write_text('{"weight_map": {"a": "x", "a": "y"}}')
    assert "twice" in refused(whole).why


@pytest.mark.parametrize("content", ['{"a": 1}', '{"weight_map": {}}', '{"weight_map": []}', "{", '{"weight_map":' * 9])
def test_json_that_is_no_index(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    refused(tmp_path / "x.json")


def test_an_index_of_indices(whole):
    """A file that names another index as its shard, which names it in turn, would not end."""
    other = index(whole.parent, {"a": whole.name}, "other.json")
    assert "index of a checkpoint" in refused(index(whole.parent, {"a": other.name})).why
