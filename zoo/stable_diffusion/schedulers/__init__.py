"""Schedulers, one file each; `from_config` makes the one that scheduler_config.json names, or another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.core.errors import WeightsError, ZooError
from zoo.stable_diffusion.schedulers.base import Draw, Scheduler, SchedulerConfig
from zoo.stable_diffusion.schedulers.ddim import DDIM
from zoo.stable_diffusion.schedulers.ddpm import DDPM
from zoo.stable_diffusion.schedulers.dpm_multistep import DPMSolverMultistep
from zoo.stable_diffusion.schedulers.euler import Euler
from zoo.stable_diffusion.schedulers.euler_ancestral import EulerAncestral
from zoo.stable_diffusion.schedulers.lcm import LCM
from zoo.stable_diffusion.schedulers.pndm import PNDM
from zoo.stable_diffusion.schedulers.unipc import UniPC

__all__ = ["NAMES", "Draw", "Scheduler", "SchedulerConfig", "from_config"]

CLASSES: dict[str, type[Scheduler]] = {
    "DDPMScheduler": DDPM,
    "DDIMScheduler": DDIM,
    "PNDMScheduler": PNDM,
    "EulerDiscreteScheduler": Euler,
    "EulerAncestralDiscreteScheduler": EulerAncestral,
    "DPMSolverMultistepScheduler": DPMSolverMultistep,
    "UniPCMultistepScheduler": UniPC,
    "LCMScheduler": LCM,
}
"""By diffusers' names, as scheduler_config.json gives them."""

KARRAS = {"use_karras_sigmas": True}
NAMES: dict[str, tuple[type[Scheduler], dict[str, Any]]] = {
    "ddpm": (DDPM, {}),
    "ddim": (DDIM, {}),
    "pndm": (PNDM, {"skip_prk_steps": True}),
    "euler": (Euler, {}),
    "euler_karras": (Euler, KARRAS),
    "euler_a": (EulerAncestral, {}),
    "dpm++": (DPMSolverMultistep, {}),
    "dpm++_karras": (DPMSolverMultistep, KARRAS),
    "unipc": (UniPC, {}),
    "unipc_karras": (UniPC, KARRAS),
    "lcm": (LCM, {}),
}
"""What users call them, and what that changes in the config."""

KNOWN_ONLY: dict[str, tuple[Any, ...]] = {
    "thresholding": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "algorithm_type": ("dpmsolver++", None),
    "predict_x0": (True, None),
    "interpolation_type": ("linear", None),
    "timestep_type": ("discrete", None),
    "lambda_min_clipped": (float("-inf"), None),
    "solver_p": (None,),
}
"""Settings of which one value is known here: another would silently be a different method. No published model that
these pipelines are for has another."""


def from_config(values: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """The scheduler of a scheduler_config.json; `name` (of NAMES) takes another, with the same schedule of noise.

    What the file does not set is as diffusers has it for that scheduler.
    Raises WeightsError for a scheduler or a setting that is not known here, ZooError for an unknown name.
    """
    if name is not None:
        if name not in NAMES:
            raise ZooError(f"there is no scheduler {name!r}", f"the schedulers are: {', '.join(NAMES)}", "")
        chosen, changed = NAMES[name]
        values = {**values, **changed}
    else:
        published = values.get("_class_name")
        if published not in CLASSES:
            why = f"the file names {published}; here are {', '.join(CLASSES)}"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose one: --scheduler euler, say.")
        chosen = CLASSES[published]
    for key, known in KNOWN_ONLY.items():
        if key in values and values[key] not in known and not (name and key == "algorithm_type"):
            why = f"its {key} is {values[key]!r}, which is not known here"
            raise WeightsError("cannot use this scheduler_config.json", why, "Choose another with --scheduler.")
    fields = {field.name for field in dataclasses.fields(SchedulerConfig)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields and v is not None}
    if given.get("solver_type") not in chosen.solver_types:
        given.pop("solver_type", None)
    return chosen(SchedulerConfig(**{**chosen.defaults, **given}))
