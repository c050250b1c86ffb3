"""From a REF to a filled model and back, through a third party's port."""

from __future__ import annotations

import json
import mmap
from importlib import import_module

import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError, ZooError
from zoo.hub import load, save
from zoo.hub.safetensors import read, write

W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)  # published: 3 inputs, 2 outputs
B = np.array([10, 20], np.float32)


@pytest.fixture
def published(weights, site):
    write(weights / "demo" / "model.safetensors", {"factors.w": W, "bias": B, "steps": np.array(7)})
    return weights / "demo"


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(tensor) for name, tensor in model.state().items()}


def refused(*arguments, **keywords) -> ZooError:
    with pytest.raises(ZooError) as raised:
        load(*arguments, **keywords)
    return raised.value


def test_a_published_file_is_recognised_and_translated(published):
    model = load("demo", device="numpy")
    assert np.array_equal(arrays(model)["factors.weight"], W.T) and np.array_equal(arrays(model)["factors.bias"], B)
    assert not model.training


def test_zoo_load_is_this_one(published):
    assert zoo.load is load


def test_a_single_file_needs_no_config(published):
    assert load(published / "model.safetensors", device="numpy").config.inputs == 3


def test_saving_and_loading_is_exact(published, tmp_path):
    save(
        load("demo", device="numpy"),
        tmp_path / "out",
        port="scaler",
        card={"summary": "fine"},
        metadata={"source": "x"},
    )
    with read(tmp_path / "out" / "model.safetensors") as tensors:
        assert tensors["factors.weight"].tobytes() == W.T.tobytes()
        assert tensors.metadata["zoo.port"] == "scaler" and tensors.metadata["source"] == "x"
        assert tensors.metadata["zoo.version"] == zoo.__version__
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "model_type": "scaler", "inputs": 3, "outputs": 2}  # fmt: skip
    for ref in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        assert np.array_equal(arrays(load(ref, device="numpy"))["factors.weight"], W.T)


def test_what_lies_beside_the_weights_goes_with_them(published, tmp_path):
    (published / "tokenizer.json").write_text("{}")
    (published / "notes.txt").write_text("not a part of it")
    model = load("demo", device="numpy")
    assert model.source.directory == published and model.to(zoo.device("numpy")).source is model.source
    for _ in range(2):
        save(model, tmp_path / "out", port="scaler")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"]  # fmt: skip
    save(load(tmp_path / "out", device="numpy"), tmp_path / "out", port="scaler")  # onto itself


def test_a_square_matrix_of_ours_is_not_translated_again(published, tmp_path):
    """Shapes cannot tell the two layouts apart here; the metadata does."""
    write(tmp_path / "square", {"factors.w": W[:2], "bias": B})
    model = load(tmp_path / "square", device="numpy")
    save(model, tmp_path / "out", port="scaler")
    assert np.array_equal(arrays(load(tmp_path / "out", device="numpy"))["factors.weight"], W[:2].T)


def test_dtypes(published, tmp_path):
    assert arrays(load("demo", device="numpy", dtype="float16"))["factors.bias"].dtype == np.float16
    assert arrays(load("demo", device="numpy", dtype=zoo.bfloat16))["factors.bias"].dtype == zoo.bfloat16
    save(load("demo", device="numpy"), tmp_path / "half", port="scaler", dtype=np.float16)
    assert arrays(load(tmp_path / "half", device="numpy"))["factors.bias"].dtype == np.float16  # as stored


def test_one_tensor_is_in_memory_at_a_time(published, monkeypatch):
    module = import_module("zoo.hub.load")
    alive = []

    class Counted(module._Arrays):
        def __getitem__(self, name):
            alive.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(module, "_Arrays", Counted)
    load("demo", device="numpy")
    assert sorted(alive) == ["factors.bias", "factors.weight"]  # each looked up once, when the model takes it


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_weights_that_need_no_change_stay_in_the_mapped_file(published, device):
    if device == "cpu" and zoo.device().name != "cpu":
        pytest.skip("the native extension is not built")
    with read(published / "model.safetensors") as tensors:
        in_file = tensors["bias"]
    held = arrays(load("demo", device=device))
    assert not held["factors.bias"].flags.owndata and np.array_equal(held["factors.bias"], in_file)
    base = held["factors.bias"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(getattr(base, "obj", base), mmap.mmap)


def test_config_json_decides_where_it_names_the_model(published):
    (published / "config.json").write_text('{"model_type": "scaler", "inputs": 3, "outputs": 2, "unknown_to_us": 1}')
    assert load("demo", device="numpy").config.outputs == 2
    (published / "config.json").write_text('{"model_type": "scaler", "inputs": 4, "outputs": 2}')
    error = refused("demo", device="numpy")
    assert error.what.endswith("1 tensor does not fit scaler")
    assert error.why == "factors.w is (3, 2); (4, 2) was expected"
    assert "config.json must describe" in error.fix


def test_a_config_that_lacks_a_field(published):
    (published / "config.json").write_text('{"model_type": "scaler", "inputs": 3}')
    error = refused("demo", device="numpy")
    assert "config does not describe a scaler" in error.what and "'outputs'" in error.why


def test_another_architecture(weights, site):
    write(weights / "alien" / "model.safetensors", {"a.b": np.zeros((2, 3), np.float32)})
    error = refused("alien", device="numpy")
    assert "its tensors are not those of" in error.what and "a.b (2, 3)" in error.why
    assert "not those of scaler" in refused("alien", port="scaler", device="numpy").what


def test_weights_of_another_port_say_which(published, tmp_path, monkeypatch):
    save(load("demo", device="numpy"), tmp_path / "out", port="scaler")
    from zoo import port as ports

    other = ports.Port(**{**vars(ports.get("scaler")), "name": "other"})
    error = refused(tmp_path / "out", port=other, device="numpy")
    assert error.why == "these are weights of scaler" and "zoo run scaler --weights" in error.fix


def test_integers_are_no_weights(weights, site):
    write(weights / "demo" / "model.safetensors", {"factors.w": W.astype(np.int32), "bias": B})
    assert "factors.w holds int32" in refused("demo", device="numpy").why


def test_missing_and_unused_tensors_come_in_one_report(weights, site):
    write(weights / "demo" / "model.safetensors", {"factors.w": W, "bais": B, "more": B})
    error = refused("demo", device="numpy")
    assert error.why.splitlines() == [
        "bias is missing (did you mean bais?)",
        "bais has no place in the model (did you mean bias?)",
        "more has no place in the model",
    ]


def test_an_unknown_device_is_told_before_anything_is_read(published):
    assert "unknown device" in refused("demo", device="gpu").what


def test_damaged_metadata(published, tmp_path):
    write(tmp_path / "t", {"factors.weight": W.T, "factors.bias": B},
          {"zoo.layout": "zoo", "zoo.port": "scaler", "zoo.config": "{"})  # fmt: skip
    assert "metadata is damaged" in refused(tmp_path / "t", device="numpy").why


def test_a_run_that_was_stopped_is_no_checkpoint_yet(weights, site):
    out = weights.parent / "out"
    file = out / "checkpoints" / "step-00000001.safetensors"
    write(file, {"model:bias": B}, {"zoo.train": "{}"})
    for named in (out, file):
        error = refused(named, device="numpy")
        assert "training run that has not ended" in error.why and f"--resume --out {out}`" in error.fix
    (out / "best").mkdir()
    assert f"{out / 'best'} has the weights" in refused(out, device="numpy").fix


def test_save_says_where_it_cannot_write(published, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot write"):
        save(load("demo", device="numpy"), tmp_path / "file", port="scaler")
