"""LoRA files for Stable Diffusion: small changes of U-Net and text encoders, merged into their weights.

    found = lora.merge(model, "style.safetensors", scale=0.8)      # in place, before model.prepare()
    found.layers, found.unknown

Files come under two kinds of names, each with a matrix down and one up for every layer (Hu et al. 2021):

    diffusers, PEFT   unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight, ....lora_B.weight
    kohya             lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight, ....alpha

Kohya's underscores stand for dots, and for SDXL its names are those of the original code; so names are looked up among
those that the model's layers would have.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub.formats import read
from zoo.hub.mapped import TensorFile
from zoo.nn import Conv2d, Linear, QuantizedConv2d, QuantizedLinear
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.original import RESNET, renamed, unet_modules

_PART = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight"
    r"|[._]lora(?:_linear_layer)?[._](?P<other>down|up)\.weight|\.(?P<alpha>alpha)"
    r"|\.(?P<vector>lora_magnitude_vector)(?:\.\w+)?)"
)
_DOWN = ("A", "down")
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
"""The second is lora_te1 where there are two text encoders."""


@dataclass(frozen=True)
class Merged:
    """What became of a file."""

    layers: int
    """So many layers were changed."""
    unknown: tuple[str, ...]
    """Tensors that belong to no layer of the model, or are no LoRA."""


@dataclass
class _Change:
    """A layer's part of a file: names of tensors."""

    down: str = ""
    up: str = ""
    alpha: str = ""
    vector: str = ""
    """DoRA's, of each output (zoo/nn/lora.py)."""
    names: list[str] = field(default_factory=list)


def merge(model: StableDiffusion, ref: str | os.PathLike[str], scale: float = 1.0) -> Merged:
    """Adds scale * alpha / rank * up down to each weight that the file names, in place, in float32 and then in the
    weight's own dtype; one weight at a time. A negative scale takes it away again, but for rounding. Of a DoRA, each
    output's weights then get the length that the file has for them, whatever the scale.

    Raises WeightsError if the file cannot be read, names no layer of the model, or does not fit; or if weights are
    rounded to int8 or int4, where most of the change would be lost. The model is then unchanged.
    """
    what = f"cannot use the LoRA {ref}"
    layers = {path: part for path, part in model.named_modules() if isinstance(part, Linear | Conv2d | QuantizedLinear)}
    with read(Path(os.path.expanduser(os.fspath(ref)))) as tensors:
        changes, unknown = _sorted(tensors, _aliases(model, layers))
        if not changes:
            why = f"none of its {len(tensors)} tensors belongs to a layer of this model: {', '.join(list(tensors)[:3])}"
            raise WeightsError(what, why, "Use a LoRA that was made for this kind of Stable Diffusion.")
        for path, change in changes.items():
            _check(what, path, layers[path], change, tensors)
        for path, change in changes.items():
            delta = _delta(change, tensors, _alpha(path, change, tensors)) * np.float32(scale)
            _add(layers[path], delta, tensors[change.vector] if change.vector else None)
    return Merged(len(changes), tuple(unknown))


# --- names ------------------------------------------------------------------------------------------------------------


def _aliases(model: StableDiffusion, layers: Collection[str]) -> dict[str, str]:
    """Every name that a file may give a layer -> its path."""
    found = {}
    names, two = unet_modules(model.config.unet), model.config.text_encoder_2 is not None
    for path in layers:
        component, _, rest = path.partition(".")
        found[path] = path
        if component not in _KOHYA:
            continue
        prefixes = [_KOHYA[component]] + ["lora_te1"] * (two and component == "text_encoder")
        spellings = [rest]
        if component == "unet":
            found[rest] = path  # PEFT's, of a U-Net alone
            spellings.append(renamed(f"{rest}.weight", names, RESNET).removesuffix(".weight"))
        else:
            spellings.append(rest.removeprefix("text_model."))  # transformers 5 has no text_model
            found[f"{component}.{spellings[1]}"] = path
        for spelling in spellings:
            for prefix in prefixes:
                found[f"{prefix}_{spelling.replace('.', '_')}"] = path
    return found


def _sorted(tensors: TensorFile, aliases: dict[str, str]) -> tuple[dict[str, _Change], list[str]]:
    """The changes by layer, and the names of what belongs to none."""
    changes: dict[str, _Change] = {}
    unknown = []
    for name in tensors:
        found = _PART.fullmatch(name)
        path = aliases.get(_layer(found["layer"])) if found else None
        if found is None or path is None:
            unknown.append(name)
            continue
        change = changes.setdefault(path, _Change())
        change.names.append(name)
        if found["alpha"]:
            change.alpha = name
        elif found["vector"]:
            change.vector = name
        elif (found["peft"] or found["other"]) in _DOWN:
            change.down = name
        else:
            change.up = name
    for path in [path for path, change in changes.items() if not (change.down and change.up)]:
        unknown += changes.pop(path).names
    return changes, unknown


def _layer(name: str) -> str:
    """Without what PEFT and old versions of diffusers put around it."""
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


# --- numbers ----------------------------------------------------------------------------------------------------------


def _check(what: str, path: str, layer: Any, change: _Change, tensors: TensorFile) -> None:
    """Raises WeightsError if a change does not fit its layer."""
    if isinstance(layer, QuantizedLinear | QuantizedConv2d):
        why = f"{path} is rounded to {layer.format}, in which most of the change would be lost"
        raise WeightsError(what, why, "Load the model without --dtype int8 or int4, merge, then round it.")
    down, up = (tensors.infos[name].shape for name in (change.down, change.up))
    outputs, *kernel, inputs = layer.weight.shape
    window = tuple(down[2:])
    fits = len(down) >= 2 and len(up) >= 2 and up[0] == outputs and up[1] == down[0] > 0 and down[1] == inputs
    fits = fits and (not change.vector or math.prod(tensors.infos[change.vector].shape) == outputs)
    if not fits or math.prod(up[2:]) != 1 or window not in (tuple(kernel), (1,) * (len(window))) or (
        math.prod(window) != math.prod(kernel)
    ):  # fmt: skip
        why = f"{change.down} is {down} and {change.up} {up}; {path} takes {inputs} channels and gives {outputs}"
        raise WeightsError(what, why, "Use a LoRA that was made for this kind of Stable Diffusion.")


def _alpha(path: str, change: _Change, tensors: TensorFile) -> float:
    """alpha / rank: from the file's own number, PEFT's settings in its metadata, or 1."""
    rank = tensors.infos[change.down].shape[0]
    if change.alpha:
        return float(np.asarray(tensors[change.alpha], np.float32).reshape(-1)[0]) / rank
    try:
        settings = json.loads(tensors.metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        settings = {}
    component, _, rest = path.partition(".")
    alpha = (settings.get(f"{component}.alpha_pattern") or {}).get(rest, settings.get(f"{component}.lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if settings.get(f"{component}.use_rslora") else rank)


def _delta(change: _Change, tensors: TensorFile, alpha: float) -> np.ndarray:
    """up down, (outputs, inputs) or (outputs, height, width, inputs)."""
    down, up = (np.asarray(tensors[name]).astype(np.float32) for name in (change.down, change.up))
    product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    shape = (len(up), *down.shape[1:])
    return alpha * (product.reshape(shape).transpose(0, 2, 3, 1) if down.ndim == 4 else product)


def _add(layer: Any, delta: np.ndarray, vector: np.ndarray | None) -> None:
    weight, device = layer.weight, layer.weight.device
    change = Tensor(device.from_host(np.ascontiguousarray(delta.reshape(weight.shape))), device)
    changed = weight.astype(float32) + change
    if vector is not None:
        rows = changed.reshape(len(delta), -1)
        wanted = Tensor(device.from_host(np.asarray(vector).astype(np.float32).reshape(-1, 1)), device)
        changed = (rows * (wanted / ops.sqrt(ops.sum(ops.square(rows), axis=1, keepdims=True)))).reshape(weight.shape)
    layer.weight = changed.astype(weight.dtype)
