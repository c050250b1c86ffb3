"""Ratios as a picture: a bar for each case, on a logarithmic scale with equal speed in the middle. SVG, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from zoo.bench.report import Entry, groups_of

BAR, LABEL, HALF, MARGIN = 18, 330, 260, 16  # pixels: height of a bar's line, width of names, of each side, around all
LIMIT = 8.0  # ratio at the end of the scale
FASTER, SLOWER, INK, GRID = "#2b7a4b", "#b5532d", "#24292f", "#d0d7de"


def svg(found: Mapping[str, Any]) -> str:
    """The document's cases that have a ratio, as an SVG picture."""
    groups = groups_of(row for row in found["rows"] if row["ratio"] is not None)
    width, top = LABEL + 2 * HALF + 2 * MARGIN, MARGIN + 44
    height = top + BAR * sum(1 + len(rows) for rows in groups.values()) + MARGIN
    machine = found["machine"]
    centre = MARGIN + LABEL + HALF
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 12}">{escape(_title(machine))}</text>',
    ]
    for ratio in (1 / 4, 1 / 2, 1, 2, 4):
        x = centre + _length(ratio)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - MARGIN}" stroke="{GRID}"/>')
        out.append(f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{ratio:g}x</text>')
    y = top
    for group, rows in groups.items():
        out.append(f'<text x="{MARGIN}" y="{y + 13}" font-weight="bold">{escape(group)}</text>')
        for place, row in enumerate(rows, 1):
            out += _bar(row, y + BAR * place, centre)
        y += BAR * (1 + len(rows))
    return "\n".join([*out, "</svg>"]) + "\n"


def _bar(row: Entry, y: int, centre: int) -> list[str]:
    length = _length(row["ratio"])
    faster = length >= 0
    end = centre + length
    best = max(row["peers"], key=row["peers"].__getitem__)
    return [
        f'<text x="{2 * MARGIN}" y="{y + 13}">{escape(row["case"])}</text>',
        f'<rect x="{min(centre, end):.1f}" y="{y + 3}" width="{abs(length):.1f}" height="{BAR - 6}" '
        f'fill="{FASTER if faster else SLOWER}"/>',
        f'<text x="{end + (4 if faster else -4):.1f}" y="{y + 13}" text-anchor="{"start" if faster else "end"}">'
        f"{row['ratio']:.2f} {escape(best)}</text>",
    ]


def _title(machine: Mapping[str, Any]) -> str:
    where = f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads"
    return f"Speed over the best peer's (its name beside the bar) · {where}"


def _length(ratio: float) -> float:
    return HALF * 0.7 * max(-1.0, min(1.0, math.log(ratio) / math.log(LIMIT)))
