"""What the terminal shows: the picture that the network saw, and how sure it is."""

from __future__ import annotations

import numpy as np

SHADES = " ░▒▓█"
FULL = "▇"
BAR = 10  # characters of a bar that stands for certainty
RUNNERS_UP = 2


def picture(seen: np.ndarray, indent: str = "  ") -> str:
    """A picture (h, w), 0 to 1, as text of w columns and h / 2 rows: a character is twice as high as wide, so it shows
    two pixels, as one shade, or as its upper or lower half where they differ."""
    levels = np.rint(np.clip(seen, 0, 1) * (len(SHADES) - 1)).astype(int)
    lines = []
    for upper, lower in zip(levels[0::2], levels[1::2], strict=True):
        line = "".join(_cell(int(a), int(b)) for a, b in zip(upper, lower, strict=True))
        lines.append((indent + line).rstrip())
    inked = [i for i, line in enumerate(lines) if line]
    return "\n".join(lines[inked[0] : inked[-1] + 1]) if inked else ""


def _cell(upper: int, lower: int) -> str:
    if upper - lower >= 3:
        return "▀"
    if lower - upper >= 3:
        return "▄"
    return SHADES[(upper + lower + 1) // 2]


def bars(probabilities: list[float]) -> str:
    """`3   99.98 %   ▇▇▇▇▇▇▇▇▇▇   8   0.01 %   5   0.01 %`: the digit, then the runners-up."""
    order = np.argsort(probabilities)[::-1]
    best = int(order[0])
    bar = FULL * max(1, round(BAR * probabilities[best]))
    others = "".join(f"   {int(d)} {probabilities[d]:7.2%}".replace("%", " %") for d in order[1 : 1 + RUNNERS_UP])
    return f"{best}  {probabilities[best]:7.2%}".replace("%", " %") + f"   {bar:<{BAR}}{others}"
