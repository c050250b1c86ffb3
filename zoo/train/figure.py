"""Plots as SVG: lines over steps with axes, ticks and units, in the colours of the page that holds them: --c0, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.train.plot import Line, bounds

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 26
"""Around the plot itself, in the units of the SVG."""
BUCKETS = 500
"""Of a longer series, the least and the greatest of each so many parts are drawn: no spike is lost."""


@dataclass(frozen=True)
class Series:
    """A line: its name, ascending x, y, the number of its colour, and how it is drawn: faint, line, points."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    kind: str = "line"


@dataclass(frozen=True)
class Figure:
    """A plot as the template takes it. `data` is what its script looks values up in."""

    title: str
    unit: str
    legend: list[tuple[str, int, str]]
    svg: str
    data: dict[str, Any]


def series(name: str, x: Sequence[Any], y: Sequence[Any], colour: int, kind: str = "line") -> Series | None:
    """Of the points that are numbers; None if there is none."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if isinstance(b, int | float) and math.isfinite(b)]
    if not pairs:
        return None
    xs, ys = np.array(pairs, dtype=np.float64).T
    return Series(name, xs, ys, colour, kind)


def figure(title: str, unit: str, lines: Sequence[Series]) -> Figure:
    noisy = [bounds([Line(s.x, s.y, "")]) for s in lines if s.kind == "faint"]
    exact = [(float(s.y.min()), float(s.y.max())) for s in lines if s.kind != "faint"]
    yticks = ticks(*bounds([Line(ends, ends, "") for ends in map(np.array, [*noisy, *exact])]))
    low, high = yticks[0], yticks[-1]
    first, last = min(float(s.x[0]) for s in lines), max(float(s.x[-1]) for s in lines)
    first, last = (first, last) if last > first else (first - 1, last + 1)

    def across(x: Any) -> Any:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: Any) -> Any:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in yticks:
        parts.append(f'<path class="grid" d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{label(y, yticks)}</text>')
    for x in [t for t in ticks(first, last, 6) if t == int(t) and first <= t <= last]:
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{int(x):,}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM + 17}" text-anchor="end">step</text>')
    data = []
    for s in lines:
        xs, ys = thinned(s)
        points = list(zip(across(xs), np.clip(down(ys), 1, HEIGHT - BOTTOM), strict=True))
        style = f'class="{s.kind}" style="--c:var(--c{s.colour % 6})"'
        if len(points) > 1:
            parts.append(f'<path {style} d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + '"/>')
        if s.kind == "points" or len(points) == 1:
            parts += [f'<circle {style} cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points[-200:]]
        if s.kind != "faint" or not any(o.colour == s.colour and o.kind == "line" for o in lines):
            data.append(
                {"name": s.name, "colour": s.colour % 6, "x": xs.tolist(), "y": [float(f"{v:.5g}") for v in ys]}
            )
    parts.append(f'<path class="cursor" d="M0 {TOP}V{HEIGHT - BOTTOM}" visibility="hidden"/>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    legend = [(s.name, s.colour % 6, s.kind) for s in lines] if len(lines) > 1 else []
    box = {"left": LEFT, "right": WIDTH - RIGHT, "width": WIDTH, "first": first, "last": last, "unit": unit}
    return Figure(title, unit, legend, svg, {**box, "series": data})


def thinned(s: Series) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest of each bucket, in their order; all of a short series."""
    if len(s.x) <= 2 * BUCKETS:
        return s.x, s.y
    kept = []
    for part in np.array_split(np.arange(len(s.x)), BUCKETS):
        kept += sorted({int(part[np.argmin(s.y[part])]), int(part[np.argmax(s.y[part])])})
    return s.x[kept], s.y[kept]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from one not above `low` to one not below `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / apart + 1e-9), math.ceil(high / apart - 1e-9)
    return [float(f"{n * apart:.12g}") for n in range(first, last + 1)]


def label(value: float, among: Sequence[float]) -> str:
    """With as many digits as tell the ticks apart, in few characters: 0.25, 15k, 8e-4."""
    most = max(map(abs, among))
    if value == 0 and not 0.01 <= most < 1e4:
        return "0"
    if most >= 1e4:
        scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if most >= s)
        return f"{value / scale:g}{unit}"
    if most < 0.01:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.{max(0, -math.floor(math.log10(among[1] - among[0]) + 1e-9))}f}"
