"""What the steps from picture to ink share: sizes, windows, thresholds, parts. Pictures are (height, width, ...)."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize(picture: np.ndarray, size: tuple[int, int], *, smooth: bool = False) -> np.ndarray:
    """To size (height, width), float32: average over areas; where it grows, linear or (smooth) cubic interpolation."""
    if picture.ndim == 3:
        return np.stack([resize(plane, size, smooth=smooth) for plane in np.moveaxis(picture, -1, 0)], axis=-1)
    grows = size[0] > picture.shape[0] or size[1] > picture.shape[1]
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR if grows else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture, np.float32)).resize(size[::-1], how))


def fit(picture: np.ndarray, side: int) -> tuple[int, int]:
    """The size (height, width) of a picture made to fit into side x side; its own if it does."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def ring(picture: np.ndarray) -> np.ndarray:
    """Mask (h, w) of the outer 6 %."""
    mask = np.ones(picture.shape[:2], bool)
    edge = max(1, round(0.06 * min(mask.shape)))
    mask[edge:-edge, edge:-edge] = False
    return mask


def sweep(ufunc: np.ufunc, picture: np.ndarray, window: int) -> np.ndarray:
    """Minimum, maximum or sum over window x window pixels (odd) around each, edges repeated. (h, w, ...) -> same."""
    half = window // 2
    for axis in (0, 1):
        padded = np.pad(picture, [(half, half) if i == axis else (0, 0) for i in range(picture.ndim)], mode="edge")
        picture = ufunc.reduce([np.take(padded, range(i, i + picture.shape[axis]), axis) for i in range(window)])
    return picture


def mean(picture: np.ndarray, window: int) -> np.ndarray:
    """Mean over window x window pixels (odd) around each, edges repeated. (h, w, ...) -> same."""
    return sweep(np.add, picture, window) / window**2


def otsu(values: np.ndarray) -> tuple[float, float]:
    """(the cut that makes its two sides least mixed (Otsu 1979), how much of the variance it explains, 0 to 1).

    The cut is one of 256 between 0 and the largest value; values below 0 count as 0.
    """
    values = np.maximum(values, 0)
    top, variance = float(values.max()), float(values.var())
    if variance == 0:
        return 0.0, 0.0
    counts, edges = np.histogram(values, 256, (0, top))
    below, sums = np.cumsum(counts), np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num(below * above * (sums / below - (sums[-1] - sums) / above) ** 2)[:-1]
    best = int(np.argmax(between))
    return float(edges[1 + best]), float(between[best]) / values.size**2 / variance


def label(mask: np.ndarray) -> np.ndarray:
    """Number the 8-connected parts of a mask (h, w) from 1; 0 outside.

    Every pixel takes the smallest number around it, then the number that that one has taken, until nothing changes.
    """
    height, width = mask.shape
    none = mask.size + 1
    parts = np.where(mask, np.arange(1, none).reshape(mask.shape), 0)
    while True:
        around = np.pad(np.where(mask, parts, none), 1, constant_values=none)
        near = np.min([around[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
        near = np.where(mask, near, 0)
        taken = np.append(0, near)[near]
        if np.array_equal(taken, parts):
            return np.unique(np.append(0, parts), return_inverse=True)[1][1:].reshape(mask.shape)
        parts = taken
