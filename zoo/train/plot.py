"""Curves in characters: braille for plots (2 x 4 dots a cell), blocks for a line's worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bit of each dot of a cell in U+2800..U+28FF, by row and column (Unicode 15, chapter 21.1)."""
BLOCKS = "▁▂▃▄▅▆▇█"


class Line(NamedTuple):
    """A series to draw, and its style: x ascending."""

    x: np.ndarray
    y: np.ndarray
    style: str


def trailing(y: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Smoothed: at each point the mean of those before it, over this share of all."""
    sums, window = np.cumsum(np.concatenate([[0.0], y])), max(1, round(len(y) * share))
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def at(x: np.ndarray, y: np.ndarray, low: float, high: float, columns: int) -> np.ndarray:
    """y in each of so many columns from low to high: means where several points fall into one, lines between; NaN
    before the first and after the last."""
    where = (x - low) / max(high - low, 1e-12) * (columns - 1)
    nearest = np.rint(where).astype(int)
    count = np.bincount(nearest, minlength=columns)
    means = np.bincount(nearest, y, columns)[count > 0] / count[count > 0]
    return np.interp(np.arange(columns), np.flatnonzero(count), means, np.nan, np.nan)


def bounds(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of y to draw. Of long lines the 2 % that stand out most at either side may leave it."""
    ends = [np.quantile(line.y, (0.02, 0.98)) if len(line.y) > 50 else (line.y.min(), line.y.max()) for line in lines]
    low, high = min(float(e[0]) for e in ends), max(float(e[1]) for e in ends)
    return (low, high) if high > low else (low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9)


def braille(lines: Sequence[Line], width: int, height: int, low: float, high: float) -> list[list[tuple[str, str]]]:
    """`height` rows of (text, style), `width` cells each. Later lines lie above earlier ones."""
    dots, styles = np.zeros((height * 4, width * 2), bool), np.full((height, width), -1)
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    for number, line in enumerate(lines):
        values = at(line.x, line.y, first, last, width * 2)
        rows = np.clip((high - values) / (high - low), 0, 1) * (height * 4 - 1)
        before = None
        for column in np.flatnonzero(np.isfinite(rows)):
            row = int(rows[column] + 0.5)
            top, bottom = sorted((row, row if before is None else before))
            dots[top : bottom + 1, column] = True
            styles[top // 4 : bottom // 4 + 1, column // 2] = number
            before = row
    cells = (dots.reshape(height, 4, width, 2) * DOTS[:, None, :]).sum(axis=(1, 3))
    found = []
    for codes, numbers in zip(cells, styles, strict=True):
        starts = np.flatnonzero(np.diff(numbers, prepend=-2))
        text, ends = "".join(map(chr, 0x2800 + codes)), [*starts[1:], width]
        style = [lines[number].style if number >= 0 else "" for number in numbers[starts]]
        found.append([(text[a:b], s) for a, b, s in zip(starts, ends, style, strict=True)])
    return found


def blocks(x: np.ndarray, y: np.ndarray, width: int) -> str:
    """One line: the highest is a full block, the lowest a thin one."""
    values = at(x, y, float(x[0]), float(x[-1]), min(width, len(x)))
    low, high = np.nanmin(values), np.nanmax(values)
    levels = np.rint((values - low) / (high - low) * 7) if high > low else np.full(len(values), 3)
    return "".join(BLOCKS[int(level)] for level in np.nan_to_num(levels)).rjust(width)
