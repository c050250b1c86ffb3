"""Small random changes of training pictures, so that the network learns digits, not 50,000 drawings of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.random import Generator

ROTATION = 12.0  # degrees to either side
SCALE = 0.12  # larger or smaller by up to so much, height and width apart
SHEAR = 0.15  # slant, pixels sideways per pixel of height
SHIFT = 1.5  # pixels; MNIST's digits are centred within half a pixel, what people draw is not
DRAWS = 6  # random numbers per picture


def to_float(batch: Any, rng: Generator | None = None) -> Any:
    """(pictures uint8, labels) -> (pictures float32 in [0, 1], labels)."""
    pictures, labels = batch
    return pictures.astype(np.float32) / 255, labels


def augment(batch: Any, rng: Generator) -> Any:
    """`to_float`, and each picture turned, stretched, slanted and shifted a little, by bilinear sampling."""
    pictures, labels = to_float(batch)
    count, side = len(pictures), pictures.shape[1]
    draws = rng.uniform((count, DRAWS), low=-1.0, high=1.0, device="numpy").numpy()
    angle = np.deg2rad(ROTATION) * draws[:, 0]
    cos, sin, shear = np.cos(angle), np.sin(angle), SHEAR * draws[:, 1]
    high, wide = 1 + SCALE * draws[:, 2], 1 + SCALE * draws[:, 3]

    # where each pixel of the result comes from: centre, turn, slant, stretch, shift
    row, column = np.meshgrid(*(np.arange(side, dtype=np.float32) - (side - 1) / 2,) * 2, indexing="ij")
    r = (cos[:, None, None] * row + sin[:, None, None] * column) * high[:, None, None]
    c = (cos[:, None, None] * column - sin[:, None, None] * row + shear[:, None, None] * row) * wide[:, None, None]
    r += (side - 1) / 2 + SHIFT * draws[:, 4, None, None]
    c += (side - 1) / 2 + SHIFT * draws[:, 5, None, None]
    return bilinear(pictures, r, c), labels


def bilinear(pictures: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Pictures (n, h, w) at rows r and columns c (n, ...), between the pixels; 0 outside."""
    n, h, w = pictures.shape
    framed = np.zeros((n, h + 2, w + 2), dtype=np.float32)  # a black frame: what is outside is clipped onto it
    framed[:, 1:-1, 1:-1] = pictures
    r, c = np.clip(r + 1, 0, h + 1 - 1e-3), np.clip(c + 1, 0, w + 1 - 1e-3)
    top, left = r.astype(np.int64), c.astype(np.int64)
    dr, dc = (r - top).astype(np.float32), (c - left).astype(np.float32)
    flat = framed.reshape(-1)
    at = (np.arange(n).reshape(-1, *(1,) * (r.ndim - 1)) * (h + 2) + top) * (w + 2) + left
    upper = flat[at] * (1 - dc) + flat[at + 1] * dc
    lower = flat[at + w + 2] * (1 - dc) + flat[at + w + 3] * dc
    return upper * (1 - dr) + lower * dr
