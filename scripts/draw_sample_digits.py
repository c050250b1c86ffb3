"""Draws the sample digits that ship with mnist_cnn: strokes as a hand would make them, on what people write on.

    python scripts/draw_sample_digits.py [DIRECTORY]

They are this repository's own, not taken from MNIST. The same numbers give the same pictures.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

OUT = Path(__file__).resolve().parents[1] / "zoo" / "mnist_cnn" / "samples"
FINER = 3  # strokes are drawn so many times larger and averaged, for soft edges
COLOURS = 96  # of a saved picture: keeps all ten below 60 kB

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Each digit as strokes, each stroke as points that a smooth curve passes through; x right, y down, in a unit box.
STROKES: dict[int, list[list[Point]]] = {
    0: [[(0.6, 0.05), (0.34, 0.09), (0.13, 0.36), (0.14, 0.68), (0.36, 0.95), (0.66, 0.9), (0.86, 0.6), (0.82, 0.26),
         (0.6, 0.05), (0.47, 0.08)]],
    1: [[(0.41, 0.2), (0.5, 0.13), (0.58, 0.03)], [(0.58, 0.03), (0.55, 0.5), (0.51, 0.97)]],
    2: [[(0.16, 0.27), (0.3, 0.08), (0.58, 0.03), (0.78, 0.22), (0.66, 0.5), (0.38, 0.77), (0.13, 0.96)],
        [(0.13, 0.96), (0.38, 0.9), (0.62, 0.94), (0.9, 0.91)]],
    3: [[(0.18, 0.14), (0.45, 0.03), (0.74, 0.14), (0.7, 0.36), (0.4, 0.47)],
        [(0.4, 0.47), (0.74, 0.53), (0.84, 0.75), (0.62, 0.95), (0.32, 0.95), (0.13, 0.83)]],
    4: [[(0.45, 0.04), (0.33, 0.3), (0.13, 0.6)], [(0.13, 0.6), (0.5, 0.6), (0.9, 0.57)],
        [(0.68, 0.27), (0.65, 0.6), (0.61, 0.98)]],
    5: [[(0.8, 0.05), (0.55, 0.07), (0.31, 0.07)], [(0.31, 0.07), (0.27, 0.25), (0.23, 0.45)],
        [(0.23, 0.45), (0.5, 0.37), (0.77, 0.5), (0.79, 0.76), (0.55, 0.95), (0.17, 0.89)]],
    6: [[(0.7, 0.03), (0.42, 0.22), (0.2, 0.56), (0.25, 0.87), (0.53, 0.96), (0.76, 0.8), (0.67, 0.58), (0.42, 0.58),
         (0.23, 0.77)]],
    7: [[(0.14, 0.1), (0.45, 0.08), (0.84, 0.06)], [(0.84, 0.06), (0.62, 0.45), (0.45, 0.97)]],
    8: [[(0.72, 0.17), (0.5, 0.04), (0.27, 0.18), (0.38, 0.42), (0.66, 0.6), (0.75, 0.83), (0.48, 0.97), (0.22, 0.82),
         (0.36, 0.57), (0.64, 0.37), (0.74, 0.18)]],
    9: [[(0.77, 0.24), (0.58, 0.05), (0.31, 0.12), (0.22, 0.36), (0.4, 0.52), (0.66, 0.43), (0.79, 0.2)],
        [(0.79, 0.2), (0.76, 0.55), (0.64, 0.97)]],
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One picture. Lengths are shares of its width; the digit stands in a box of size `height` around `centre`."""

    digit: int
    name: str
    size: tuple[int, int]
    sheet: Callable[[tuple[int, int], random.Random], Image.Image]
    ink: Colour | None
    """None: the sheet is transparent, and the ink dark blue."""
    width: float
    height: float
    centre: Point
    turn: float = 0.0
    """Degrees, clockwise."""
    dry: float = 0.0
    """Share of the stroke that the sheet's grain leaves bare: chalk, pencil."""


def plain(colour: Colour) -> Callable[[tuple[int, int], random.Random], Image.Image]:
    return lambda size, rng: Image.new("RGB", size, colour)


def photographed(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Paper under a lamp: light falls off to one side."""
    ramp = Image.linear_gradient("L").rotate(28, Image.Resampling.BICUBIC).crop((45, 45, 210, 210)).resize(size)
    light = ramp.point(lambda v: 110 + v * 0.5)
    return Image.merge("RGB", (light, light.point(lambda v: v * 0.97), light.point(lambda v: v * 0.87)))


def squared(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A page of a school notebook."""
    image = Image.new("RGB", size, (250, 250, 246))
    draw = ImageDraw.Draw(image)
    for axis in (0, 1):
        for at in range(11, size[axis], 26):
            draw.line([(at, 0), (at, size[1])] if axis == 0 else [(0, at), (size[0], at)], (190, 208, 232))
    return image


def board(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A blackboard that was wiped."""
    wide = grain((size[0] // 6, size[1] * 2), rng, 40).resize(size, Image.Resampling.BICUBIC)
    smears = ImageChops.blend(wide, grain(size, rng, 90), 0.4)
    smears = smears.point(lambda v: v * 0.15)
    return ImageChops.add(Image.new("RGB", size, (34, 52, 44)), Image.merge("RGB", (smears,) * 3))


def grain(size: tuple[int, int], rng: random.Random, coarse: int) -> Image.Image:
    """Grey noise with grains of so many pixels."""
    small = (size[0] // coarse + 2, size[1] // coarse + 2)
    return Image.frombytes("L", small, rng.randbytes(small[0] * small[1])).resize(size, Image.Resampling.BICUBIC)


SAMPLES = (
    Sample(0, "ballpoint", (240, 240), plain((255, 255, 255)), (28, 44, 120), 0.022, 0.5, (0.5, 0.5), 8),
    Sample(1, "pencil", (200, 280), plain((243, 240, 232)), (120, 118, 116), 0.02, 0.55, (0.42, 0.5), 6, 0.25),
    Sample(2, "chalk", (320, 240), board, (236, 236, 226), 0.035, 0.55, (0.56, 0.5), -4, 0.4),
    Sample(3, "photographed", (300, 360), photographed, (36, 34, 40), 0.03, 0.45, (0.36, 0.62), 7),
    Sample(4, "brush", (256, 256), plain((252, 250, 244)), (16, 14, 14), 0.085, 0.72, (0.5, 0.5), 3),
    Sample(5, "notebook", (312, 312), squared, (30, 52, 150), 0.024, 0.42, (0.62, 0.42), 5),
    Sample(6, "felt_pen", (280, 220), plain((255, 240, 120)), (200, 36, 60), 0.05, 0.6, (0.4, 0.5), 10),
    Sample(7, "tablet", (256, 256), plain((18, 18, 20)), (90, 220, 250), 0.045, 0.6, (0.52, 0.48), -3),
    Sample(8, "transparent", (200, 200), plain((0, 0, 0)), None, 0.06, 0.7, (0.5, 0.5), 6),
    Sample(9, "small", (64, 48), plain((255, 255, 255)), (0, 0, 0), 0.05, 0.5, (0.3, 0.45), 4),
)


def draw(sample: Sample) -> Image.Image:
    rng = random.Random(f"{sample.digit} {sample.name}")
    stroke = strokes(sample, rng)
    if sample.dry:
        bare = grain(sample.size, rng, 2).point(lambda v: 255 if v > 255 * sample.dry else 130)
        stroke = ImageChops.multiply(stroke, bare.filter(ImageFilter.GaussianBlur(0.5)))
    sheet = sample.sheet(sample.size, rng)
    if sample.ink is None:
        ink = Image.new("RGB", sample.size, (24, 32, 70))
        ink.putalpha(stroke)
        return ink
    sheet.paste(Image.new("RGB", sample.size, sample.ink), mask=stroke)
    return sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def strokes(sample: Sample, rng: random.Random) -> Image.Image:
    """The ink as a mask: a round tip that moves along the curves, trembles a little and presses unevenly."""
    width, height = (n * FINER for n in sample.size)
    mask = Image.new("L", (width, height))
    canvas = ImageDraw.Draw(mask)
    box = sample.height * height
    cos, sin = math.cos(math.radians(sample.turn)), math.sin(math.radians(sample.turn))
    for points in STROKES[sample.digit]:
        phase, pace = rng.uniform(0, 6.28), rng.uniform(5, 9)
        moved = [(x + rng.gauss(0, 0.008), y + rng.gauss(0, 0.008)) for x, y in points]
        moved[0], moved[-1] = points[0], points[-1]  # strokes that meet go on meeting
        path = curve(moved)
        for i, (x, y) in enumerate(path):
            along = i / len(path)
            x, y = (x - 0.5) * 0.72 * box, (y - 0.5) * box
            x, y = cos * x - sin * y + sample.centre[0] * width, sin * x + cos * y + sample.centre[1] * height
            press = 1 + 0.14 * math.sin(phase + pace * along) - 0.3 * max(0.0, along - 0.85) / 0.15
            radius = sample.width * width * press / 2
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask.resize(sample.size, Image.Resampling.BOX)


def curve(points: Sequence[Point], steps: int = 80) -> list[Point]:
    """The smooth curve through the points (Catmull-Rom), `steps` positions between neighbours."""
    ends = [points[0], *points, points[-1]]
    path = []
    for before, start, end, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for i in range(steps):
            t = i / steps
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            four = (before, start, end, after)
            path.append(tuple(sum(w * p[axis] for w, p in zip(weights, four, strict=True)) / 2 for axis in (0, 1)))
    return [*path, points[-1]]  # type: ignore[list-item]


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        file = out / f"{sample.digit}_{sample.name}.png"
        draw(sample).save(file, optimize=True)
        print(f"{file}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
