"""`zoo run mnist_cnn`: pictures in, digits out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.mnist_cnn.model import MnistCNN

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Prediction:
    """A recognised digit: the file, the probabilities of 0 to 9, the 28x28 picture that the network saw; what the file
    is called on the terminal, and whether it is one of several, so that its result needs the name."""

    file: str
    probabilities: list[float]
    seen: np.ndarray
    shown: str
    among_others: bool

    @property
    def digit(self) -> int:
        return int(np.argmax(self.probabilities))

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "digit": self.digit, "probabilities": self.probabilities}

    def preview(self) -> str:
        from zoo.mnist_cnn.show import picture

        return f"{self.shown}\n{picture(self.seen)}"

    def __str__(self) -> str:
        from zoo.mnist_cnn.show import bars

        return bars(self.probabilities) + (f"   {self.shown}" if self.among_others else "")


def run(model: MnistCNN, images: list[Path] | None = None) -> Iterator[Prediction]:
    """Recognise handwritten digits.

    images: picture files with one digit each, of any size, dark on light or light on dark; without any, the sample
        digits that come with the zoo
    """
    from zoo.mnist_cnn.image import read

    files = images or sorted(SAMPLES.glob("*.png"))
    for file in files:
        seen = read(file)
        pictures = Tensor(model.device.from_host(seen[None]), model.device)
        probabilities = ops.softmax(model(pictures)).numpy()[0]
        shown = str(file) if images else file.name
        yield Prediction(str(file), [float(p) for p in probabilities], seen, shown, len(files) > 1)
