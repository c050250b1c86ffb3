"""`zoo new`: what it writes can be imported, loads the whole checkpoint, and says what is left to write."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.compare import compare_traces, record
from zoo.core.errors import ZooError
from zoo.hub.load import load
from zoo.hub.mapped import TensorInfo
from zoo.hub.safetensors import write
from zoo.new import find, make
from zoo.new.classes import Skeleton
from zoo.new.tree import read

CONFIG = {"model_type": "toy", "architectures": ["ToyModel"], "vocab_size": 31, "hidden_size": 8, "num_layers": 12,
          "intermediate_size": 12, "layer_norm_eps": 1e-6, "rope": {"base": 1e4}, "kinds": ["a"], "label": None,
          "image_size": 16}  # fmt: skip


def toy(layers: int = 12) -> dict[str, np.ndarray]:
    """A checkpoint with one of everything: more than ten layers, a matrix stored the other way, a table to drop."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (31, 8), "stem.conv.weight": (8, 3, 5, 5),
                                          "stem.norm.weight": (8,), "stem.norm.bias": (8,),
                                          "stem.norm.running_mean": (8,), "stem.norm.running_var": (8,),
                                          "scale": (8,)}  # fmt: skip
    for i in range(layers):
        shapes |= {f"layers.{i}.attn.qkv.weight": (24, 8), f"layers.{i}.attn.out.weight": (8, 8)}
        shapes |= {f"layers.{i}.norm.weight": (8,), f"layers.{i}.mlp.0.weight": (12, 8)}
        shapes |= {f"layers.{i}.mlp.0.bias": (12,), f"layers.{i}.mlp.2.weight": (8, 12), f"layers.{i}.mlp.2.bias": (8,)}
    for i, (inputs, outputs) in enumerate([(8, 16), (16, 24)]):
        shapes |= {f"down.{i}.weight": (outputs, inputs, 3), f"down.{i}.bias": (outputs,)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**tensors, "embed_tokens.position_ids": np.arange(5)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "published"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    write(directory / "model.safetensors", toy(), {})
    return directory


@pytest.fixture
def port(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    place = make("toy_port", find(str(checkpoint)), tmp_path, str(checkpoint))
    monkeypatch.syspath_prepend(str(place.parent))
    yield importlib.import_module("toy_port").PORT
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_port"]:
        del sys.modules[name]


def test_the_port_loads_every_tensor_from_the_first_minute(port: Any, checkpoint: Path) -> None:
    model = load(checkpoint, port=port, device="numpy")
    state = {name: tensor.numpy() for name, tensor in model.state().items()}
    published = toy()
    del published["embed_tokens.position_ids"]
    assert set(published) <= set(state)
    assert np.array_equal(state["layers.10.attn.out.weight"], published["layers.10.attn.out.weight"])
    assert np.array_equal(state["stem.conv.weight"], published["stem.conv.weight"].transpose(0, 2, 3, 1))
    assert np.array_equal(state["down.1.weight"], published["down.1.weight"].transpose(0, 2, 1))
    back = dict(port.weights.export(state, model.config).translate(state))
    assert set(back) == set(published) and all(np.array_equal(back[n], published[n]) for n in published)


def test_numbers_are_fields_of_the_config_and_layers_one_class(port: Any, tmp_path: Path) -> None:
    source = (tmp_path / "toy_port/model.py").read_text()
    assert "self.layers = [Layer(c) for _ in range(c.num_layers)]" in source
    assert "self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)" in source
    assert 'self.mlp = {\n            "0": Linear(c.hidden_size, c.intermediate_size),' in source
    assert "self.norm = RMSNorm(c.hidden_size, eps=c.layer_norm_eps)" in source
    assert "self.scale = Param((c.hidden_size,), init.zeros)" in source
    config = port.config()
    assert (config.vocab_size, config.kinds, config.rope, config.label) == (31, ("a",), {"base": 1e4}, None)
    assert not hasattr(config, "architectures")


def test_compare_says_what_is_left_to_write(port: Any, checkpoint: Path) -> None:
    model = load(checkpoint, port=port, device="numpy")
    trace = record(model, port.example(model.config))
    found = compare_traces(model, trace, trace, {}, 1e-4)
    assert not found.agrees and found.finding is not None
    assert found.finding.cause == "NotImplementedError: ToyPort: write what it computes"


def test_the_source_is_tidy(port: Any, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    settings = ["--isolated", "--select", "E,F,W,I,UP", "--line-length", "120", "--target-version", "py310"]
    command = [sys.executable, "-m", "ruff", "check", *settings, str(tmp_path / "toy_port")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_matrix_that_is_stored_the_other_way_is_turned() -> None:
    """GPT-2's are (inputs, outputs): one whose bias shows it tells of the square ones too."""
    source = {"fc.weight": np.zeros((8, 32)), "fc.bias": np.zeros(32), "proj.weight": np.zeros((8, 8)),
              "proj.bias": np.zeros(8)}  # fmt: skip
    infos = {name: TensorInfo(array.shape, np.dtype(np.float32)) for name, array in source.items()}
    tree = read(infos)
    assert [leaf.turned for leaf in tree.root.parts.values()] == [("weight",), ("weight",)]  # type: ignore[union-attr]
    assert "Linear(8, 32)" in Skeleton(tree.root, "toy", {}).sources()[-1]


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    place = make("alone", find(str(config)), tmp_path / "out", str(config))
    compile((place / "model.py").read_text(), "model.py", "exec")
    assert "hidden_size: int = 8" in (place / "config.py").read_text()


@pytest.mark.parametrize("name", ["Bert", "2bert", "class", "a-b", "../x"])
def test_a_name_that_is_no_package_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="cannot be called"):
        make(name, find(str(checkpoint)), tmp_path, str(checkpoint))


def test_nothing_is_written_over(port: Any, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="there already"):
        make("toy_port", find(str(checkpoint)), tmp_path, str(checkpoint))
    assert not list(tmp_path.glob(".toy_port*"))
