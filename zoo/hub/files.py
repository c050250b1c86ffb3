"""Files that are either complete or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError

DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for the block to write; renamed to `path` when the block ends well, else removed.

    The rename is the only step that others can see, and it comes after the bytes are on the disk.
    Raises WeightsError if the directory cannot be written or the disk is full.
    """
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
            sync_directory(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk says in the block into a WeightsError: it is full, or may not be written."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def sync_directory(path: Path) -> None:
    if os.name == "posix":  # elsewhere a directory cannot be opened, and the rename is durable without it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> WeightsError:
    if error.errno in DISK_FULL:
        return WeightsError(f"cannot write {path}", "the disk is full", "Make space, or choose another place.")
    return WeightsError(
        f"cannot write {path}",
        error.strerror or str(error),
        "Choose a directory that you may write to.",
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON document, atomically. Raises WeightsError as `atomic` does."""
    with atomic(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's `object_pairs_hook`: an object in which no name is there twice. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises WeightsError if the file is not one, or a name in it is there twice."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}", error.strerror or str(error), "Check the file's permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"cannot read {path}", f"it is not valid JSON: {error}", "Fetch the file again, or correct it."
        ) from error
    if not isinstance(value, dict):
        raise WeightsError(
            f"cannot read {path}",
            f"it holds a JSON {type(value).__name__}, not an object",
            "Fetch the file again, or correct it.",
        )
    return value
