"""Training on MNIST, or on one's own digits in its format: data -> loss, in the Learner's terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.data.loader import Loader
from zoo.mnist_cnn import data as mnist_data
from zoo.mnist_cnn.augment import augment, to_float
from zoo.mnist_cnn.config import MnistConfig
from zoo.mnist_cnn.model import MnistCNN
from zoo.nn import losses
from zoo.train import AdamW, Training, matrices_only
from zoo.train.recipe import recipe

# What is trained when no weights are given, and what ships: the older published shape, a third of the newer one's size
# and four times as fast to train (docs/decisions.md).
NEW = MnistConfig(channels=(20, 50), kernel_size=5, hidden_size=500, pool_after_conv1=True)
VALIDATION_BATCH = 500
TRAINING = Training(
    epochs=12, batch=64, lr=2e-3, schedule="one_cycle", clip=0.0, ema=0.999, out=Path("runs/mnist_cnn"),
    without=("checkpoint",),
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a training run gave. Accuracies are shares; test is None without the official test files."""

    out: Path
    epochs: int
    steps: int
    examples: int
    accuracy: float
    unseen: int
    test: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "epochs": self.epochs,
            "steps": self.steps,
            "examples": self.examples,
            "accuracy": self.accuracy,
            "validation_examples": self.unseen,
            "test_accuracy": self.test,
        }

    def __str__(self) -> str:
        test = "" if self.test is None else f", {self.test:.2%} on the official test set"
        return f"{self.out}: {self.accuracy:.2%} on {self.unseen:,} unseen digits{test}"


def loss(model: Any, batch: Any) -> Tensor:
    pictures, labels = batch
    return losses.cross_entropy(model(pictures), labels)


def metrics(model: Any, batch: Any) -> dict[str, Tensor]:
    pictures, labels = batch
    logits = model(pictures)
    return {"loss": ops.cross_entropy(logits, labels), "accuracy": right(logits, labels)}


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's, else 0."""
    return ops.equal(logits.argmax(axis=-1), labels).astype("float32")


def accuracy(model: Any, split: mnist_data.Split) -> float:
    """Share of a split that the model gets right."""
    hits = [
        right(model(_place(model, pictures)), _place(model, labels)).numpy()
        for pictures, labels in Loader(
            (split.images, split.labels), VALIDATION_BATCH, shuffle=False, transform=to_float
        )
    ]
    return float(np.concatenate(hits).sum()) / len(split)


def _place(model: Any, array: np.ndarray) -> Tensor:
    return Tensor(model.device.from_host(array), model.device)


@recipe("mnist_cnn")
def finetune(
    model: MnistCNN | None = None,
    *,
    data: Path | None = None,
    training: Training = TRAINING,
    device: Any = None,
    quiet: bool = False,
    progress: Any = None,
) -> Iterator[Trained]:
    """Train the network on MNIST, or on digits of your own in its format.

    data: directory with the IDX files (train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz), of which
        the last sixth is held out; or of pictures in folders 0 to 9, or rows that name them (docs/data.md). Without
        it, MNIST is fetched
    """
    if data is None:
        data = mnist_data.cached()
        mnist_data.fetch(data, progress=progress)
    skipped = training.skipped()
    mnist = mnist_data.load(data, skipped)
    if model is None:
        if training.lora:
            why = "without --weights, they are new ones"
            raise ZooError("an adapter is trained beside weights that stay", why, "Add --weights mnist_cnn.")
        model = MnistCNN(NEW).init(Generator(training.seed), device)
    base = None if model.source is None else model.source.shown
    training.adapt(model)
    write = partial(training.write, port="mnist_cnn", base=base)
    train = training.loader((mnist.train.images, mnist.train.labels), transform=augment, skipped=skipped)
    validation = Loader(
        (mnist.validation.images, mnist.validation.labels), VALIDATION_BATCH, shuffle=False, transform=to_float
    )
    optimizer = AdamW(weight_decay=matrices_only(0.05))
    learner = training.learner(
        model, train, loss=loss, optimizer=optimizer, validation=validation, metrics=metrics, capture=True,
        export=write, quiet=quiet,
    )  # fmt: skip
    training.fit(learner)
    best = accuracy(model, mnist.validation)
    test = None if mnist.test is None else accuracy(model, mnist.test)
    epochs = len(learner.history)
    done = Trained(training.out, epochs, learner.step, len(mnist.train), best, len(mnist.validation), test)
    card = {
        "summary": f"{100 * done.accuracy:.2f} % on {done.unseen:,} unseen digits",
        "accuracy": done.accuracy,
        "data": f"{done.examples:,} training pictures in MNIST's format, {done.unseen:,} held out",
        "epochs": done.epochs,
        "seed": training.seed,
    }
    write(model, training.out, card=card)
    yield done
