"""Pictures between files, pixels of -1 ... 1, and the PNG that says how it was made."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from zoo.core.errors import DataError
from zoo.data.picture import open_picture, open_rgb
from zoo.hub.files import atomic

KEY = "zoo"
"""Of the PNG text chunk that holds all settings, as JSON."""
LIMIT = 1 << 20
"""Characters of a text chunk; a longer one was not written here."""


def read_pixels(path: str | os.PathLike[str], width: int, height: int) -> np.ndarray:
    """A picture file as (1, height, width, 3) float32 in -1 ... 1, brought to that size by Lanczos' filter."""
    image = open_rgb(path).resize((width, height), Image.Resampling.LANCZOS)
    return to_pixels(np.asarray(image)[None])


def read_mask(path: str | os.PathLike[str], width: int, height: int) -> np.ndarray:
    """A picture file as (1, height, width, 1) of 0 and 1: 1, where it is light, is drawn anew."""
    image = open_picture(path)
    if "A" in image.getbands() or "transparency" in image.info:
        image = open_rgb(path)
    grey = image.convert("L").resize((width, height), Image.Resampling.LANCZOS)
    return (np.asarray(grey, np.float32)[None, ..., None] >= 127.5).astype(np.float32)


def size_of(path: str | os.PathLike[str], multiple: int) -> tuple[int, int]:
    """Width and height of a picture file, each rounded down to a multiple."""
    image = open_picture(path)
    return tuple(max(multiple, side // multiple * multiple) for side in image.size)  # type: ignore[return-value]


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) in -1 ... 1 -> uint8, halves to the even one."""
    return np.round(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def to_pixels(pictures: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in -1 ... 1."""
    return 2 * (pictures.astype(np.float32) / 255) - 1


def write(path: Path, picture: np.ndarray, settings: Mapping[str, Any]) -> None:
    """A picture (height, width, 3) uint8 as PNG, whole or not at all, with the prompt and all settings in it.

    Raises WeightsError if the place cannot be written.
    """
    about = PngImagePlugin.PngInfo()
    about.add_itxt("Description", str(settings.get("prompt", "")))
    about.add_text("Software", "zoo")
    about.add_itxt(KEY, json.dumps(settings, ensure_ascii=False))
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", pnginfo=about)
    with atomic(path) as part:
        part.write_bytes(data.getvalue())


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a PNG written here says of itself. Raises DataError if it is no picture, or says nothing."""
    text = open_picture(path).info.get(KEY)
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) <= LIMIT else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        why = "it does not say how it was made: programs that edit or send pictures drop such notes"
        raise DataError(f"cannot repeat {os.fspath(path)}", why, "Use a PNG as `zoo run stable_diffusion` wrote it.")
    return found


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(path)}", error.strerror or str(error), "Check the path.") from error
