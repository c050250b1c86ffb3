"""Any picture of a digit -> the 28x28 picture that the network was trained to see.

MNIST was made so (LeCun et al. 1998, section III.A): the digit is scaled into 20x20 pixels keeping its shape, with
anti-aliasing, and placed in 28x28 so that its centre of mass is the centre, white on black. A picture that is made
so already passes through nearly unchanged.
"""

from __future__ import annotations

import math
import os

import numpy as np
from PIL import Image

from zoo.core.errors import DataError
from zoo.data.picture import open_picture
from zoo.mnist_cnn.config import SIDE
from zoo.mnist_cnn.ink import find_ink
from zoo.mnist_cnn.pixels import fit, resize
from zoo.mnist_cnn.sheet import cut_out

BOX = 20  # the digit's longer side in MNIST
CENTRE = 14  # index of the pixel on which MNIST puts the centre of mass: all 60,000 have it within half a pixel
WORKING_SIDE = 400  # photographs are reduced to this; a digit that takes a twentieth of the side is still 20 pixels
THINNEST = 1.9  # thinner strokes, in pixels of the 20x20 box, would fade to grey; MNIST's are 1.8 to 4.5

FIRM = 0.25  # ink that counts for the size of a digit; around it lies blur, and what JPEG makes of edges


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """The picture (28, 28) float32, 0 to 1, white on black, that the network sees of an image file.

    Raises DataError when the file is missing, not an image, broken, too large, or blank.
    """
    name = os.fspath(path)
    try:
        return prepare(_pixels(open_picture(name, 2 * WORKING_SIDE)))
    except DataError as error:
        raise DataError(f"cannot read a digit from {name}", error.why, error.fix) from None


def prepare(picture: np.ndarray) -> np.ndarray:
    """The same from pixels (h, w) or (h, w, channels), 0 to 1; DataError if they are blank."""
    if picture.ndim == 2:
        picture = picture[..., None]
    picture = resize(picture, fit(picture, WORKING_SIDE))
    return _normalise(find_ink(cut_out(picture)))


def _pixels(image: Image.Image) -> np.ndarray:
    """(h, w, 1 or 3) float32, 0 to 1. Transparency is resolved here; see `_over`."""
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA"):
        rgba = np.asarray(_small(image.convert("RGBA")), np.float32) / 255
        if rgba[..., 3].min() < 1:
            return _over(rgba[..., :3], rgba[..., 3])
        return rgba[..., :3]
    if image.mode.startswith(("I", "F")):
        values = np.asarray(_small(image.convert(image.mode[0])), np.float32)
        if not np.isfinite(values).all():
            raise DataError("", "it holds values that are not numbers", "Save it as an 8-bit image.")
        low, high = float(values.min()), float(values.max())
        if image.mode != "F":
            low, high = 0.0, 255.0 if high <= 255 else max(65535.0, high)
        elif low >= 0 and high <= 1:
            low, high = 0.0, 1.0  # else any unit
        return (values[..., None] - low) / max(high - low, 1e-9)
    if image.mode in ("1", "L"):
        return np.asarray(_small(image.convert("L")), np.float32)[..., None] / 255
    return np.asarray(_small(image.convert("RGB")), np.float32) / 255


def _small(image: Image.Image) -> Image.Image:
    """Reduced while it is still 8 bits: as float32 a photograph takes four times the memory."""
    factor = max(image.size) // (2 * WORKING_SIDE)
    return image.reduce((min(factor, image.width), min(factor, image.height))) if factor > 1 else image


def _over(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay a transparent picture on a sheet.

    Where the opaque part is a sheet itself (it fills its frame and has contrast), the rest becomes as that sheet
    is on the whole. Else what is opaque is the ink, whatever its colour.
    """
    opaque = alpha > 0.5
    if not opaque.any():
        return alpha[..., None]
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    frame = opaque[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low, sheet, high = np.percentile(rgb[opaque], (2, 50, 98), axis=0)
    if frame.mean() > 0.7 and np.max(high - low) > 0.1:
        return rgb * alpha[..., None] + sheet.astype(np.float32) * (1 - alpha[..., None])
    return alpha[..., None]


def _normalise(ink: np.ndarray) -> np.ndarray:
    """Scale the ink map (h, w) into 20x20, and centre its mass in 28x28."""
    firm = ink > (FIRM if max(ink.shape) > 2 * SIDE else 0)
    rows, columns = np.flatnonzero(firm.any(axis=1)), np.flatnonzero(firm.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    if scale != 1:
        ink = _thicken(ink, scale)
        height, width = (math.ceil(n * scale - 0.01) for n in ink.shape)
        margins = [max(0, round(n / scale) - m) for n, m in zip((height, width), ink.shape, strict=True)]
        ink = np.pad(ink, [(margin // 2, margin - margin // 2) for margin in margins])  # so that it keeps its shape
        ink = np.clip(resize(ink, (height, width), smooth=scale > 1), 0, 1)
        ink = np.clip(ink / np.percentile(ink[ink > 0.25 * ink.max()], 80), 0, 1)

    height, width = ink.shape
    mass = ink.sum()
    top = CENTRE - round(float((ink.sum(axis=1) @ np.arange(height)) / mass))
    left = CENTRE - round(float((ink.sum(axis=0) @ np.arange(width)) / mass))
    seen = np.zeros((SIDE, SIDE), np.float32)
    top, left = min(max(top, 0), SIDE - height), min(max(left, 0), SIDE - width)
    seen[top : top + height, left : left + width] = ink
    return seen


def _thicken(ink: np.ndarray, scale: float) -> np.ndarray:
    """Widen strokes that would be thinner than THINNEST once scaled. Width = area / half the outline."""
    mask = ink > 0.5
    inner = np.pad(mask, 1)
    inside = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    outline = int(np.count_nonzero(mask & ~inside))
    width = 2 * int(np.count_nonzero(mask)) / max(outline, 1)
    for _ in range(round((THINNEST / scale - width) / 2) if scale < 0.5 else 0):
        around = np.pad(ink, 1)
        ink = np.max(
            [around[1:-1, 1:-1], around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]], axis=0
        )
    return ink
