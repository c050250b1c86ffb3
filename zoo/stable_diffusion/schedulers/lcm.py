"""Latent consistency models (Luo et al. 2023): the model's clean picture, and noise again, one to eight times."""

from __future__ import annotations

import math

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, Scheduler

SIGMA_DATA = 0.5
"""Standard deviation of the data that the boundary condition supposes (Song et al. 2023, appendix C)."""


class LCM(Scheduler):
    defaults = {  # noqa: RUF012
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": True,
    }  # fmt: skip

    def _plan(self, steps: int) -> np.ndarray:
        """A subset of the timesteps that the model was distilled on."""
        distilled = self.config.original_inference_steps
        if steps > distilled:
            why = f"the model was distilled on {distilled} timesteps"
            raise ZooError(f"cannot take {steps} steps with LCM", why, "Ask for 1 to 8: more are not better.")
        stride = self.config.num_train_timesteps // distilled
        falling = (np.arange(1, distilled + 1) * stride - 1)[::-1]
        return falling[np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)]

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        self.index += 1
        scaled = float(t) * self.config.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        x0 = self._clean(output, sample, self._alpha(int(t))) * out + sample * skip
        if self.index == self.steps:
            return x0
        a = self._alpha(int(self.planned[self.index]))
        return x0 * math.sqrt(a) + draw() * math.sqrt(1 - a)
