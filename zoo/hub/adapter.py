"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, some megabytes beside a model.

Source: peft's LoraConfig and save_pretrained (github.com/huggingface/peft), version 0.21.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json, write_json
from zoo.hub.safetensors import read, write
from zoo.nn import Module, lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model."""
_UNKNOWN = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication",
            "lora_bias", "trainable_token_indices", "target_parameters")  # fmt: skip
"""Settings that change what an adapter means, and are not known here where they are set."""


def save(model: Module, directory: Path, base: str, *, task_type: str | None = "CAUSAL_LM") -> Path:
    """Writes the adapter of a model that `lora.attach` changed. `base` is the REF of the model it belongs to, and
    `task_type` which of its wrappers PEFT puts around that; None: the one that passes every argument on."""
    found = lora.layers(model)
    first = next(iter(found.values()))
    rank = first.lora_A.weight.shape[0]
    tensors = {
        f"{PREFIX}{path}.{name}.weight": np.asarray(getattr(layer, name).weight)
        for path, layer in found.items()
        for name in ("lora_A", "lora_B")
    }
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({path.rpartition(".")[2] for path in found}),
    }
    write_json(directory / CONFIG_FILE, config)
    write(directory / WEIGHTS_FILE, tensors, {"format": "pt"})
    return directory


def base_of(directory: Path) -> str:
    """The REF of the model that an adapter belongs to. Raises WeightsError if it names none."""
    base = read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        why = f"its {CONFIG_FILE} does not say to which model it belongs"
        raise WeightsError(f"cannot use {directory}", why, "Write that REF into base_model_name_or_path.")
    return base


def attach(model: Module, directory: Path) -> Module:
    """Puts an adapter around the model it was trained on, in place.

    Raises WeightsError if it is no LoRA, has settings that are not known here, or does not fit.
    """
    what = f"cannot use the adapter {directory}"
    config = read_json(directory / CONFIG_FILE)
    rank, targets = config.get("r"), config.get("target_modules")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1 or not isinstance(targets, list):
        raise WeightsError(what, "it is not a LoRA adapter over named layers", "Merge it into its base with PEFT.")
    if unknown := [name for name in _UNKNOWN if config.get(name)] + ["bias"] * (config.get("bias", "none") != "none"):
        why = f"it was trained with settings that the zoo has not: {', '.join(unknown)}"
        raise WeightsError(what, why, "Merge it into its base with PEFT.")
    alpha = float(config.get("lora_alpha", rank))
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # scale = alpha / sqrt(rank) (Kalajdzievski 2023)
    lora.attach(model, rank, alpha=alpha, targets=[str(name).rpartition(".")[2] for name in targets])
    expected = {
        f"{PREFIX}{path}.{name}.weight": (f"{path}.{name}.weight", getattr(layer, name).weight.shape)
        for path, layer in lora.layers(model).items()
        for name in ("lora_A", "lora_B")
    }
    with read(directory / WEIGHTS_FILE) as tensors:
        wrong = [f"{name} is missing" for name in expected if name not in tensors]
        wrong += [f"{name} has no place in the model" for name in tensors if name not in expected]
        wrong += [
            f"{name} is {tensors.infos[name].shape}; {shape} was expected"
            for name, (_, shape) in expected.items()
            if name in tensors and tensors.infos[name].shape != tuple(shape)
        ]
        if wrong:
            more = f"\n... and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise WeightsError(what, "\n".join(wrong[:8]) + more, f"It belongs to {base_of(directory)}.")
        model.update({path: _tensor(tensors[name], model) for name, (path, _) in expected.items()})
    return model


def _tensor(array: np.ndarray, model: Any) -> Any:
    from zoo.core.tensor import Tensor

    return Tensor(model.device.from_host(np.ascontiguousarray(array)), model.device)
