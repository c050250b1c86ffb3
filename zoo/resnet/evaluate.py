"""`zoo eval resnet`: top-1 and top-5 on pictures in one folder per class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.data.bad import Skipped
from zoo.data.folder import Labelled, Pictures, read_folder, read_split
from zoo.data.loader import Loader
from zoo.resnet import labels, preprocess
from zoo.resnet.model import ResNet
from zoo.resnet.preprocess import Preprocessing

BATCH = 64


@dataclass(frozen=True)
class Evaluated:
    """Shares of the pictures whose class is the likeliest, and among the likeliest five; of each class, the first."""

    data: Path
    pictures: int
    top1: float
    top5: float
    by_class: dict[str, float]
    pictures_per_second: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data": str(self.data)}

    def preview(self) -> str:
        worst = sorted(self.by_class.items(), key=lambda entry: entry[1])[:5]
        shown = ", ".join(f"{name} {share:.0%}" for name, share in worst)
        return f"{self.pictures_per_second:,.0f} pictures/s · seldomest right: {shown}"

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2%}  top-5 {self.top5:.2%}  on {self.pictures:,} pictures"


def evaluate(
    model: ResNet, *, data: Path, batch: int = BATCH, held_out: bool = False, progress: Any = None
) -> Iterator[Evaluated]:
    """Measure how often a network is right on pictures in one folder per class.

    data: a directory with one folder of pictures per class, named as the network's classes are; where all have other
        names and there are as many, they count in the order of their names, as ImageNet's n01440764, ... do
    held_out: only the pictures that `zoo finetune resnet --data` leaves for validation
    """
    labelled = read_split(data)[1] if held_out else read_folder(data)
    numbers = class_numbers(labels.of(model), model.config.num_labels, labelled.classes)
    labelled = Labelled(labelled.files, numbers[labelled.labels], labelled.classes)
    start = time.perf_counter()
    rank = ranks(model, labelled, batch, progress)
    seconds = time.perf_counter() - start
    by_class = {
        name: float((rank[mine] == 0).mean())
        for name, number in zip(labelled.classes, numbers, strict=True)
        if (mine := labelled.labels == number).any()
    }
    yield Evaluated(data, len(rank), share(rank, 1), share(rank, 5), by_class, len(rank) / seconds)


def class_numbers(known: list[str] | None, count: int, folders: tuple[str, ...]) -> np.ndarray:
    """The network's number of each folder's class (n,) int32. Raises DataError if that cannot be told."""
    number = {name: i for i, name in enumerate(known or ())}
    if all(folder in number for folder in folders):
        return np.asarray([number[folder] for folder in folders], np.int32)
    if not any(folder in number for folder in folders) and len(folders) == count:
        return np.arange(count, dtype=np.int32)
    odd = [folder for folder in folders if folder not in number]
    names = f": {', '.join((known or [])[:5])}, ..." if known else ", which have no names"
    raise DataError(
        f"the folders are not this network's classes: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}",
        f"there are {len(folders)} folders; the network has {count} classes{names}",
        "Name the folders as the network's classes, or give one for each class, in their order.",
    )


def ranks(
    model: Any, labelled: Labelled, batch: int = BATCH, progress: Callable[..., None] | None = None,
    skipped: Skipped | None = None,
) -> np.ndarray:  # fmt: skip
    """How many classes the network finds likelier than the right one, by picture (n,): 0 where it is right. Of equals,
    the first is the likeliest; a NaN is never right."""
    found = []
    for pictures, targets in validation(labelled, preprocess.of(model), batch, skipped):
        logits = model(Tensor(model.device.from_host(pictures), model.device)).numpy().astype(np.float32)
        right = np.take_along_axis(logits, targets[:, None].astype(np.int64), axis=1)
        first = (logits == right) & (np.arange(logits.shape[1]) < targets[:, None])
        found.append((~(logits <= right) | first).sum(axis=1))
        if progress is not None:
            progress(sum(map(len, found)), len(labelled), "pictures")
    return np.concatenate(found)


def share(rank: np.ndarray, k: int) -> float:
    """Of the pictures whose class is among the k likeliest."""
    return float((rank < k).mean())


def validation(
    labelled: Labelled, preprocessing: Preprocessing, batch: int = BATCH, skipped: Skipped | None = None
) -> Loader:
    """Batches as the network is run on them: the middle of each picture, unchanged."""

    def normalised(batch: Any, rng: Generator) -> Any:
        pictures, targets = batch
        return preprocessing.normalise(pictures), targets

    pictures = Pictures(labelled, preprocessing.pixels)
    return Loader(pictures, batch, shuffle=False, transform=normalised, skipped=skipped)
