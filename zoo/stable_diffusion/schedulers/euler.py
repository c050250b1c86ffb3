"""Euler's method on dx/dsigma (Karras et al. 2022, algorithm 2 without churn)."""

from __future__ import annotations

import math

import numpy as np

from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw
from zoo.stable_diffusion.schedulers.sigmas import SigmaScheduler


class Euler(SigmaScheduler):
    defaults = {"timestep_spacing": "linspace"}  # noqa: RUF012

    @property
    def init_noise_sigma(self) -> float:
        high = float(self.sigmas.max())
        return math.sqrt(high**2 + 1) if self.config.timestep_spacing == "leading" else high

    def _plan(self, steps: int) -> np.ndarray:
        if self.config.timestep_spacing == "linspace":  # fractions of timesteps
            timesteps = np.linspace(0, self.config.num_train_timesteps - 1, steps, dtype=np.float32)[::-1]
        else:
            timesteps = self._spaced(steps).astype(np.float32)
        sigmas = self._interpolated(timesteps)
        if self.config.use_karras_sigmas:
            sigmas = self._karras(float(sigmas[0]), float(sigmas[-1]), steps)
            timesteps = self._timesteps_of(sigmas)
        self.sigmas = self._ending(sigmas)
        return timesteps.astype(np.float32)

    def scale_model_input(self, sample: Tensor, t: float) -> Tensor:
        return sample / math.sqrt(self._sigma() ** 2 + 1)

    def add_noise(self, sample: Tensor, noise: Tensor, t: float) -> Tensor:
        return sample + noise * self._sigma()

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        sigma, target = self._sigma(), self._sigma(1)
        self.index += 1
        return sample + self._slope(output, sample, sigma) * (target - sigma)

    def guess(self, output: Tensor, t: float, sample: Tensor) -> Tensor:
        return sample - self._slope(output, sample, self._sigma()) * self._sigma()

    def _slope(self, output: Tensor, sample: Tensor, sigma: float) -> Tensor:
        """dx/dsigma = (x - x_0) / sigma."""
        if self.config.prediction_type == "epsilon":
            return output
        if self.config.prediction_type == "v_prediction":
            x0 = sample / (sigma**2 + 1) - output * (sigma / math.sqrt(sigma**2 + 1))
        else:
            x0 = output
        return (sample - x0) / sigma
