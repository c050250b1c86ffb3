"""The network: published state dicts of both versions, parity with torch, and the shapes that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import WeightsError
from zoo.hub.safetensors import write
from zoo.mnist_cnn.config import MnistConfig
from zoo.mnist_cnn.finetune import NEW
from zoo.mnist_cnn.model import MEAN, STD, MnistCNN

VERSIONS = {"3x3": MnistConfig(), "5x5": NEW, "narrow": MnistConfig((3, 4), 5, 6, True)}


def published(config: MnistConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict as torch publishes it, with random values."""
    rng = np.random.default_rng(seed)
    first, second = config.channels
    k = config.kernel_size
    shapes = {
        "conv1.weight": (first, 1, k, k),
        "conv1.bias": (first,),
        "conv2.weight": (second, first, k, k),
        "conv2.bias": (second,),
        "fc1.weight": (config.hidden_size, config.features),
        "fc1.bias": (config.hidden_size,),
        "fc2.weight": (10, config.hidden_size),
        "fc2.bias": (10,),
    }
    return {n: (rng.standard_normal(s) / np.sqrt(max(np.prod(s[1:]), 1))).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture(params=VERSIONS, ids=str)
def config(request: Any) -> MnistConfig:
    return VERSIONS[request.param]


def test_published_shapes() -> None:
    assert (MnistConfig().side, MnistConfig().features) == (12, 9216)
    assert (NEW.side, NEW.features) == (4, 800)
    assert sum(np.prod(p.shape) for p in MnistCNN(MnistConfig()).spec().values()) == 1_199_882
    assert sum(np.prod(p.shape) for p in MnistCNN(NEW).spec().values()) == 431_080


def test_shape_is_read_from_the_tensors(config: MnistConfig) -> None:
    assert MnistConfig.from_tensors(published(config)) == config


def test_other_models_are_left_alone() -> None:
    assert MnistConfig.from_tensors({"conv1.weight": np.zeros((64, 3, 7, 7))}) is None


def test_impossible_shapes_are_told() -> None:
    tensors = published(NEW) | {"fc1.weight": np.zeros((500, 801), np.float32)}
    with pytest.raises(WeightsError, match="800 if pooled twice"):
        MnistConfig.from_tensors(tensors)


def by_hand(state: dict[str, np.ndarray], config: MnistConfig, pictures: np.ndarray) -> np.ndarray:
    """The network in plain float64 loops over channels-first arrays, as published."""
    w = {name: a.astype(np.float64) for name, a in state.items()}

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        k = config.kernel_size
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
        y = np.einsum("bchwij,ocij->bohw", windows, w[f"{name}.weight"]) + w[f"{name}.bias"][:, None, None]
        return np.maximum(y, 0)

    def pool(x: np.ndarray) -> np.ndarray:
        b, c, h, v = x.shape
        return x.reshape(b, c, h // 2, 2, v // 2, 2).max(axis=(3, 5))

    x = conv((pictures[:, None].astype(np.float64) - MEAN) / STD, "conv1")
    x = conv(pool(x) if config.pool_after_conv1 else x, "conv2")
    x = pool(x).reshape(len(x), -1)
    x = np.maximum(x @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return x @ w["fc2.weight"].T + w["fc2.bias"]


@pytest.mark.parametrize("device", ["numpy", None])
def test_somebody_elses_state_dict_runs(config: MnistConfig, device: str | None, tmp_path: Any) -> None:
    state = published(config)
    write(tmp_path / "theirs.safetensors", state)
    model = zoo.load(tmp_path / "theirs.safetensors", device=device)
    pictures = np.random.default_rng(1).random((3, 28, 28)).astype(np.float32)
    logits = model(zoo.tensor(pictures, device=model.device)).numpy()
    # float32 sums of up to 9,216 terms of size about 1
    np.testing.assert_allclose(logits, by_hand(state, config, pictures), rtol=0, atol=2e-5)


def test_a_tensor_that_does_not_fit_is_named(tmp_path: Any) -> None:
    state = published(NEW) | {"fc1.bias": np.zeros(499, np.float32), "extra.weight": np.zeros(3, np.float32)}
    write(tmp_path / "theirs.safetensors", state)
    with pytest.raises(WeightsError) as told:
        zoo.load(tmp_path / "theirs.safetensors")
    assert "fc1.bias is (499,); (500,) was expected" in str(told.value) and "extra.weight" in str(told.value)


def test_parity_with_torch(config: MnistConfig, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nn = torch.nn.functional
    state = published(config)
    t = {name: torch.from_numpy(a) for name, a in state.items()}
    pictures = np.random.default_rng(2).random((5, 28, 28)).astype(np.float32)
    x = (torch.from_numpy(pictures)[:, None] - MEAN) / STD
    x = torch.relu(nn.conv2d(x, t["conv1.weight"], t["conv1.bias"]))
    x = nn.max_pool2d(x, 2) if config.pool_after_conv1 else x
    x = nn.max_pool2d(torch.relu(nn.conv2d(x, t["conv2.weight"], t["conv2.bias"])), 2)
    x = torch.relu(nn.linear(torch.flatten(x, 1), t["fc1.weight"], t["fc1.bias"]))
    reference = nn.linear(x, t["fc2.weight"], t["fc2.bias"]).numpy()

    write(tmp_path / "theirs.safetensors", state)
    model = zoo.load(tmp_path / "theirs.safetensors")
    logits = model(zoo.tensor(pictures, device=model.device)).numpy()
    np.testing.assert_allclose(logits, reference, rtol=0, atol=2e-5)


@pytest.mark.parametrize("device", ["numpy", None])
def test_logits_of_the_shipped_weights_are_torchs(device: str | None) -> None:
    """Against values that zoo/mnist_cnn/reference.py stored, so torch is not needed."""
    stored = np.load(Path(__file__).parent / "reference.npz")
    model = zoo.load("mnist_cnn", device=device, dtype="float32")
    logits = model(zoo.tensor(stored["pictures"], device=model.device)).numpy()
    # logits up to 20, sums of 800 float32 terms
    np.testing.assert_allclose(logits, stored["logits"], rtol=0, atol=5e-5)


def test_the_sample_digits_are_recognised(capsys: Any) -> None:
    """Golden: `zoo run mnist_cnn` on the digits that ship, each named by the digit it shows."""
    assert main(["run", "mnist_cnn", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [r["digit"] for r in document["results"]] == list(range(10))
    assert [Path(r["file"]).name[0] for r in document["results"]] == [str(d) for d in range(10)]
    assert document["weights"].endswith("mnist_cnn")
