"""UniPC (Zhao et al. 2023): a predictor like DPM-Solver++'s, and a corrector from the same outputs, at no cost."""

from __future__ import annotations

import math

import numpy as np

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.schedulers.base import Draw, SchedulerConfig
from zoo.stable_diffusion.schedulers.sigmas import PreservingScheduler, log_snr, parts


class UniPC(PreservingScheduler):
    solver_types = ("bh1", "bh2")
    defaults = {"timestep_spacing": "linspace", "solver_type": "bh2"}  # noqa: RUF012

    def __init__(self, config: SchedulerConfig):
        super().__init__(config)
        self._order = config.solver_order
        if not 1 <= self._order <= 3:
            why = f"its solver_order is {self._order}; 1, 2 and 3 are known"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")
        if config.use_karras_sigmas and config.final_sigmas_type == "sigma_min":
            why = "its last step would end where it begins (use_karras_sigmas with final_sigmas_type sigma_min)"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")

    def _begin(self) -> None:
        self._clean_ones: list[Tensor] = []
        self._last: Tensor | None = None
        self._used = 0

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        x0 = self.guess(output, t, sample)
        if self._last is not None and self.index - 1 not in self.config.disable_corrector:
            sample = self._corrected(x0)
        self._clean_ones = [*self._clean_ones[-self._order + 1 :], x0] if self._order > 1 else [x0]
        left = self.steps - self.index if self.config.lower_order_final else self._order
        self._used = min(self._order, left, len(self._clean_ones))
        self._last = sample
        stepped = self._predicted(sample)
        self.index += 1
        return stepped

    def _predicted(self, sample: Tensor) -> Tensor:
        """x at the next sigma from the outputs up to this one (UniP, eq. 8)."""
        base, scale, slopes, r, b = self._terms(sample, self.index, self._used)
        if not slopes:
            return base
        weights = [0.5] if self._used == 2 else np.linalg.solve(r[:-1, :-1], b[:-1])
        return base - _sum(slopes, weights) * scale

    def _corrected(self, x0: Tensor) -> Tensor:
        """x at this sigma again, now that its output is known (UniC, eq. 3)."""
        assert self._last is not None
        base, scale, slopes, r, b = self._terms(self._last, self.index - 1, self._used)
        weights = [0.5] if self._used == 1 else np.linalg.solve(r, b)
        return base - _sum([*slopes, x0 - self._clean_ones[-1]], weights) * scale

    def _terms(self, sample: Tensor, at: int, order: int) -> tuple[Tensor, float, list[Tensor], np.ndarray, np.ndarray]:
        """Of a step from sigma number `at`: its part of first order; the factor and the slopes of the rest; and the
        equations R weights = b that make it exact in `order` powers of the step."""
        s, s_next = float(self.sigmas[at]), float(self.sigmas[at + 1])
        (_, sigma), (alpha_next, sigma_next) = parts(s), parts(s_next)
        h = log_snr(s_next) - log_snr(s)
        grown = math.expm1(-h)
        newest = self._clean_ones[-1]
        places = [(log_snr(float(self.sigmas[at - i])) - log_snr(s)) / h for i in range(1, order)]
        slopes = [(self._clean_ones[-1 - i] - newest) / r for i, r in zip(range(1, order), places, strict=True)]
        base = sample * (sigma_next / sigma) - newest * (alpha_next * grown)
        b_h = -h if self.config.solver_type == "bh1" else grown
        phi, factorial, b = grown / -h - 1, 1, []
        for k in range(1, order + 1):
            b.append(phi * factorial / b_h)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        r = np.vander([*places, 1.0], order, increasing=True).T
        return base, alpha_next * b_h, slopes, r, np.asarray(b)


def _sum(terms: list[Tensor], weights: list[float] | np.ndarray) -> Tensor:
    total = terms[0] * float(weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total + term * float(weight)
    return total
