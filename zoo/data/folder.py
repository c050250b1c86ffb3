"""Pictures with the names of their classes: a folder for each class, the layout that every image tool knows,

    DIR/cat/1.jpg  DIR/cat/2.jpg  DIR/dog/1.jpg  ...

or rows that name both, {"file_name": "1.jpg", "label": "cat"}, in DIR/metadata.jsonl; either of them also below
DIR/train and DIR/valid, or as DIR/train.jsonl and DIR/valid.jsonl (`zoo.data.files`).
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
from zoo.data import rows as tables
from zoo.data.bad import BadRow, Skipped
from zoo.data.files import find, held_out, media
from zoo.data.picture import SUFFIXES, open_rgb
from zoo.data.rows import Row

KEEP = 1 << 30  # bytes of decoded pictures that are kept in memory
READERS = 2  # threads that decode: Pillow lets go of Python's lock
_FORM = 'A row is {"file_name": "1.jpg", "label": "cat"}; or make a folder of pictures for each class.'


@dataclass(frozen=True)
class Labelled:
    """Files, the number of each one's class (n,) int32, and the classes' names in the order of these numbers. places:
    FILE:LINE of the row that names each file, where rows do."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    places: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Sequence[int] | np.ndarray) -> Labelled:
        places = None if self.places is None else tuple(self.places[i] for i in rows)
        labels = self.labels[np.asarray(rows, np.int64)]
        return Labelled(tuple(self.files[i] for i in rows), labels, self.classes, places)


def read_folder(directory: str | os.PathLike[str]) -> Labelled:
    """The pictures below each folder of a directory, classes and files in the order of their names.

    Raises DataError if there is no such directory, it has no folders, or one of them has no picture.
    """
    root = Path(directory)
    if not root.is_dir():
        why = "it is a file" if root.is_file() else "there is no such directory"
        raise DataError(f"cannot use {root}", why, "Name a directory with one folder of pictures per class.")
    folders = _folders(root)
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


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_rows(path: Path, root: Path, classes: Sequence[str] | None = None, skipped: Skipped | None = None) -> Labelled:
    """The pictures that a file of rows names. classes: without them, the labels, in the order of numbers or letters.

    Raises DataError that names the rows that cannot be used; with `skipped`, those are left out.
    """

    def labelled(row: Row) -> tuple[str, Path, str]:
        if isinstance(value := row.values.get("label"), bool) or not isinstance(value, int | str) or value == "":
            raise ValueError("it has no label" if value in (None, "") else f"its label is {value!r}")
        if classes is not None and str(value) not in classes:
            raise ValueError(f"its label {value!r} is none of {', '.join(classes[:8])}{' ...' * (len(classes) > 8)}")
        return row.place, media(row, path, root, "image"), str(value)

    found = list(tables.read(path, labelled, form=_FORM, skipped=skipped))
    names = {name for _, _, name in found}
    if classes is None:
        numbers = all(name.isascii() and name.isdigit() for name in names)
        classes = sorted(names, key=int) if numbers else sorted(names)
    number = {name: i for i, name in enumerate(classes)}
    places, files, labels = zip(*found, strict=True)
    return Labelled(files, np.asarray([number[name] for name in labels], np.int32), tuple(classes), places)


def pictures_in(directory: str | os.PathLike[str]) -> list[Path]:
    """The picture files in a directory and below, by suffix, in the order of their names."""
    found = (path for path in Path(directory).rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def read_split(directory: str | os.PathLike[str], skipped: Skipped | None = None) -> tuple[Labelled, Labelled]:
    """(to train on, held out): the parts that the data names (`zoo.data.files`); else every tenth picture of a class is
    held out, and of a class with fewer, one.

    Raises DataError as `read_folder` and `read_rows` do, if the two have other classes, or a class has one picture.
    """
    root = Path(directory)
    found = find(root)
    if found.valid is not None:
        train = _part(found.train, root, None, skipped)
        unseen = _part(found.valid, root, train.classes, skipped)
        if train.classes != unseen.classes:
            odd = sorted(set(train.classes) ^ set(unseen.classes))
            why = f"the folders {', '.join(odd[:5])} are in one only"
            raise DataError(f"{found.train.name} and {found.valid.name} of {root} differ", why, "Give both the same.")
        return train, unseen
    every = _part(found.train, found.root, None, skipped)
    kept: list[int] = []
    apart: list[int] = []
    for number, name in enumerate(every.classes):
        rows = np.flatnonzero(every.labels == number)
        if len(rows) < 2:
            why = f"{name} holds 1 picture; one is held out to validate, and one at least must be left"
            raise DataError(f"cannot train on {root}", why, "Add pictures to that folder, or take it away.")
        mask = held_out(len(rows))
        apart += rows[mask].tolist()
        kept += rows[~mask].tolist()
    return every.take(kept), every.take(apart)


def _part(path: Path, root: Path, classes: Sequence[str] | None, skipped: Skipped | None) -> Labelled:
    """Of rows, or of folders; also where a metadata file lies in the directory beside folders, and has no labels."""
    if path.is_dir():
        return read_folder(path)
    if path.stem.startswith("metadata") and _folders(path.parent):
        rows = tables.read(path, lambda row: "label" in row.values, form=_FORM, skipped=Skipped())
        if not next(rows, False):
            return read_folder(path.parent)
    return read_rows(path, root, classes, skipped)


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

    def place(self, row: int) -> str:
        """FILE:LINE of the row that names the picture, and its file."""
        file, places = self.labelled.files[row], self.labelled.places
        return str(file) if places is None else f"{places[row]}, {file}"

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.stack(list(self._readers.map(self._picture, [int(row) for row in rows])))
        return pictures, self.labelled.labels[rows]

    def _picture(self, row: int) -> np.ndarray:
        if (found := self._kept.get(row)) is not None:
            return found
        try:
            array = self.decode(open_rgb(self.labelled.files[row], self.least))
        except DataError as error:
            raise BadRow(row, self.place(row), f"{error.what}: {error.why}") from error
        if self._room >= array.nbytes:
            self._room -= array.nbytes
            self._kept[row] = array
        return array
