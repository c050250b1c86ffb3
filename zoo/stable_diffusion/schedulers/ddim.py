"""DDIM (Song et al. 2021) with eta = 0: the same noise is taken away all along, and none added."""

from __future__ import annotations

import math

from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, Scheduler


class DDIM(Scheduler):
    defaults = {"clip_sample": True, "set_alpha_to_one": True}  # noqa: RUF012

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        self.index += 1
        a = self._alpha(int(t))
        a_prev = self._alpha(int(t) - self.config.num_train_timesteps // self.steps)
        x0 = self._clean(output, sample, a)
        if self.config.prediction_type == "epsilon":
            noise = output
        elif self.config.prediction_type == "v_prediction":
            noise = output * math.sqrt(a) + sample * math.sqrt(1 - a)
        else:
            noise = (sample - output * math.sqrt(a)) / math.sqrt(1 - a)
        return x0 * math.sqrt(a_prev) + noise * math.sqrt(1 - a_prev)
