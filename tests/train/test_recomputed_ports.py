"""Gradient checkpointing in every port that offers it: a step is the same bits, running statistics among them, and
less is kept for the gradient."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ports import PORTS

import zoo
from zoo.core import ops
from zoo.core.random import Generator
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.stable_diffusion.reference import IDS, SIZES, TIMESTEPS, inputs, model_of
from zoo.stable_diffusion.unet import Added

RESNETS = {
    "basic": ResNetConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(2, 1), layer_type="basic", num_labels=3),
    "bottleneck": ResNetConfig(embedding_size=8, hidden_sizes=(16, 32), depths=(1, 2), num_labels=3),
    "cifar": ResNetConfig(
        embedding_size=8, hidden_sizes=(8, 16), depths=(2, 1), layer_type="basic", num_labels=3, small_stem=True,
        shortcut="padding", batch_counts=False,
    ),
}  # fmt: skip
Step = Callable[[Any], tuple[Any, Any]]
"""Of a device: a model on it, and its loss as a function of the model with variables."""


def resnet(config: ResNetConfig, side: int = 20) -> Step:
    def step(device: Any) -> tuple[Any, Any]:
        x = zoo.tensor(np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32), device=device)
        return ResNet(config).init(0, device), lambda live: ops.mean(ops.square(live(x)))

    return step


def unet(family: str) -> Step:
    def step(device: Any) -> tuple[Any, Any]:
        model, ids = model_of(family, device), zoo.tensor(IDS, device=device)
        text, pooled = model.encode_text([ids, ids])
        added = None if pooled is None else Added(pooled, zoo.tensor(SIZES, device=device))
        x, times = zoo.tensor(inputs()["latents"], device=device), zoo.tensor(TIMESTEPS, device=device)
        return model.unet, lambda live: ops.mean(ops.square(live(x, times, text, added)))

    return step


STEPS = {f"resnet-{name}": resnet(config) for name, config in RESNETS.items()}
STEPS |= {f"unet-{family}": unet(family) for family in ("1", "xl")}


def taken(step: Step, device: Any, recompute: bool) -> dict[str, np.ndarray]:
    """Gradients, and what the model holds after two steps in training mode."""
    model, loss = step(device)
    model.recompute = recompute
    live = model.to(zoo.Autodiff(device)).train(Generator(1))
    found = {}
    for i in range(2):
        grads = loss(live).backward()
        found |= {f"{i}.{path}": grads[p].numpy() for path, p in live.parameters().items()}
    return found | {path: tensor.numpy() for path, tensor in live.state().items()}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_gradients_and_statistics_are_the_same_bits(step: Step, device: Any) -> None:
    plain, again = (taken(step, device, recompute) for recompute in (False, True))
    assert plain.keys() == again.keys()
    assert [path for path in plain if not np.array_equal(plain[path], again[path])] == []
    counted = [value for path, value in again.items() if path.endswith("num_batches_tracked")]
    assert all(value == 2 for value in counted)


@pytest.mark.parametrize(
    ("step", "share"), [(resnet(RESNETS["basic"], 96), 0.6), (unet("1"), 0.6)], ids=["resnet", "unet"]
)
def test_less_is_kept(step: Step, share: float) -> None:
    kept = {}
    for recompute in (False, True):
        model, loss = step(zoo.device("numpy"))
        model.recompute = recompute
        live = model.to(zoo.Autodiff(model.device)).train()
        tracemalloc.start()
        value = loss(live)
        kept[recompute] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        value.backward()
    assert kept[True] < share * kept[False], kept


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("port", PORTS)
def test_a_run_is_the_same_bits(port: str, lora: int, tmp_path: Path) -> None:
    weights, options = PORTS[port](tmp_path)
    finetune = importlib.import_module(f"zoo.{port}.finetune").finetune
    options = {**options, "epochs": 1, "steps": 3, "batch": 4, "lora": lora, "quiet": True}
    if port == "mnist_cnn":  # two convolutions
        with pytest.raises(zoo.ZooError, match="checkpoint cannot be chosen"):
            list(finetune(None, out=tmp_path / "out", checkpoint=True, **{**options, "lora": 0}))
        return
    found = []
    for checkpoint in (False, True):
        out = tmp_path / f"out-{checkpoint}"
        list(finetune(zoo.load(weights, device="cpu"), out=out, checkpoint=checkpoint, **options))
        found.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
    assert len(found[0]) > 0 and found[0] == found[1]
