"""PNDM (Liu et al. 2022): linear multistep on the noise, after Runge-Kutta steps or (as SD is published) one Heun step.

As in diffusers, the second output is taken for a second look at the first step, also where a walk begins later.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, Scheduler, SchedulerConfig

ORDER = 4


class PNDM(Scheduler):
    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        if config.prediction_type == "sample":
            why = "its prediction_type is 'sample', which PNDM has no rule for"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")

    def _plan(self, steps: int) -> np.ndarray:
        rising = self._spaced(steps)[::-1].astype(np.int64)
        if self.config.skip_prk_steps:
            self._prk = rising[:0]
            plms = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1]
        else:
            half = self.config.num_train_timesteps // steps // 2
            twice = rising[-ORDER:].repeat(2) + np.tile(np.array([0, half]), len(rising[-ORDER:]))
            self._prk = twice[:-1].repeat(2)[1:-1][::-1]
            plms = rising[:-3][::-1]
        return np.concatenate([self._prk, plms])

    def _begin(self) -> None:
        self._count = 0
        self._outputs: list[Tensor] = []
        self._sum: Any = 0.0
        self._kept: Tensor | None = None

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        take = self._runge_kutta if self._count < len(self._prk) else self._multistep
        stepped = take(output, int(t), sample)
        self._count += 1
        return stepped

    def _runge_kutta(self, output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Four looks make one step (eq. 13)."""
        look = self._count % 4
        target = t if look % 2 else t - self.config.num_train_timesteps // self.steps // 2
        start = int(self._prk[self._count // 4 * 4])
        if look == 0:
            self._sum = output * (1 / 6)
            self._outputs.append(output)
            self._kept = sample
        elif look < 3:
            self._sum = self._sum + output * (1 / 3)
        else:
            output = self._sum + output * (1 / 6)
        assert self._kept is not None
        return self._moved(self._kept, start, target, output)

    def _multistep(self, output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Adams-Bashforth on the last four outputs (eq. 12)."""
        stride = self.config.num_train_timesteps // self.steps
        target = t - stride
        if self._count != 1:
            self._outputs = [*self._outputs[-3:], output]
        else:
            t, target = t + stride, t
        e = self._outputs[::-1]
        if self._count == 0:
            self._kept = sample
        elif len(e) == 1:
            output = (output + e[0]) / 2
            assert self._kept is not None
            sample, self._kept = self._kept, None
        elif len(e) == 2:
            output = (e[0] * 3 - e[1]) / 2
        elif len(e) == 3:
            output = (e[0] * 23 - e[1] * 16 + e[2] * 5) / 12
        else:
            output = (e[0] * 55 - e[1] * 59 + e[2] * 37 - e[3] * 9) * (1 / 24)
        return self._moved(sample, t, target, output)

    def _moved(self, sample: Tensor, t: int, target: int, output: Tensor) -> Tensor:
        """From t to target along the direction of the noise (eq. 11)."""
        a, b = self._alpha(t), self._alpha(target)
        if self.config.prediction_type == "v_prediction":
            output = output * math.sqrt(a) + sample * math.sqrt(1 - a)
        scale = a * math.sqrt(1 - b) + math.sqrt(a * (1 - a) * b)
        return sample * math.sqrt(b / a) - output * ((b - a) / scale)
