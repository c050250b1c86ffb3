"""The shipped weights on real digits that they have not seen: as files, and as somebody would photograph them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.core.tensor import Tensor
from zoo.mnist_cnn.data import Split
from zoo.mnist_cnn.image import prepare, read

Rng = np.random.Generator


def answers(pictures: list[np.ndarray]) -> np.ndarray:
    model = zoo.load("mnist_cnn")
    return model(Tensor(model.device.from_host(np.stack(pictures)), model.device)).argmax(axis=-1).numpy()


def test_as_files(unseen: Split, tmp_path: Path) -> None:
    seen = []
    for picture in unseen.images[-500:]:
        Image.fromarray(picture).save(tmp_path / "digit.png")
        seen.append(read(tmp_path / "digit.png"))
    assert np.mean(answers(seen) == unseen.labels[-500:]) >= 0.99


def enlarged(picture: np.ndarray, size: int) -> np.ndarray:
    """Strokes with firm edges, (size, size), from 28x28."""
    large = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    return np.clip((large - 0.5) * 8 + 0.5, 0, 1)


def placed(picture: np.ndarray, rng: Rng) -> np.ndarray:
    """Somewhere on a sheet of 400 x 300."""
    size = int(rng.integers(110, 260))
    top, left = rng.integers(0, 400 - size), rng.integers(0, 300 - size)
    return np.pad(enlarged(picture, size), ((top, 400 - size - top), (left, 300 - size - left)))


def light(rng: Rng, least: float) -> np.ndarray:
    """Light that falls off in some direction, (400, 300)."""
    y, x = np.mgrid[-1:1:400j, -1:1:300j]
    angle = rng.uniform(0, 2 * np.pi)
    return 1 - (1 - least) * (0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y))


def photographed(picture: np.ndarray, rng: Rng) -> np.ndarray:
    ink = placed(picture, rng)
    return light(rng, 0.4) * (0.9 - 0.75 * ink) + rng.normal(0, 0.02, ink.shape)


def half_in_shadow(picture: np.ndarray, rng: Rng) -> np.ndarray:
    ink = placed(picture, rng)
    y, x = np.mgrid[0:400, 0:300]
    return np.where(x + rng.uniform(-0.5, 0.5) * y > 150, 1, 0.6) * (0.9 - 0.75 * ink) + rng.normal(0, 0.01, ink.shape)


def chalk(picture: np.ndarray, rng: Rng) -> np.ndarray:
    ink = placed(picture, rng) * rng.uniform(0.4, 1, (400, 300))
    return light(rng, 0.6) * (0.2 + 0.65 * ink) + rng.normal(0, 0.02, ink.shape)


@pytest.mark.parametrize("how", [photographed, half_in_shadow, chalk])
def test_on_paper_and_boards(unseen: Split, how: Callable[[np.ndarray, Rng], np.ndarray]) -> None:
    rng, seen = np.random.default_rng(0), []
    for picture in unseen.images[:60]:
        file = io.BytesIO()
        Image.fromarray(np.uint8(255 * np.clip(how(picture, rng), 0, 1))).save(file, "JPEG", quality=70)
        seen.append(prepare(np.asarray(Image.open(file), np.float32) / 255))
    assert np.mean(answers(seen) == unseen.labels[:60]) >= 0.95
