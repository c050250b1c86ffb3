"""`zoo run resnet`: pictures in, the likeliest classes out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.capture import Capture
from zoo.core.errors import DataError, WeightsError
from zoo.data.folder import pictures_in
from zoo.data.picture import open_rgb
from zoo.resnet import labels as names
from zoo.resnet import preprocess
from zoo.resnet.model import ResNet

SAMPLES = Path(__file__).parent / "samples"
BAR = 10  # characters of a bar that stands for certainty


@dataclass(frozen=True)
class Class:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a picture, falling; and whether it is one of several, so that it is named."""

    file: str
    top: list[Class]
    among_others: bool

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "top": [vars(found) for found in self.top]}

    def __str__(self) -> str:
        width = max(len(found.label) for found in self.top)
        lines = [
            f"{found.label:<{width}}  {100 * found.probability:6.2f} %  {'▇' * round(BAR * found.probability)}".rstrip()
            for found in self.top
        ]
        return "\n".join([self.file, *(f"  {line}" for line in lines)] if self.among_others else lines)


def run(
    model: ResNet, pictures: list[Path] | None = None, *, top: int = 5, labels: Path | None = None, quiet: bool = False
) -> Iterator[Prediction]:
    """Say what is on a picture.

    pictures: picture files of any size and kind, or folders of them; without any, the sample that comes with the zoo
    top: so many of the likeliest classes
    labels: a file of the classes' names, where the weights do not carry them: one a line, or JSON
    """
    if top < 1:
        raise DataError(f"cannot show the {top} likeliest classes", "", "Give --top 1 or more.")
    files = _files(pictures or [SAMPLES])
    count = model.config.num_labels
    known = names.of(model) if labels is None else names.read(labels, count)
    if known is None and not quiet:
        print("these weights do not name their classes; --labels FILE gives them names", file=sys.stderr)
    prepared = preprocess.of(model)
    if not quiet:
        print(f"pictures: {prepared}", file=sys.stderr)
    network = Capture(model, model.device)
    for file in files:
        logits = network(prepared.normalise(prepared.pixels(open_rgb(file)))[None])
        probabilities = ops.softmax(logits.astype("float32")).numpy()[0]
        if not np.isfinite(probabilities).all():
            raise WeightsError(
                f"no answer for {file}", "the network computed NaN or infinity; its weights may be damaged",
                "Fetch the weights again, or try --dtype f32.",
            )  # fmt: skip
        best = np.argsort(-probabilities, kind="stable")[:top]
        found = [Class(known[i] if known else f"class {i}", int(i), float(probabilities[i])) for i in best]
        yield Prediction(str(file), found, len(files) > 1)


def _files(given: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        inside = pictures_in(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"no picture in {path}", "the folder holds none", "Name picture files, or another folder.")
        files += inside
    return files
