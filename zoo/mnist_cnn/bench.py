"""Cases of `zoo bench mnist_cnn`: recognising one digit and many, and a step of training, with the shape that ships.

Weights are fresh ones from a seed, the same for every candidate: what they recognise does not change how fast they are.
"""

from __future__ import annotations

import numpy as np

from zoo.bench.case import Case, Run
from zoo.bench.inputs import numbers
from zoo.core.autodiff import Autodiff
from zoo.core.device import device as device_of
from zoo.core.random import Generator
from zoo.core.tensor import tensor
from zoo.mnist_cnn.config import CLASSES, SIDE
from zoo.mnist_cnn.finetune import NEW, loss
from zoo.mnist_cnn.model import MnistCNN
from zoo.train import AdamW
from zoo.train.captured import CapturedLoss

SEED, RATE, DECAY = 0, 1e-4, 0.05


def pictures(batch: int) -> np.ndarray:
    return numbers(1, batch, SIDE, SIDE) + 0.5


def labels(batch: int) -> np.ndarray:
    return np.arange(batch, dtype=np.int32) % CLASSES


def fresh(device: str) -> MnistCNN:
    return MnistCNN(NEW).init(SEED, device)


def forward(batch: int, device: str = "cpu") -> Run:
    model = fresh(device).eval().prepare()
    x = tensor(pictures(batch), device=device)
    return lambda: model(x)


def train_step(batch: int, device: str = "cpu") -> Run:
    """Forward with dropout, backward, AdamW, as the Learner does them; returns the loss, which it reads."""
    place, rng = device_of(device), Generator(SEED)
    model = fresh(device).to(Autodiff(place)).train(rng)
    optimizer = AdamW(weight_decay=DECAY)
    examples, learned = (pictures(batch), labels(batch)), CapturedLoss(model, loss, place, rng)

    def run() -> float:
        found, grads = learned(examples)
        value = float(found)
        optimizer.step(model, grads, RATE, donate=True)
        return value

    return run


def _forward(batch: int) -> Case:
    peers = {"torch": "zoo.mnist_cnn.peers:forward"}
    name = f"mnist_cnn batch {batch}"
    return Case(name, "pictures/s", batch, "zoo.mnist_cnn.bench:forward", peers, {"batch": batch})


LEARNING, WEIGHTS = 843_648_000, 431_080
"""Operations to learn from 64 pictures (torch.utils.flop_counter counts them), weights."""

CASES = (
    _forward(1),
    _forward(256),
    Case(
        "mnist_cnn training, batch 64", "steps/s", 1, "zoo.mnist_cnn.bench:train_step",
        {"torch": "zoo.mnist_cnn.peers:train_step"}, {"batch": 64}, memory=True,
        flops=LEARNING, floor_bytes=24 * WEIGHTS,  # weights and AdamW's two moments, read and written
        agree=0.1,  # dropout draws other numbers there
    ),
)  # fmt: skip
