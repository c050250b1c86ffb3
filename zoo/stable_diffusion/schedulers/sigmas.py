"""Schedulers that count noise in sigma = sqrt((1 - a) / a): x = x_0 + sigma noise (Karras et al. 2022)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import TINY, Scheduler, SchedulerConfig

RHO = 7.0
"""How densely Karras' sigmas lie near zero (Karras et al. 2022, table 1)."""


class SigmaScheduler(Scheduler):
    """`sigmas` holds one number more than there are timesteps: where the last step ends."""

    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        if config.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = TINY
        self.table = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        """sigma of each timestep of training, float32."""
        self.sigmas = np.zeros(1, np.float32)

    def _interpolated(self, timesteps: np.ndarray) -> np.ndarray:
        return np.interp(timesteps, np.arange(len(self.table)), self.table)

    def _karras(self, high: float, low: float, steps: int) -> np.ndarray:
        """Sigmas from high to low, evenly spaced in their seventh roots (eq. 5)."""
        low = low if self.config.sigma_min is None else self.config.sigma_min
        high = high if self.config.sigma_max is None else self.config.sigma_max
        a, b = high ** (1 / RHO), low ** (1 / RHO)
        return (a + np.linspace(0, 1, steps) * (b - a)) ** RHO

    def _timesteps_of(self, sigmas: np.ndarray) -> np.ndarray:
        """At which (fraction of a) timestep of training there was so much noise: linear in log sigma."""
        logs = np.log(self.table)
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), logs, np.arange(len(logs)))

    def _ending(self, sigmas: np.ndarray) -> np.ndarray:
        """The sigmas, and where the walk ends: without noise, or (as the config says) with the least there is."""
        last = 0.0 if self.config.final_sigmas_type == "zero" else self.table[0]
        return np.append(sigmas, last).astype(np.float32)

    def _sigma(self, ahead: int = 0) -> float:
        return float(self.sigmas[self.index + ahead])


def parts(sigma: float) -> tuple[float, float]:
    """sqrt(a) and sqrt(1 - a) of a sigma."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


def log_snr(sigma: float) -> float:
    """lambda = log(sqrt(a) / sqrt(1 - a)), in which the fast solvers step (Lu et al. 2022)."""
    return -math.log(sigma) if sigma > 0 else math.inf


class PreservingScheduler(SigmaScheduler):
    """The solvers that take their timesteps from sigmas, but whose x shrinks as noise comes in, as the model saw it."""

    def __init__(self, config: SchedulerConfig):
        super().__init__(dataclasses.replace(config, clip_sample=False))  # a setting of other schedulers

    def _plan(self, steps: int) -> np.ndarray:
        train, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        if spacing == "linspace":
            timesteps: np.ndarray = np.linspace(0, train - 1, steps + 1).round()[:0:-1]
        elif spacing == "leading":
            timesteps = (np.arange(steps + 1) * (train // (steps + 1)))[:0:-1] + float(self.config.steps_offset)
        else:
            timesteps = np.arange(train, 0, -train / steps).round() - 1
        if self.config.use_karras_sigmas:
            sigmas = self._karras(float(self.table[-1]), float(self.table[0]), steps)
            timesteps = self._timesteps_of(sigmas)
            if self.config.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
            self.sigmas = self._ending(sigmas)
        else:
            self.sigmas = self._ending(self._interpolated(timesteps))
        self.steps = len(timesteps)
        return timesteps.astype(np.int64)

    def add_noise(self, sample: Tensor, noise: Tensor, t: float) -> Tensor:
        alpha, sigma = parts(self._sigma())
        return sample * alpha + noise * sigma

    def guess(self, output: Tensor, t: float, sample: Tensor) -> Tensor:
        return self._clean(output, sample, 1 / (self._sigma() ** 2 + 1))
