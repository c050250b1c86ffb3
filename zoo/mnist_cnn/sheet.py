"""A sheet of paper that lies on something: found, and cut out of the photograph.

A sheet is a bright part with straight sides, clear of most of the border, with something dark in it that is not what
lies around it (the holes of a white 8 show its background; the strokes on a sheet do not show the table).
"""

from __future__ import annotations

import numpy as np

from zoo.mnist_cnn.pixels import fit, label, otsu, resize, sweep

SIDE = 128  # the photograph's longer side while a sheet is looked for
LEAST, MOST = 0.1, 0.9  # of the picture's area
ON_BORDER = 0.35  # of the border at most is sheet
STRAIGHT = 0.85  # of the closest rectangle around it, turned any way; an ellipse fills 0.79
OTHER = 0.15  # of the contrast: what is dark in the sheet differs so much from what is around it
FINE_PEN = 0.05  # or it covers no more of the sheet than this


def cut_out(picture: np.ndarray) -> np.ndarray:
    """Picture (h, w, channels) -> the part of it that is the sheet, its surroundings painted as paper; unchanged if
    there is no sheet that lies on something."""
    height, width, _ = picture.shape
    small = resize(picture, fit(picture, SIDE))
    found = _find(small)
    if found is None:
        return picture
    sheet, paper = found
    inside = sweep(np.minimum, np.pad(sheet, 1), 5)[1:-1, 1:-1]  # without its edge, which is seldom sharp
    if not inside.any():
        return picture
    picture = picture.copy()
    mask = resize(inside.astype(np.float32), (height, width)) > 0.5
    picture[~mask] = paper
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find(small: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(mask (h, w) of the sheet with what is on it, colour (channels,) of its paper), or None."""
    grey = small.mean(axis=-1)
    bright = grey > otsu(grey)[0]
    parts = label(bright)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    part = parts == int(np.argmax(areas))
    around = label(~part)
    outside = np.isin(around, np.setdiff1d(_border(around), 0))
    sheet = ~outside
    on_it = sheet & ~part
    if not (
        LEAST < sheet.mean() < MOST
        and _border(sheet).mean() < ON_BORDER
        and on_it.any()
        and _fills_rectangle(sheet) > STRAIGHT
    ):
        return None
    paper, dark, table = (np.median(small[mask], axis=0) for mask in (part, on_it, outside))
    differs = np.max(np.abs(dark - table)) > OTHER * float(np.max(np.abs(paper - dark)))
    return (sheet, paper) if differs or on_it.sum() < FINE_PEN * sheet.sum() else None


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _fills_rectangle(mask: np.ndarray) -> float:
    """The mask's share of the smallest rectangle around it."""
    y, x = np.nonzero(mask)
    angles = np.arange(0, np.pi / 2, np.pi / 36)
    along = np.outer(np.cos(angles), x) + np.outer(np.sin(angles), y)
    across = np.outer(np.cos(angles), y) - np.outer(np.sin(angles), x)
    return float(len(x) / np.min((np.ptp(along, axis=1) + 1) * (np.ptp(across, axis=1) + 1)))
