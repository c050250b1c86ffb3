"""`zoo eval mnist_cnn`: how many of the digits in IDX files are recognised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.mnist_cnn import data as mnist_data
from zoo.mnist_cnn.finetune import accuracy
from zoo.mnist_cnn.model import MnistCNN


@dataclass(frozen=True)
class Evaluated:
    data: Path
    part: str
    """Which digits: the official test set, or those that training holds out."""
    digits: int
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data": str(self.data)}

    def __str__(self) -> str:
        return f"{self.accuracy:.2%} of {self.digits:,} digits ({self.part})"


def evaluate(model: MnistCNN, *, data: Path | None = None, progress: Any = None) -> Iterator[Evaluated]:
    """Measure how many digits of a data set in MNIST's format are recognised.

    data: directory with the IDX files, plain or .gz; without it, MNIST is fetched. The official test set is measured
        where it is there, else the last sixth of the training pictures, which training holds out
    """
    if data is None:
        data = mnist_data.cached()
        mnist_data.fetch(data, progress=progress)
    mnist = mnist_data.load(data)
    split, part = (mnist.validation, "held out of training") if mnist.test is None else (mnist.test, "the test set")
    yield Evaluated(data, part, len(split), accuracy(model, split))
