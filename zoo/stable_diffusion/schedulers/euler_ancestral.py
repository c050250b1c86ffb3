"""Euler's method that goes further down than planned, and back up with new noise (crowsonkb/k-diffusion)."""

from __future__ import annotations

import math

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, SchedulerConfig
from zoo.stable_diffusion.schedulers.euler import Euler


class EulerAncestral(Euler):
    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        if config.prediction_type == "sample":
            why = "its prediction_type is 'sample', which this scheduler has no rule for"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        sigma, target = self._sigma(), self._sigma(1)
        self.index += 1
        up = math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2)
        down = math.sqrt(max(target**2 - up**2, 0.0))
        stepped = sample + self._slope(output, sample, sigma) * (down - sigma)
        return stepped + draw() * up
