"""Pictures with captions, as people keep them for fine-tuning:

DIR/metadata.jsonl      {"file_name": "1.png", "text": "a red bicycle"}   (Hugging Face's imagefolder)
DIR/1.png  DIR/1.txt    the caption beside the picture                    (kohya's scripts)
DIR/1.png               no captions: one prompt for all                   (DreamBooth)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.core.errors import DataError
from zoo.data.picture import SUFFIXES, open_rgb
from zoo.stable_diffusion.picture import to_pixels

METADATA = "metadata.jsonl"
LIMIT = 10_000
"""Characters of a caption; a longer one is another file by mistake."""


def read(directory: Path, prompt: str | None = None) -> list[tuple[Path, str]]:
    """Picture files and their captions, in the order of their names; `prompt` is that of pictures without one.

    Raises DataError if there are no pictures, a caption is missing, or metadata.jsonl is broken or names no file.
    """
    if not directory.is_dir():
        why = "it is a file" if directory.is_file() else "there is no such directory"
        raise DataError(f"cannot use {directory}", why, "Name a directory of pictures with captions.")
    named = _metadata(directory / METADATA) if (directory / METADATA).is_file() else {}
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in files if not path.name.startswith(".")]
    if missing := [name for name in named if not (directory / name).is_file()]:
        raise DataError(
            f"cannot use {directory}", f"{METADATA} names {missing[0]}, which is not there", "Put it there."
        )
    if not files:
        raise DataError(f"no pictures in {directory}", "", "Put pictures there: PNG, JPEG, WebP, ...")
    found = []
    for path in files:
        beside = path.with_suffix(".txt")
        caption = named.get(path.relative_to(directory).as_posix())
        if caption is None and beside.is_file():
            caption = beside.read_text(encoding="utf-8", errors="replace")[: LIMIT + 1].strip()
        caption = prompt if caption is None else caption
        if caption is None:
            why = f"{path.name} has none: neither {beside.name} nor a line in {METADATA}"
            raise DataError("a caption is missing", why, "Write it; or give one prompt for all: --prompt TEXT.")
        if len(caption) > LIMIT:
            raise DataError(f"cannot use {beside}", f"a caption of more than {LIMIT:,} characters", "Shorten it.")
        found.append((path, caption))
    return found


def _metadata(path: Path) -> dict[str, str]:
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            why = f'line {number} is no object with "file_name" and "text"'
            raise DataError(f"cannot read {path}", why, 'Write lines as {"file_name": "1.png", "text": "a bicycle"}.')
        captions[name] = text
    return captions


def pixels(path: Path, size: tuple[int, int], mirrored: bool = False) -> np.ndarray:
    """A picture (height, width, 3) in -1 ... 1: brought to fill the size (width, height), its middle."""
    image = ImageOps.fit(open_rgb(path, max(size)), size, Image.Resampling.LANCZOS)
    array = to_pixels(np.asarray(image))
    return array[:, ::-1] if mirrored else array
