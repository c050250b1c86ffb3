"""Whole walks of every scheduler against diffusers', with the same pretended model and the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError, ZooError
from zoo.stable_diffusion import schedulers
from zoo.stable_diffusion.schedulers.reference import CONFIGS, EPSILON, SD, STEPS, STORED, Numbers, fits, theirs

TOLERANCE = 1e-5


def ours(name: str, config: dict[str, Any], steps: int, strength: float = 1.0) -> list[np.ndarray]:
    numbers = Numbers()
    scheduler = schedulers.from_config({"_class_name": name, **config})
    scheduler.set_timesteps(steps, strength)
    picture, noise = zoo.tensor(numbers.draw(), device="numpy"), zoo.tensor(numbers.draw(), device="numpy")
    if strength < 1:
        x = scheduler.add_noise(picture, noise, scheduler.timesteps[0])
    else:
        x = noise * scheduler.init_noise_sigma
    walk = [scheduler.timesteps.astype(np.float64), x.numpy()]
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t)
        output = zoo.tensor(numbers.model(shown.numpy(), t), device="numpy")
        x = scheduler.step(output, t, x, lambda: zoo.tensor(numbers.draw(), device="numpy"))
        walk.append(x.numpy())
    return walk


def compare(mine: list[np.ndarray], other: list[np.ndarray]) -> None:
    """Factors differ by float32 roundings (theirs are worked out in float32, ours in float64), and a division by a
    small sqrt(a) carries those of x along: relative to the largest number of the walk so far."""
    np.testing.assert_allclose(mine[0], other[0], rtol=1e-6, atol=1e-3)
    assert len(mine) == len(other)
    scale = 0.0
    for a, b in zip(mine[1:], other[1:], strict=True):
        scale = max(scale, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=lambda v: v if isinstance(v, str) else None)
def test_walks_are_diffusers(name: str, config: dict[str, Any]) -> None:
    pytest.importorskip("diffusers")
    for steps in STEPS:
        if fits(name, config, steps):
            compare(ours(name, config, steps), theirs(name, config, steps))


def test_walks_are_those_that_were_stored() -> None:
    stored = np.load(Path(__file__).parent / "walks.npz")
    for number, (name, config) in enumerate(CONFIGS):
        for steps in STORED:
            timesteps, *walk = ours(name, config, steps)
            known = stored[f"{number}/{steps}"]
            compare([timesteps, *(x[0, 0, 0] for x in walk)], [stored[f"{number}/{steps}/timesteps"], *known])


@pytest.mark.parametrize("name", list(schedulers.CLASSES))
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_walks_that_begin_from_a_picture(name: str, strength: float) -> None:
    pytest.importorskip("diffusers")
    for steps in (4, 20, 50):
        config = {**SD, **EPSILON, "skip_prk_steps": True}
        compare(ours(name, config, steps, strength), theirs(name, config, steps, strength))


def test_the_schedule_of_noise_is_diffusers_bit_for_bit() -> None:
    diffusers = pytest.importorskip("diffusers")
    for config in (SD, {}, {"beta_schedule": "squaredcos_cap_v2"}):
        known = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
        mine = schedulers.from_config({"_class_name": "DDIMScheduler", **config}).alphas_cumprod
        np.testing.assert_array_equal(mine, known)
    # torch's square root is not always the nearest number, and each ratio of two carries that on
    config = {**SD, "rescale_betas_zero_snr": True}
    known = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
    mine = schedulers.from_config({"_class_name": "DDIMScheduler", **config}).alphas_cumprod
    np.testing.assert_allclose(mine, known, rtol=5e-6, atol=0)


def test_the_published_file_of_sd_1(real: Any) -> None:
    values = json.loads(real("sd-v1-configs", "scheduler", "scheduler_config.json").read_text())
    scheduler = schedulers.from_config(values)
    scheduler.set_timesteps(50)
    assert type(scheduler).__name__ == "PNDM" and scheduler.timesteps[:4].tolist() == [981, 961, 961, 941]
    for name, (cls, _) in schedulers.NAMES.items():
        other = schedulers.from_config(values, name)
        other.set_timesteps(8)
        assert type(other) is cls and np.array_equal(other.alphas_cumprod, scheduler.alphas_cumprod)


def test_what_is_not_known_is_refused() -> None:
    for values in (
        {"_class_name": "HeunDiscreteScheduler"},
        {"_class_name": "DDIMScheduler", "thresholding": True},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
        {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
        {"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"},
        {"_class_name": "PNDMScheduler", "prediction_type": "sample"},
    ):
        with pytest.raises(WeightsError, match="scheduler"):
            schedulers.from_config(values)
    with pytest.raises(ZooError, match="there is no scheduler"):
        schedulers.from_config({}, "heun")
    walk = schedulers.from_config(SD, "ddim")
    for steps, strength in ((0, 1.0), (1001, 1.0), (10, 0.05), (10, 1.5)):
        with pytest.raises(ZooError):
            walk.set_timesteps(steps, strength)
    with pytest.raises(ZooError, match="distilled"):
        schedulers.from_config(SD, "lcm").set_timesteps(51)
