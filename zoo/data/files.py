"""Where the rows and files of a data set are. One layout for every port:

    DIR/train.jsonl   DIR/valid.jsonl                        rows that name their files (or hold their text)
    DIR/train/...     DIR/valid/...                          a folder each, laid out in any way below
    DIR/metadata.jsonl  DIR/1.png  DIR/2.png  ...            files and rows that name them (Hugging Face's imagefolder
                                                             and audiofolder; metadata.csv too)
    DIR/cat/1.png  DIR/dog/1.png  ...                        a folder per class

valid is also called validation, val or test. Where there is none, every tenth row is held out, the first of each ten;
of classes, every tenth of each. A file of rows may be given instead of a directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.core.errors import DataError
from zoo.data.rows import SUFFIXES, Row

VALIDATION = ("valid", "validation", "val", "test")
METADATA = "metadata"
HELD_OUT = 10
"""One row of so many is held out where nothing says which are."""


@dataclass(frozen=True)
class Found:
    """What is trained on, and what is held out, or None: files of rows, or folders. root: the data set's folder."""

    train: Path
    valid: Path | None
    root: Path


def find(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Found:
    """The parts of a data set; of a directory that says nothing of parts, itself. Raises DataError if there is nothing
    of that name."""
    if path.is_file():
        return Found(path, None, path.parent)
    if not path.is_dir():
        fix = "Name a directory, or a file of rows (docs/data.md)."
        raise DataError(f"cannot use {path}", "there is no such file or directory", fix)
    train = named(path, "train", suffixes)
    if train is None:
        return Found(named(path, METADATA, suffixes) or path, None, path)
    valid = next((found for name in VALIDATION if (found := named(path, name, suffixes))), None)
    return Found(_rows_of(train, suffixes), None if valid is None else _rows_of(valid, suffixes), path)


def named(folder: Path, stem: str, suffixes: tuple[str, ...] = SUFFIXES) -> Path | None:
    """FOLDER/stem with one of the suffixes; else the folder of that name; else None."""
    for end in suffixes:
        if (path := folder / f"{stem}{end}").is_file():
            return path
    return path if (path := folder / stem).is_dir() and stem != METADATA else None


def _rows_of(path: Path, suffixes: tuple[str, ...]) -> Path:
    return (named(path, METADATA, suffixes) or path) if path.is_dir() else path


def media(row: Row, manifest: Path, root: Path, *names: str) -> Path:
    """The file that a row names, in the first of the fields `file`, `file_name`, `path` and `names` that is there.

    Raises ValueError if it is not there, or lies outside of `root`: rows come from elsewhere, and could name any file
    of this user, which would be trained on and could be read from what was learned. Only names count: a symbolic link
    is something that this user made (and is how Hugging Face's cache keeps every file), so it leads anywhere.
    """
    name = row.text(*names, "file", "file_name", "path")
    path = Path(os.path.normpath(manifest.parent / name))
    if os.path.commonpath([top := os.path.abspath(root), os.path.abspath(path)]) != top:
        raise ValueError(f"{name} lies outside of {root}: put it there, or a symbolic link to it")
    if not path.is_file():
        raise ValueError(f"{name} is {'no file' if path.exists() else 'not there'}")
    return path


def held_out(rows: int) -> np.ndarray:
    """Of each row, whether it is held out. Raises DataError if none would be left."""
    if rows < 2:
        why = f"{rows} row leaves nothing to hold out"
        raise DataError("there is too little data", why, "Give more, or train and valid files.")
    return np.arange(rows) % HELD_OUT == 0
