"""Pictures with captions, as people keep them for fine-tuning:

DIR/metadata.jsonl      {"file_name": "1.png", "text": "a red bicycle"}   (Hugging Face's imagefolder; or .csv, or
                        DIR/train.jsonl: `zoo.data.files`)
DIR/1.png  DIR/1.txt    the caption beside the picture                    (kohya's scripts)
DIR/1.png               no captions: one prompt for all                   (DreamBooth)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from zoo.core.errors import DataError
from zoo.data import rows as tables
from zoo.data.bad import Skipped
from zoo.data.files import METADATA, find, media
from zoo.data.folder import pictures_in
from zoo.data.picture import open_rgb
from zoo.data.rows import Row
from zoo.stable_diffusion.picture import to_pixels

LIMIT = 10_000
"""Characters of a caption; a longer one is another file by mistake."""
_FORM = 'A row is {"file_name": "1.png", "text": "a bicycle"}.'


class Pair(NamedTuple):
    path: Path
    caption: str
    place: str
    """Where the caption is: FILE:LINE of a row, or the text file; of a picture with the prompt for all, itself."""


def read(directory: Path, prompt: str | None = None, skipped: Skipped | None = None) -> list[Pair]:
    """Pictures and their captions, in the order of their names; `prompt` is that of pictures without one.

    Raises DataError if there are no pictures, a caption is missing, or rows are broken or name no file; with `skipped`,
    rows that cannot be used are left out.
    """
    found = find(directory)
    folder = found.train if found.train.is_dir() else found.train.parent
    named: dict[Path, Pair] = {}
    if found.train.is_file():
        for pair in tables.read(found.train, lambda row: _pair(row, found.train, found.root), form=_FORM,
                                skipped=skipped):  # fmt: skip
            named[pair.path] = pair
    beside_rows = found.train.is_dir() or found.train.name.startswith(METADATA + ".")  # train.jsonl names all there is
    files = sorted({*(pictures_in(folder) if beside_rows else []), *named})
    if not files:
        raise DataError(f"no pictures in {directory}", "", "Put pictures there: PNG, JPEG, WebP, ...")
    pairs = []
    for path in files:
        if path in named:
            pairs.append(named[path])
            continue
        beside = path.with_suffix(".txt")
        if beside.is_file():
            caption, place = beside.read_text(encoding="utf-8", errors="replace")[: LIMIT + 1].strip(), beside
        elif prompt is not None:
            caption, place = prompt, path
        elif skipped is not None:
            skipped.add(str(path), "it has no caption")
            continue
        else:
            why = f"{path.name} has none: neither {beside.name} nor a row that names it"
            raise DataError("a caption is missing", why, "Write it; or give one prompt for all: --prompt TEXT.")
        if len(caption) > LIMIT:
            raise DataError(f"cannot use {beside}", f"a caption of more than {LIMIT:,} characters", "Shorten it.")
        pairs.append(Pair(path, caption, str(place)))
    return pairs


def _pair(row: Row, manifest: Path, root: Path) -> Pair:
    caption = row.text("text", "caption", "prompt")
    if len(caption) > LIMIT:
        raise ValueError(f"its caption has more than {LIMIT:,} characters")
    return Pair(media(row, manifest, root, "image"), caption, row.place)


def pixels(path: Path, size: tuple[int, int], mirrored: bool = False) -> np.ndarray:
    """A picture (height, width, 3) in -1 ... 1: brought to fill the size (width, height), its middle."""
    image = ImageOps.fit(open_rgb(path, max(size)), size, Image.Resampling.LANCZOS)
    array = to_pixels(np.asarray(image))
    return array[:, ::-1] if mirrored else array
