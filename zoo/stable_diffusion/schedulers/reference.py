"""Walks of diffusers' schedulers with a pretended model: what the tests compare ours with.

    python -m zoo.stable_diffusion.schedulers.reference      writes tests/stable_diffusion/walks.npz

The only file here that imports torch; nothing in the zoo imports it.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from zoo.stable_diffusion.schedulers import CLASSES

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EPSILON = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
STEPS = (1, 2, 4, 20, 50)
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *[
        (name, config)
        for name in CLASSES
        for config in (
            SD,
            {**SD, **EPSILON},
            {**SD, "prediction_type": "v_prediction", "timestep_spacing": "linspace"},
            {**SD, "timestep_spacing": "trailing", "prediction_type": "v_prediction", "clip_sample": True},
        )
    ],
    # by Nichol & Dhariwal's schedule; Euler ancestral in diffusers takes the root of a negative rounding there
    *[(n, {"beta_schedule": "squaredcos_cap_v2"}) for n in CLASSES if "Ancestral" not in n],
    *[(n, {**SD, **ZERO_SNR}) for n in CLASSES if n not in ("PNDMScheduler", "LCMScheduler")],
    ("PNDMScheduler", {**SD, **EPSILON, "skip_prk_steps": True}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    ("DDPMScheduler", {**SD, "variance_type": "fixed_large", "clip_sample_range": 2.0}),
    ("DDPMScheduler", {**SD, "variance_type": "fixed_small_log", "prediction_type": "sample"}),
    ("DDIMScheduler", {**SD, "prediction_type": "sample", "clip_sample": False}),
    ("LCMScheduler", {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {**SD, **EPSILON, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    ("EulerDiscreteScheduler", {**SD, "final_sigmas_type": "sigma_min", "prediction_type": "sample"}),
    ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 1, "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {**SD, "lower_order_final": False, "prediction_type": "sample"}),
    ("UniPCMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {**SD, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {**SD, "solver_order": 3, "disable_corrector": [0, 1]}),
    ("UniPCMultistepScheduler", {**SD, "solver_order": 1, "final_sigmas_type": "sigma_min"}),
]
SHAPE = (2, 3, 5, 4)
STORED = (4, 20)
"""Numbers of steps whose walks are kept in the file."""


class Numbers:
    """Noise, and a pretended model that is bounded and smooth: the same for both sides."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def draw(self) -> np.ndarray:
        return self.rng.normal(size=SHAPE).astype(np.float32)

    @staticmethod
    def model(x: np.ndarray, t: float) -> np.ndarray:
        return np.sin(x * np.float32(0.7) + np.float32(float(t) / 300)).astype(np.float32)


def fits(name: str, config: dict[str, Any], steps: int) -> bool:
    """Runge-Kutta steps take four looks each, and diffusers raises where there are fewer steps."""
    return name != "PNDMScheduler" or steps >= 4 or config.get("skip_prk_steps", False)


def theirs(name: str, config: dict[str, Any], steps: int, strength: float = 1.0) -> list[np.ndarray]:
    """The timesteps, and x before the first and after every step."""
    import diffusers
    import torch

    numbers = Numbers()
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    scheduler = cls(**{key: value for key, value in config.items() if key in known})
    scheduler.set_timesteps(steps)
    picture, noise = torch.from_numpy(numbers.draw()), torch.from_numpy(numbers.draw())
    timesteps = scheduler.timesteps
    if strength < 1:
        first = steps - int(steps * strength)
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        x = scheduler.add_noise(picture, noise, timesteps[:1])
    else:
        x = noise * scheduler.init_noise_sigma
    walk = [timesteps.numpy().astype(np.float64), x.numpy()]
    module = importlib.import_module(cls.__module__)
    draws = mock.patch.object(module, "randn_tensor", lambda *a, **k: torch.from_numpy(numbers.draw()), create=True)
    with draws:
        for t in timesteps:
            shown = scheduler.scale_model_input(x, t)
            output = torch.from_numpy(numbers.model(shown.numpy(), float(t)))
            x = scheduler.step(output, t, x).prev_sample
            walk.append(x.numpy())
    return walk


def main() -> None:
    kept = {}
    for number, (name, config) in enumerate(CONFIGS):
        for steps in STORED:
            walk = theirs(name, config, steps)
            kept[f"{number}/{steps}/timesteps"], kept[f"{number}/{steps}"] = walk[0], np.stack(walk[1:])[:, 0, 0, 0]
    np.savez_compressed(Path(__file__).parents[3] / "tests" / "stable_diffusion" / "walks.npz", **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
