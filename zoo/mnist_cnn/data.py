"""The MNIST data set: its four IDX files in a directory, the split that is trained on, and its public mirrors.

The first 50,000 training images train and the last 10,000 validate, so that the official test set, where it is
there, is looked at once, at the end, and chooses nothing.

Or pictures of digits, in folders named 0 to 9 or with rows that name them (`zoo.data.folder`): they are brought to what
the network sees as `zoo run` does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.core.errors import DataError
from zoo.data.bad import BadRow, Skipped
from zoo.data.files import find
from zoo.data.folder import READERS, Labelled, read_split
from zoo.data.idx import read_idx
from zoo.mnist_cnn import image
from zoo.mnist_cnn.config import CLASSES, SIDE

HELD_OUT = 6  # one part in six: the last 10,000 of MNIST's 60,000

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
PUBLISHED = {  # name: (bytes, sha256) of the .gz files as Y. LeCun published them and both mirrors serve them
    TRAIN_IMAGES: (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    TRAIN_LABELS: (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    TEST_IMAGES: (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    TEST_LABELS: (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
LAYOUTS = ("", "MNIST/raw", "raw")  # the files themselves; as torchvision keeps them


@dataclass(frozen=True)
class Split:
    """Images (n, 28, 28) uint8, white on black, and labels (n,) uint8, 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Split:
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Mnist:
    """test is the official t10k set, or None where its files are absent."""

    train: Split
    validation: Split
    test: Split | None


def load(directory: str | os.PathLike[str], skipped: Skipped | None = None) -> Mnist:
    """Read MNIST, or a data set in its format, from a directory of IDX files, plain or .gz; or pictures of digits.

    Raises DataError when a file is missing, is not what its name says, or images and labels do not pair up; of
    pictures, when one cannot be used, unless those are `skipped`.
    """
    images, labels = _find(directory, TRAIN_IMAGES), _find(directory, TRAIN_LABELS)
    if images is None and labels is None and _pictures(Path(directory)):
        train, held_out = read_split(directory, skipped)
        return Mnist(_digits(train, skipped), _digits(held_out, skipped), None)
    if images is None or labels is None:
        missing = TRAIN_IMAGES if images is None else TRAIN_LABELS
        raise DataError(
            f"no MNIST in {os.fspath(directory)}",
            f"there is no {missing}, plain or .gz" if os.path.isdir(directory) else "there is no such directory",
            "Name a directory with the four IDX files, or folders 0 to 9 of pictures; without --data they are fetched.",
        )
    both = read_pair(images, labels)
    if len(both) < 2:
        raise DataError(
            f"cannot train on {images}",
            f"it holds {len(both)} images; at least 2 are needed",
            "One part in six is held out to validate.",
        )
    kept = len(both) - max(1, len(both) // HELD_OUT)

    images, labels = _find(directory, TEST_IMAGES), _find(directory, TEST_LABELS)
    test = read_pair(images, labels) if images is not None and labels is not None else None
    return Mnist(both[:kept], both[kept:], test)


def _pictures(path: Path) -> bool:
    """Whether there are folders of digits, or rows."""
    if not path.exists():
        return False
    train = find(path).train
    return train.is_file() or any((train / str(digit)).is_dir() for digit in range(CLASSES))


def _digits(labelled: Labelled, skipped: Skipped | None) -> Split:
    """Raises DataError if a class is no digit, or a picture cannot be used and is not to be skipped."""
    odd = [name for name in labelled.classes if name not in [str(digit) for digit in range(CLASSES)]]
    if odd:
        raise DataError("cannot use these pictures", f"{odd[0]} is no digit", "Name folders and labels 0 to 9.")

    def read(row: int) -> np.ndarray | BadRow:
        file = labelled.files[row]
        try:
            return np.rint(image.read(file) * 255).astype(np.uint8)
        except DataError as error:
            place = str(file) if labelled.places is None else f"{labelled.places[row]}, {file}"
            return BadRow(row, place, f"{error.what}: {error.why}")

    pictures, labels = [], []
    with ThreadPoolExecutor(READERS) as readers:
        for found, label in zip(readers.map(read, range(len(labelled))), labelled.labels, strict=True):
            if isinstance(found, np.ndarray):
                pictures.append(found)
                labels.append(int(labelled.classes[label]))
            elif skipped is None:
                raise found
            else:
                skipped.add(found.place, found.why)
    if not pictures:
        raise DataError("there is nothing to learn", "no picture can be used", "Give pictures of digits.")
    return Split(np.stack(pictures), np.asarray(labels, np.uint8))


def read_pair(images: Path, labels: Path) -> Split:
    """Read one images file and its labels file; DataError unless they are as many, 28x28, and labelled 0 to 9."""
    split = Split(
        read_idx(images, dtype="uint8", shape=(None, SIDE, SIDE)), read_idx(labels, dtype="uint8", shape=(None,))
    )
    if len(split.images) != len(split.labels):
        raise DataError(
            f"cannot use {images}",
            f"it holds {len(split.images):,} images, and {labels.name} {len(split.labels):,} labels",
            "Take both files from one source.",
        )
    if len(split) and (largest := int(split.labels.max())) >= CLASSES:
        raise DataError(
            f"cannot use {labels}",
            f"it holds label {largest}; digits are labelled 0 to {CLASSES - 1}",
            "Give the labels of MNIST, or of a data set in its format.",
        )
    return split


def cached() -> Path:
    """Where the published files are kept for this user."""
    from zoo.hub.refs import cache_dir

    return cache_dir("mnist")


def fetch(directory: str | os.PathLike[str], *, test: bool = True, progress: Callable[..., None] | None = None) -> None:
    """Fetch the published files into directory, from whichever mirror answers; DownloadError when none does.

    Files that are there already, plain or .gz, are kept.
    """
    from zoo.hub.download import fetch as fetch_file

    for name, (size, sha256) in PUBLISHED.items():
        if (test or name not in (TEST_IMAGES, TEST_LABELS)) and _find(directory, name) is None:
            fetch_file(
                [f"{mirror}{name}.gz" for mirror in MIRRORS],
                Path(directory, f"{name}.gz"),
                sha256=sha256,
                size=size,
                progress=progress,
            )


def _find(directory: str | os.PathLike[str], name: str) -> Path | None:
    """The file of that name, also spelled `train-images.idx3-ubyte`, plain or .gz, by preference in that order."""
    for layout in LAYOUTS:
        for spelling in (name, name.replace("-idx", ".idx")):
            for ending in ("", ".gz"):
                path = Path(directory, layout, spelling + ending)
                if path.is_file():
                    return path
    return None
