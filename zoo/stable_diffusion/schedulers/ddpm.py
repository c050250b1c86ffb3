"""DDPM (Ho et al. 2020): each step draws from q(x_prev | x_t, x_0)."""

from __future__ import annotations

import math

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, Scheduler, SchedulerConfig


class DDPM(Scheduler):
    defaults = {"clip_sample": True, "variance_type": "fixed_small"}  # noqa: RUF012

    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        if config.variance_type not in ("fixed_small", "fixed_small_log", "fixed_large"):
            why = f"its variance_type is {config.variance_type!r}: the variance would be an output of the network"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        self.index += 1
        a = self._alpha(int(t))
        a_prev = self._alpha(int(self.planned[self.index])) if self.index < len(self.planned) else 1.0
        beta = 1 - a / a_prev
        x0 = self._clean(output, sample, a)
        mean = x0 * (math.sqrt(a_prev) * beta / (1 - a)) + sample * (math.sqrt(a / a_prev) * (1 - a_prev) / (1 - a))
        if t <= 0:
            return mean
        small = max((1 - a_prev) / (1 - a) * beta, 1e-20)
        return mean + draw() * math.sqrt(beta if self.config.variance_type == "fixed_large" else small)
