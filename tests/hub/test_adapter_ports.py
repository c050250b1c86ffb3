"""An adapter of each port, up to a picture, a text or a transcript: run as it is, beside rounded weights, and merged
into its base."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.core.random import Generator
from zoo.hub import adapter, load
from zoo.hub.safetensors import read
from zoo.nn import Linear, QuantizedConv2d, QuantizedLinear, Sequential, global_avg_pool, lora
from zoo.nn.quantized import formats

ROOT = Path(zoo.__file__).resolve().parents[1]
DIGIT = str(ROOT / "zoo" / "mnist_cnn" / "samples" / "0_ballpoint.png")
CLIP = str(ROOT / "weights" / "whisper" / "clips" / "1_en-us_m2.flac")
CASES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "mnist_cnn": ((), [DIGIT]),
    "resnet": ((), [DIGIT, "--top", "10"]),
    "llama": (("q_proj", "mlp.down_proj"), ["First Citizen:", "--max-tokens", "8", "--temperature", "0"]),
    "whisper": (("q_proj", "out_proj", "conv2", "fc1"), [CLIP]),
    "stable_diffusion": (
        ("unet.conv_in", "to_q", "to_out", "resnets.0.conv1", "proj_in"),
        ["a handwritten seven", "--steps", "2", "--seed", "3", "--out", "picture.png"],
    ),
}


def changed(name: str, dora: bool, scale: float = 0.05) -> Any:
    """A shipped model with an adapter that does something, but not much."""
    model = load(name, device="cpu")
    lora.attach(model, 2, targets=CASES[name][0], dora=dora)
    rng = np.random.default_rng(0)
    for path, layer in lora.layers(model).items():
        b = layer.lora_B.weight
        drawn = rng.normal(0, scale / np.sqrt(2), b.shape).astype(np.float32)
        model.set(f"{path}.lora_B.weight", zoo.tensor(drawn, device=model.device))
    return model


def result(name: str, weights: Path | str, capsys: Any, *more: str) -> Any:
    assert main(["run", name, *CASES[name][1], "--weights", str(weights), "--json", "-q", *more]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["weights"].endswith(str(weights))
    if name == "mnist_cnn":
        return np.log(document["results"][0]["probabilities"])
    if name == "resnet":
        top = sorted(document["results"][0]["top"], key=lambda one: one["index"])
        return np.log([one["probability"] for one in top])
    if name == "stable_diffusion":
        return np.asarray(Image.open("picture.png"), np.float32) / 255
    return document["text"] if name == "llama" else document["results"][0]["text"]


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", CASES)
def test_an_adapter_is_run_and_merged(name, dora, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = changed(name, dora)
    adapter.save(model, Path("adapter"), name)
    found = result(name, "adapter", capsys)
    if not isinstance(found, str):
        plain = result(name, name, capsys)
        assert apart(found, plain) > 0.01  # it does something
    again = load("adapter", device="cpu")
    assert again.state().keys() == model.state().keys()
    assert all(np.array_equal(again.state()[path].numpy(), t.numpy()) for path, t in model.state().items())

    assert main(["export", "adapter", "merged", "--merge", "-q"]) == 0
    whole = result(name, "merged", capsys)
    if isinstance(found, str):
        assert found and whole == found
    else:
        assert apart(whole, found) < 5e-3  # its weights are float16, pixels have 8 bits


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_beside_rounded_weights_is_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    adapter.save(changed(name, dora=True), Path("adapter"), name)
    for dtype in ("int8", "int4"):
        rounded = load("adapter", device="cpu", dtype=dtype)
        bases = [layer.base for layer in lora.layers(rounded).values()]
        assert formats(rounded) and any(isinstance(base, QuantizedLinear | QuantizedConv2d) for base in bases)
        found = result(name, "adapter", capsys, "--dtype", dtype)
        if not isinstance(found, str):
            # of each layer's result, 8 bits are a hundredth off, and 4 bits a tenth
            assert apart(found, result(name, "adapter", capsys)) < (0.1 if dtype == "int8" else 0.4)


def test_a_new_head_goes_with_its_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = load("resnet", device="cpu")
    names = {"0": "cat", "1": "dog", "2": "other"}
    model.classifier = Sequential(global_avg_pool, Linear(128, 3).init(Generator(0), model.device))
    model.config = dataclasses.replace(model.config, num_labels=3, id2label=names)
    lora.attach(model, 2, dora=True, targets=("convolution",), also=("classifier",))
    assert {path for path in model.parameters() if "lora" not in path} == {"classifier.1.weight", "classifier.1.bias"}
    adapter.save(model, Path("adapter"), "resnet", also=("classifier",), task_type=None)
    with read(Path("adapter/adapter_model.safetensors")) as tensors:
        assert tensors.infos["base_model.model.classifier.1.weight"].shape == (3, 128)
    again = load("adapter", device="cpu")
    x = zoo.tensor(np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32), device="cpu")
    assert np.array_equal(again(x).numpy(), model(x).numpy()) and again.config == model.config
    assert main(["run", "resnet", DIGIT, "--weights", "adapter", "--json", "-q"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert {one["label"] for one in found["top"]} == set(names.values())
    assert main(["export", "adapter", "merged", "--merge", "-q"]) == 0
    merged = load("merged", device="cpu")
    assert merged.config.id2label == names and np.allclose(merged(x).numpy(), model(x).numpy(), atol=0.02)


def test_a_file_of_diffusers_without_its_base(tmp_path, capsys):
    model = changed("stable_diffusion", dora=False)
    adapter.save(model, tmp_path / "adapter", "stable_diffusion")
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert main(["run", "stable_diffusion", "x", "--weights", str(tmp_path / "adapter")]) == 1
    assert "adapter_config.json" in (said := capsys.readouterr().err) and "--lora FILE" in said


def test_training_does_not_begin_with_an_adapter(tmp_path, capsys):
    adapter.save(changed("mnist_cnn", dora=False), tmp_path / "adapter", "mnist_cnn")
    for name, array in (("images-idx3", np.zeros((60, 28, 28))), ("labels-idx1", np.arange(60) % 10)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (tmp_path / f"train-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    command = ["finetune", "mnist_cnn", "--weights", str(tmp_path / "adapter"), "--data", str(tmp_path), "--out"]
    for more in ([], ["--lora", "2"]):
        assert main([*command, str(tmp_path / "out"), *more]) == 1
        assert "--merge" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_picture_is_the_same_by_weights_and_by_lora(dora, tmp_path, monkeypatch, capsys):
    """`--weights ADAPTER`, and `--lora FILE` over the base, which merges it."""
    monkeypatch.chdir(tmp_path)
    model = changed("stable_diffusion", dora)
    for path, layer in lora.layers(model).items():
        if (vector := layer.lora_magnitude_vector) is not None:
            model.set(f"{path}.lora_magnitude_vector", vector * 1.05)
    adapter.save(model, Path("adapter"), "stable_diffusion")
    beside = result("stable_diffusion", "adapter", capsys)
    merged = result("stable_diffusion", "stable_diffusion", capsys, "--lora", f"adapter/{adapter.DIFFUSERS_FILE}")
    assert apart(merged, result("stable_diffusion", "stable_diffusion", capsys)) > 0.02
    assert apart(merged, beside) < 5e-3
