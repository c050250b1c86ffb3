"""What a diffusion model learns from: latents with noise, and what it should say of them (Ho et al. 2020, algorithm 1).

Noise, times and dropped captions are drawn on the host, from the batch's own stream of random numbers: a run that is
stopped and resumed sees the same ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.random import Generator
from zoo.core.tensor import Tensor


class Noising:
    """A Loader's transform: (mean, deviation, ids, ...) of examples -> (noisy, times, target, weights, ids, ...).

    mean and deviation (B, h, w, C) are what the VAE says of the pictures; ids (B, L) are captions, of which a share
    `drop` is replaced by `empty`, so that guidance has a model without text to compare with (Ho & Salimans 2022).
    min_snr: losses are weighted by min(snr, min_snr) / snr, so that nearly clean latents do not dominate (Hang et al.
    2023; 5 in the paper); 0 weighs all times alike.
    """

    def __init__(
        self, alphas_cumprod: np.ndarray, prediction_type: str, scaling: float, *, empty: np.ndarray | None = None,
        drop: float = 0.0, min_snr: float = 0.0,
    ):  # fmt: skip
        self.alphas, self.prediction_type, self.scaling = alphas_cumprod, prediction_type, scaling
        self.empty, self.drop, self.min_snr = empty, drop, min_snr

    def __call__(self, batch: Any, rng: Generator) -> Any:
        mean, deviation, ids, *rest = batch
        rows, shape = len(mean), mean.shape
        draw = (rng.normal(shape, device="numpy").numpy() for _ in range(2))
        latents = (mean + deviation * next(draw)) * np.float32(self.scaling)
        noise = next(draw)
        times = rng.integers(0, len(self.alphas), rows)
        if self.drop:
            dropped = rng.uniform((rows,), device="numpy").numpy() < self.drop
            ids = np.asarray(np.where(dropped[:, None], self.empty, ids), np.int32)
        noisy, target = self.mixed(latents, noise, times)
        return noisy, times.astype(np.float32), target, self.weights(times), ids, *rest

    def mixed(self, latents: np.ndarray, noise: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents with noise of these times, and what the model should say."""
        a = self.alphas[times].reshape(-1, *[1] * (latents.ndim - 1))
        signal, rest = np.sqrt(a), np.sqrt(1 - a)
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: signal * noise - rest * latents,
            "sample": lambda: latents,
        }[self.prediction_type]()
        return signal * latents + rest * noise, target

    def weights(self, times: np.ndarray) -> np.ndarray:
        """Of the losses, (B,). The paper's are of losses in x_0; of those in noise or velocity, they are divided by
        snr or snr + 1."""
        if not self.min_snr:
            return np.ones(len(times), np.float32)
        snr = self.alphas[times] / np.maximum(1 - self.alphas[times], np.float32(1e-12))
        capped = np.minimum(snr, np.float32(self.min_snr))
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones_like(snr)}[self.prediction_type]
        return (capped / np.maximum(divisor, np.float32(1e-12))).astype(np.float32)


def squared_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pictures of each one's mean squared error, times its weight."""
    each = ops.mean(ops.square(prediction - target), axis=(1, 2, 3))
    return ops.mean(each * weights)
