"""Pictures in one folder per class, the layout that every image tool knows:

    DIR/cat/1.jpg  DIR/cat/2.jpg  DIR/dog/1.jpg  ...

or the same below DIR/train and DIR/val (or valid, validation, test).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.core.errors import DataError
from zoo.data.picture import SUFFIXES, open_rgb

HELD_OUT = 10  # every tenth picture of a class, in the order of names
VALIDATION = ("val", "valid", "validation", "test")
KEEP = 1 << 30  # bytes of decoded pictures that are kept in memory
READERS = 2  # threads that decode: Pillow lets go of Python's lock


@dataclass(frozen=True)
class Labelled:
    """Files, the number of each one's class (n,) int32, and the classes' names in the order of these numbers."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Sequence[int] | np.ndarray) -> Labelled:
        return Labelled(tuple(self.files[i] for i in rows), self.labels[np.asarray(rows, np.int64)], self.classes)


def read_folder(directory: str | os.PathLike[str]) -> Labelled:
    """The pictures below each folder of a directory, classes and files in the order of their names.

    Raises DataError if there is no such directory, it has no folders, or one of them has no picture.
    """
    root = Path(directory)
    if not root.is_dir():
        why = "it is a file" if root.is_file() else "there is no such directory"
        raise DataError(f"cannot use {root}", why, "Name a directory with one folder of pictures per class.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        loose = len(pictures_in(root))
        raise DataError(
            f"no classes in {root}",
            f"it holds {loose} pictures and no folders" if loose else "it holds no folders",
            "Put the pictures of each class into a folder of its name, as in DIR/cat/1.jpg.",
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        found = pictures_in(folder)
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES[:6])
            raise DataError(
                f"the class {folder.name} is empty", f"{folder} holds no picture ({kinds}, ...)",
                "Fill the folder, or take it away.",
            )  # fmt: skip
        files += found
        labels += [number] * len(found)
    return Labelled(tuple(files), np.asarray(labels, np.int32), tuple(folder.name for folder in folders))


def pictures_in(directory: str | os.PathLike[str]) -> list[Path]:
    """The picture files in a directory and below, by suffix, in the order of their names."""
    found = (path for path in Path(directory).rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def read_split(directory: str | os.PathLike[str]) -> tuple[Labelled, Labelled]:
    """(to train on, held out): DIR/train and DIR/val where they are there; else every tenth picture of a class is held
    out, and of a class with fewer, one.

    Raises DataError as `read_folder` does, if the two have other classes, or a class has a single picture.
    """
    root = Path(directory)
    if (root / "train").is_dir():
        for name in VALIDATION:
            if (root / name).is_dir():
                train, held_out = read_folder(root / "train"), read_folder(root / name)
                if train.classes != held_out.classes:
                    odd = sorted(set(train.classes) ^ set(held_out.classes))
                    why = f"the folders {', '.join(odd[:5])} are in one only"
                    raise DataError(f"train and {name} of {root} differ", why, "Give both the same folders.")
                return train, held_out
    every = read_folder(root)
    kept: list[int] = []
    apart: list[int] = []
    for number, name in enumerate(every.classes):
        rows = np.flatnonzero(every.labels == number).tolist()
        if len(rows) < 2:
            why = f"{name} holds 1 picture; one is held out to validate, and one at least must be left"
            raise DataError(f"cannot train on {root}", why, "Add pictures to that folder, or take it away.")
        apart += rows[::HELD_OUT]
        kept += [row for i, row in enumerate(rows) if i % HELD_OUT]
    return every.take(kept), every.take(apart)


class Pictures:
    """Data for a Loader: rows of (pictures uint8 (n, h, w, 3), labels int32 (n,)).

    `decode(picture)` makes of every RGB picture an array of one shape. least: as `open_rgb` has it. Arrays are kept
    once decoded, while they take less than `keep` bytes.
    """

    def __init__(
        self,
        labelled: Labelled,
        decode: Callable[[Image.Image], np.ndarray],
        least: int | None = None,
        keep: int = KEEP,
    ):
        self.labelled, self.decode, self.least = labelled, decode, least
        self._kept: dict[int, np.ndarray] = {}
        self._room = keep
        self._readers = ThreadPoolExecutor(READERS)

    def __getstate__(self) -> dict[str, Any]:
        """Without threads and pictures, for another process."""
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _readers=ThreadPoolExecutor(READERS), _kept={})

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.stack(list(self._readers.map(self._picture, [int(row) for row in rows])))
        return pictures, self.labelled.labels[rows]

    def _picture(self, row: int) -> np.ndarray:
        if (found := self._kept.get(row)) is not None:
            return found
        array = self.decode(open_rgb(self.labelled.files[row], self.least))
        if self._room >= array.nbytes:
            self._room -= array.nbytes
            self._kept[row] = array
        return array
