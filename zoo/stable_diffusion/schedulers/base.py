"""What schedulers share: the noise schedule of training, and which of its timesteps are visited.

A model of diffusion was trained on x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, t = 0 ... 999, where a_t
(`alphas_cumprod`) falls from nearly 1 to nearly 0 (Ho et al. 2020). A scheduler walks back in few steps. Its contract:

    scheduler.set_timesteps(20)                     # or (20, strength=0.6), to begin from a picture with noise
    x = noise * scheduler.init_noise_sigma          # or scheduler.add_noise(picture, noise, scheduler.timesteps[0])
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, draw)      # draw() gives new noise, for those that add some

Schedules are worked out in float32, as diffusers does; the factors of a step in float64 from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.core import ops
from zoo.core.errors import WeightsError, ZooError
from zoo.core.tensor import Tensor

Draw = Callable[[], Tensor]
"""Gives noise of the latents' shape, new each time."""
TINY = 2.0**-24
"""What stands for a_t = 0 where one divides by it: sigma = 4096."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Fields of scheduler_config.json, of all schedulers. Defaults that differ are in their `defaults`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False
    variance_type: str | None = None
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    disable_corrector: tuple[int, ...] = ()
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        _one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        _one_of("prediction_type", self.prediction_type, ("epsilon", "v_prediction", "sample"))
        _one_of("timestep_spacing", self.timestep_spacing, ("leading", "linspace", "trailing"))
        _one_of("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        why = f"its {name} is {value!r}; known are {', '.join(map(repr, known))}"
        raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")


class Scheduler:
    """The base: schedule, timesteps, and mixing as DDPM does it (the signal shrinks as noise comes in)."""

    defaults: ClassVar[dict[str, Any]] = {}
    solver_types: ClassVar[tuple[str, ...]] = ()
    """Values of `solver_type` that mean something to it; others belong to another solver, and are not read."""

    def __init__(self, config: SchedulerConfig):
        self.config = config
        self.alphas_cumprod = alphas_cumprod(config)
        self.planned = self.timesteps = np.zeros(0, np.int64)
        """What the model is asked for, in this order: integers, or fractions where sigmas are interpolated."""
        self.steps, self.index = 0, 0

    def set_timesteps(self, steps: int, strength: float = 1.0) -> None:
        """Plans a walk of `steps` steps, and goes to its start; with a strength below 1, only its last share.

        Raises ZooError for a number of steps or strength that leaves nothing to do, or more than were trained.
        """
        if not 1 <= steps <= self.config.num_train_timesteps:
            why = f"the model was trained on {self.config.num_train_timesteps}"
            raise ZooError(f"cannot take {steps} steps", why, f"Ask for 1 to {self.config.num_train_timesteps}.")
        first = steps - min(int(steps * strength), steps)
        if not 0 <= strength <= 1 or first == steps:
            why = f"{steps} steps at strength {strength:g} leave {max(int(steps * strength), 0)} to take"
            raise ZooError("there is nothing to do", why, "Ask for more steps, or a strength up to 1.")
        self.steps = steps
        self.planned = self._plan(steps)
        self.timesteps, self.index = self.planned[first:], first
        self._begin()

    def _plan(self, steps: int) -> np.ndarray:
        return self._spaced(steps).astype(np.int64)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that a walk begins with."""
        return 1.0

    def _begin(self) -> None:
        """Forgets what was kept of an earlier walk."""

    def _spaced(self, steps: int) -> np.ndarray:
        """Timesteps from high to low, spaced as the config says (Lin et al. 2024, table 2), float64."""
        train = self.config.num_train_timesteps
        if self.config.timestep_spacing == "linspace":
            return np.linspace(0, train - 1, steps).round()[::-1]
        if self.config.timestep_spacing == "leading":
            return (np.arange(steps) * (train // steps))[::-1] + float(self.config.steps_offset)
        return np.arange(train, 0, -train / steps).round() - 1

    def scale_model_input(self, sample: Tensor, t: float) -> Tensor:
        """What the model is shown of x_t."""
        return sample

    def step(self, output: Tensor, t: float, sample: Tensor, draw: Draw) -> Tensor:
        """x at the next timestep, from x_t and the model's output for it. Called once for each of `timesteps`."""
        raise NotImplementedError

    def guess(self, output: Tensor, t: float, sample: Tensor) -> Tensor:
        """x_0 as the model sees it now: what a preview shows. Called before `step`."""
        return self._clean(output, sample, float(self.alphas_cumprod[int(t)]))

    def add_noise(self, sample: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t of a picture that is known."""
        a = float(self.alphas_cumprod[int(t)])
        return sample * math.sqrt(a) + noise * math.sqrt(1 - a)

    def _clean(self, output: Tensor, sample: Tensor, a: float) -> Tensor:
        """x_0 as the model sees it, where the share of the signal is a."""
        if self.config.prediction_type == "epsilon":
            x0 = (sample - output * math.sqrt(1 - a)) / math.sqrt(a)
        elif self.config.prediction_type == "v_prediction":  # (Salimans & Ho 2022)
            x0 = sample * math.sqrt(a) - output * math.sqrt(1 - a)
        else:
            x0 = output
        if self.config.clip_sample:
            x0 = ops.clip(x0, -self.config.clip_sample_range, self.config.clip_sample_range)
        return x0

    def _alpha(self, t: int) -> float:
        """a_t; before the first timestep, what the config takes for no noise at all."""
        if t >= 0:
            return float(self.alphas_cumprod[t])
        return 1.0 if self.config.set_alpha_to_one else float(self.alphas_cumprod[0])


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """a_t for all timesteps, float32: the running product of 1 - beta."""
    n, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, np.float32)
    elif config.beta_schedule == "linear":
        betas = _line(start, end, n)
    elif config.beta_schedule == "scaled_linear":
        betas = np.square(_line(start**0.5, end**0.5, n))
    else:  # (Nichol & Dhariwal 2021, eq. 17)
        share = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = np.asarray([min(1 - share[i + 1] / share[i], 0.999) for i in range(n)], np.float32)
    product = _products(1 - betas)
    if not config.rescale_betas_zero_snr:
        return product
    # The last timestep becomes pure noise (Lin et al. 2024, algorithm 1).
    root = np.sqrt(product)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    square = root * root
    alphas = np.concatenate([square[:1], square[1:] / square[:-1]])
    return _products(1 - (1 - alphas))


def _line(start: float, end: float, n: int) -> np.ndarray:
    """torch.linspace in float32: from both ends to the middle, each number rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64(np.float32((last - first) / np.float32(max(n - 1, 1))))
    up = np.arange(n, dtype=np.float64)
    return np.where(up < n // 2, first + step * up, last - step * (n - 1 - up)).astype(np.float32)


def _products(factors: np.ndarray) -> np.ndarray:
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)
