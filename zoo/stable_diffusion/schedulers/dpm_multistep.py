"""DPM-Solver++ of first and second order, multistep: "DPM++ 2M" (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""

from __future__ import annotations

import math

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, SchedulerConfig
from zoo.stable_diffusion.schedulers.sigmas import PreservingScheduler, log_snr, parts

FEW = 15
"""Below so many steps, the last is of first order: it is more stable (as the authors' code has it)."""


class DPMSolverMultistep(PreservingScheduler):
    solver_types = ("midpoint", "heun")
    defaults = {"timestep_spacing": "linspace"}  # noqa: RUF012

    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        if config.solver_order not in (1, 2):
            why = f"its solver_order is {config.solver_order}; 1 and 2 are known"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")

    def _begin(self) -> None:
        self._before: Tensor | None = None

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        c, s, s_next = self.config, self._sigma(), self._sigma(1)
        x0, before = self.guess(output, t, sample), self._before
        last = self.index == self.steps - 1
        first_order = c.solver_order == 1 or before is None
        if last and (c.euler_at_final or c.final_sigmas_type == "zero" or (c.lower_order_final and self.steps < FEW)):
            first_order = True
        (_, sigma), (alpha_next, sigma_next) = parts(s), parts(s_next)
        ratio = s_next / s  # exp(-h), h the step in log_snr
        stepped = sample * (sigma_next / sigma) - x0 * (alpha_next * (ratio - 1))
        if not first_order:
            assert before is not None
            h = log_snr(s_next) - log_snr(s)
            slope = (x0 - before) * (h / (log_snr(s) - log_snr(self._sigma(-1))))
            if c.solver_type == "midpoint":
                stepped = stepped - slope * (0.5 * alpha_next * (ratio - 1))
            else:
                stepped = stepped + slope * (alpha_next * ((ratio - 1) / h + 1 if math.isfinite(h) else 1.0))
        self._before = x0
        self.index += 1
        return stepped
