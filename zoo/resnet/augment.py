"""Random changes of training pictures: mirrored, cut out, lit in other ways, and laid over each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.core.random import Generator
from zoo.resnet.preprocess import Preprocessing

MARGIN = (
    8  # where pictures are not larger than what is cut out: a frame of size / 8 pixels, 4 for CIFAR (He et al. 4.2)
)
GREY = np.asarray((0.299, 0.587, 0.114), np.float32)  # luma (ITU-R BT.601)
TRIES = 16  # of the rejection sampler below: at alpha = 1, half of them are accepted


@dataclass(frozen=True)
class Augment:
    """(pictures uint8 (n, s, s, 3), labels) -> (normalised pictures (n, size, size, 3), labels, other labels, share).

    Each picture is flipped left to right or not and cut out at random; brightness, contrast and saturation change by up
    to `colour`, a share. mixup: alpha of Zhang et al. 2017; all pictures of the batch are laid over those of the
    reversed batch, which count by 1 - share.
    """

    preprocessing: Preprocessing
    flip: bool = True
    crop: bool = True
    colour: float = 0.0
    mixup: float = 0.0

    def __call__(self, batch: Any, rng: Generator) -> Any:
        pictures, labels = batch
        draws = rng.uniform((len(pictures), 6), device="numpy").numpy()
        if self.crop:
            pictures = cut(pictures, self.preprocessing.size, draws[:, 0], draws[:, 1])
        if self.flip:
            pictures = np.where(draws[:, 2, None, None, None] < 0.5, pictures, pictures[:, :, ::-1])
        if self.colour:
            pictures = light(pictures, 1 + self.colour * (2 * draws[:, 3:6] - 1))
        x = self.preprocessing.normalise(pictures)
        if not self.mixup:
            return x, labels, labels, 1.0
        share = beta(self.mixup, rng)
        return x * np.float32(share) + x[::-1] * np.float32(1 - share), labels, labels[::-1].copy(), share


def cut(pictures: np.ndarray, size: int, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """size x size of each picture (n, s, s, 3), from a place given by two numbers in [0, 1). Small ones get a frame
    that mirrors their edges, so that there is something to choose."""
    margin = size // MARGIN if pictures.shape[1] <= size else 0
    framed = np.pad(pictures, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    room = framed.shape[1] - size + 1
    tops, lefts = (np.minimum((at * room).astype(int), room - 1) for at in (down, right))
    return np.stack([p[t : t + size, s : s + size] for p, t, s in zip(framed, tops, lefts, strict=True)])


def light(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Brightness, contrast and saturation of each picture (n, h, w, 3) times factors (n, 3); float32, 0 to 255."""
    brightness, contrast, saturation = factors.astype(np.float32).T[:, :, None, None, None]
    x = pictures.astype(np.float32) * brightness
    grey = x @ GREY
    mean = grey.mean(axis=(1, 2))[:, None, None, None]
    x = mean + (x - mean) * contrast
    grey = (mean[..., 0] + (grey - mean[..., 0]) * contrast[..., 0])[..., None]
    return np.clip(grey + (x - grey) * saturation, 0, 255)


def beta(alpha: float, rng: Generator) -> float:
    """A number from Beta(alpha, alpha), by Jöhnk's rejection (1964): u^(1/a) / (u^(1/a) + v^(1/a)), if the sum is at
    most 1; a half, should that never happen."""
    u, v = rng.uniform((2, TRIES), device="numpy").numpy().astype(np.float64) ** (1 / alpha)
    fits = np.flatnonzero((u + v <= 1) & (u + v > 0))
    return float(u[fits[0]] / (u[fits[0]] + v[fits[0]])) if len(fits) else 0.5
