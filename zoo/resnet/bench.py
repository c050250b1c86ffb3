"""Cases of `zoo bench resnet`: ResNet-50 on 224 pixels, one picture and eight, and steps of training.

Weights are fresh ones from a seed, the same for every candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.bench.case import Case, Run
from zoo.bench.inputs import numbers
from zoo.core.autodiff import Autodiff
from zoo.core.capture import Capture
from zoo.core.device import device as device_of
from zoo.core.random import Generator
from zoo.core.tensor import tensor
from zoo.nn import losses, quantize
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.train import SGD, gradients

SEED, RATE, MOMENTUM = 0, 1e-3, 0.9
EIGHTEEN: dict[str, Any] = {"hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "layer_type": "basic"}
SHAPES = {
    "ResNet-50": (224, ResNetConfig(num_labels=1000)),
    "CIFAR ResNet-20": (
        32,
        ResNetConfig(
            embedding_size=16, hidden_sizes=(16, 32, 64), depths=(3, 3, 3), layer_type="basic", num_labels=10,
            small_stem=True, shortcut="padding",
        ),
    ),
    "ResNet-18": (224, ResNetConfig(**EIGHTEEN, num_labels=1000)),
    "CIFAR ResNet-18": (32, ResNetConfig(**EIGHTEEN, num_labels=10, small_stem=True)),
}  # fmt: skip


def pictures(shape: str, batch: int) -> np.ndarray:
    size = SHAPES[shape][0]
    return 4 * numbers(1, batch, size, size, 3)


def labels(batch: int) -> np.ndarray:
    return np.arange(batch, dtype=np.int32) % 10


def fresh(shape: str, device: str) -> ResNet:
    """Random weights, and statistics as those of a trained network are: not those of an empty one."""
    model = ResNet(SHAPES[shape][1]).init(SEED, device)
    statistics = {
        name: numbers(i, *slot.shape) + (1.0 if name.endswith("var") else 0.0)
        for i, (name, slot) in enumerate(model.spec().items())
        if name.endswith(("running_mean", "running_var"))
    }
    model.update({name: tensor(array, device=device) for name, array in statistics.items()})
    return model


def forward(shape: str, batch: int, dtype: str = "f32", device: str = "cpu") -> Run:
    model = fresh(shape, device).eval()
    if dtype == "int8":
        quantize(model, dtype)
    model.prepare()
    seen = pictures(shape, batch)
    if device == "cpu":
        network = Capture(model, model.device)  # as zoo/resnet/classify.py runs it
        return lambda: network(seen)
    x = tensor(seen, device=device)  # stays there, as the peers' does
    return lambda: model(x)


def train_step(shape: str, batch: int, device: str = "cpu") -> Run:
    """Forward, backward, SGD with momentum; returns the loss, as the Learner reads it after every step."""
    model = fresh(shape, device).to(Autodiff(device_of(device))).train(Generator(SEED))
    optimizer = SGD(momentum=MOMENTUM)
    x, y = tensor(pictures(shape, batch), device=device), tensor(labels(batch), device=device)

    def run() -> float:
        found = losses.cross_entropy(model(x), y)
        value = float(found)
        optimizer.step(model, gradients(found, model), RATE)
        return value

    return run


def _forward(shape: str, batch: int) -> Case:
    peers = {name: f"zoo.resnet.peers:forward_{name}" for name in ("torch", "onnxruntime", "openvino")}
    settings = {"shape": shape, "batch": batch}
    return Case(f"{shape}, batch {batch}", "pictures/s", batch, "zoo.resnet.bench:forward", peers, settings,
                group="ResNet-50")  # fmt: skip


def _forward_int8(shape: str, batch: int) -> Case:
    """Activations are quantised by tile as they come here, by tensor and beforehand there: the results differ."""
    peers = {name: f"zoo.resnet.peers:forward_{name}" for name in ("onnxruntime", "openvino")}
    settings = {"shape": shape, "batch": batch, "dtype": "int8"}
    return Case(f"{shape} int8, batch {batch}", "pictures/s", batch, "zoo.resnet.bench:forward", peers, settings,
                group="ResNet-50 in int8", agree=0.05)  # fmt: skip


def _train(shape: str, batch: int, **floor: Any) -> Case:
    peers = {"torch": "zoo.resnet.peers:train_step"}
    settings = {"shape": shape, "batch": batch}
    # the loss after as many steps as each candidate happened to take
    return Case(f"{shape} training, batch {batch}", "pictures/s", batch, "zoo.resnet.bench:train_step", peers, settings,
                group="training ResNets", agree=0.2, memory=True, **floor)  # fmt: skip


LEARNING, WEIGHTS = 194_392_621_056 / 8, 25_557_032
"""Of ResNet-50 at 224 pixels: operations to learn from one picture (torch.utils.flop_counter counts them), weights."""

CASES = (
    _forward("ResNet-50", 1),
    _forward("ResNet-50", 8),
    _forward_int8("ResNet-50", 1),
    _train("ResNet-50", 8, flops=8 * LEARNING, floor_bytes=16 * WEIGHTS),  # weights and momentum, read and written
    _train("CIFAR ResNet-20", 128),
    _train("ResNet-18", 8),
    _train("CIFAR ResNet-18", 64),
)
