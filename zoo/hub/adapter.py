"""LoRA and DoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, some megabytes beside a
model. Of a model that is published in several folders, the second is pytorch_lora_weights.safetensors, as diffusers'
`load_lora_weights` reads it.

Names and layouts of the tensors are those of the library that PEFT adapts: the port's table says which they are. A
matrix A has the layout of the weight it stands beside, with `rank` in the place of the outputs.

Source: peft's LoraConfig and save_pretrained (github.com/huggingface/peft), version 0.21.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo import port as ports
from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import refs
from zoo.hub.files import read_json, write_json
from zoo.hub.safetensors import read, write
from zoo.hub.table import Operation
from zoo.nn import Module, lora
from zoo.port import Port

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE, DIFFUSERS_FILE = refs.ADAPTER_FILES
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model."""
DIFFUSERS_METADATA = "lora_adapter_metadata"
VECTOR = "lora_magnitude_vector"
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "lora_alpha", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""Settings that are understood here, or mean nothing once an adapter is trained."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin (init_lora_weights) that take something out of the base's weights, which the base does not lack."""


def save(
    model: Module, directory: Path, base: str, *, also: Collection[str] = (), port: Port | str | None = None,
    task_type: str | None = "CAUSAL_LM",
) -> Path:  # fmt: skip
    """Writes the adapter of a model that `lora.attach` changed. `base` is the REF of the model it belongs to, and
    `task_type` which of its wrappers PEFT puts around that; None: the one that passes every argument on. `port`: the
    model's; None: found out.

    also: the modules that were trained whole; they go with it, and the model's config, which may be another by them.
    """
    from zoo.hub.load import config_to_json

    names, found = _Names(model, port), lora.layers(model)
    parts, state = names.parts(model, also), model.state()
    tensors = {part.name: part.out(state[part.path].numpy(), names.config) for part in parts}
    (rank, scale), _ = Counter((layer.rank, layer.scale) for layer in found.values()).most_common(1)[0]
    keys = {path: names.published(path) for path in found}
    if not names.in_folders:
        keys = {path: f"^{re.escape(name)}" for path, name in keys.items()}
    settings = {
        "r": rank,
        "lora_alpha": rank * scale,
        "rank_pattern": {keys[path]: layer.rank for path, layer in found.items() if layer.rank != rank},
        "alpha_pattern": {keys[path]: layer.rank * layer.scale for path, layer in found.items()
                          if layer.rank * layer.scale != rank * scale},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": any(layer.lora_magnitude_vector is not None for layer in found.values()),
        "target_modules": _targets(model, names, found),
        "modules_to_save": [names.published(path) for path in also] or None,
    }  # fmt: skip
    about = {"peft_type": "LORA", "task_type": task_type, "base_model_name_or_path": base, "fan_in_fan_out": False,
             "inference_mode": True}  # fmt: skip
    write_json(directory / CONFIG_FILE, {**about, **settings})
    if also:
        write_json(directory / refs.CONFIG_FILE, config_to_json(names.port.name, model.config))  # type: ignore[attr-defined]
    metadata = {"format": "pt"}
    if names.in_folders:
        metadata[DIFFUSERS_METADATA] = json.dumps(_by_component(settings))
    write(directory / names.file, tensors, metadata)
    return directory


def _targets(model: Module, names: _Names, found: Mapping[str, lora.LoRA]) -> list[str]:
    """The last names of the layers that have an adapter; whole paths, where other layers have such a name too."""
    every = {place.path: names.published(place.path) for place in lora.places(model)}
    short = {re.sub(r".*\.(?=[^.]*[^.\d])", "", every[path]) for path in found}  # "to_out.0" of "attn1.to_out.0"
    others = any(_named(name, list(short)) for path, name in every.items() if path not in found)
    return sorted({every[path] for path in found} if others or names.in_folders else short)


def _by_component(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As diffusers keeps PEFT's settings in the file's metadata: for each folder, with paths below it."""
    made: dict[str, Any] = {}
    for component in {path.partition(".")[0] for path in settings["target_modules"]}:
        for key, value in settings.items():
            if isinstance(value, list):
                value = [path.partition(".")[2] for path in value if path.startswith(f"{component}.")]
            elif isinstance(value, dict):
                value = {path.partition(".")[2]: v for path, v in value.items() if path.startswith(f"{component}.")}
            made[f"{component}.{key}"] = value
    return made


def base_of(directory: Path) -> str:
    """The REF of the model that an adapter belongs to. Raises WeightsError if it names none."""
    what = f"cannot use {directory}"
    if not (directory / CONFIG_FILE).is_file():
        why = f"it is an adapter without {CONFIG_FILE}, which says to which model it belongs"
        raise WeightsError(what, why, "Of Stable Diffusion: `zoo run stable_diffusion PROMPT --lora FILE`.")
    base = read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        why = f"its {CONFIG_FILE} does not say to which model it belongs"
        raise WeightsError(what, why, "Write that REF into base_model_name_or_path.")
    return base


def attach(model: Module, directory: Path, *, port: Port | str | None = None) -> Module:
    """Puts an adapter around the model it was trained on, in place. `port`: the model's; None: found out.

    Raises WeightsError if it is no LoRA, has settings that are not known here, or does not fit.
    """
    what = f"cannot use the adapter {directory}"
    settings = _settings(what, read_json(directory / CONFIG_FILE))
    if settings.also and (directory / refs.CONFIG_FILE).is_file():
        _renew(model, directory, settings.also, port)
    names = _Names(model, port)
    published = {place.path: names.published(place.path) for place in lora.places(model)}
    also = [path for path, name in published.items() if _named(name, settings.also)]
    chosen = {path: settings.of(name) for path, name in published.items() if settings.wants(name)}
    if not chosen:
        named = settings.targets if isinstance(settings.targets, str) else ", ".join(settings.targets)
        why = f"the model has no layer named {named}"
        raise WeightsError(what, why, f"It belongs to {base_of(directory)}.")
    lora.attach_to(model, chosen, dora=settings.dora, also=also)
    expected = {part.name: part for part in names.parts(model, also)}
    with read(directory / names.file) as tensors:
        wrong = [f"{name} is missing" for name in expected if name not in tensors]
        wrong += [f"{name} has no place in the model" for name in tensors if name not in expected]
        wrong += [
            f"{name} is {tensors.infos[name].shape}; {part.shape} was expected"
            for name, part in expected.items()
            if name in tensors and tuple(tensors.infos[name].shape) != part.shape
        ]
        if wrong:
            more = f"\n... and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise WeightsError(what, "\n".join(wrong[:8]) + more, f"It belongs to {base_of(directory)}.")
        shapes, device = model.spec(), model.device
        arrays = {p.path: p.into(tensors[name], shapes[p.path].shape, names.config) for name, p in expected.items()}
    model.update({path: Tensor(device.from_host(array), device) for path, array in arrays.items()})
    return model


def _renew(model: Any, directory: Path, also: list[str], port: Port | str | None) -> None:
    """Puts modules of the adapter's own config, which may have other shapes, in the place of the base's."""
    from zoo.hub.load import config_from_json

    known = _Names(model, port)
    config = config_from_json(known.port, read_json(directory / refs.CONFIG_FILE), str(directory))
    own = {place.path: place for place in lora.places(model)}
    for place in lora.places(known.port.model(config)):
        if place.path in own and _named(known.published(place.path), also):
            own[place.path].holder[own[place.path].key] = place.layer
    model.config = config


# --- settings ---------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What an adapter_config.json says."""

    rank: int
    alpha: float
    root: bool
    """scale = alpha / sqrt(rank), not alpha / rank (rsLoRA, Kalajdzievski 2023)."""
    dora: bool
    ranks: Mapping[str, int]
    """Of some layers: the end of a path, as a regular expression -> rank."""
    alphas: Mapping[str, float]
    targets: list[str] | str
    """Paths of layers or their ends; or a regular expression of whole paths."""
    without: list[str] | str
    also: list[str]
    """Modules that are trained whole."""

    def wants(self, path: str) -> bool:
        whole = any(f".{name}." in f".{path}." for name in self.also)
        return _named(path, self.targets) and not _named(path, self.without) and not whole

    def of(self, path: str) -> tuple[int, float]:
        """Rank and scale of a layer."""
        rank, alpha = _first(self.ranks, path, self.rank), _first(self.alphas, path, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.root else rank)


def _settings(what: str, config: Mapping[str, Any]) -> Settings:
    start = config.get("init_lora_weights")
    unknown = [name for name, value in config.items() if value and name not in KNOWN]
    unknown += ["bias"] * (config.get("bias", "none") != "none")
    unknown += [f"init_lora_weights {start}"] * (isinstance(start, str) and start.startswith(CHANGES_THE_BASE))
    if config.get("peft_type") == "LORA" and unknown:
        why = f"it was trained with settings that the zoo has not: {', '.join(unknown)}"
        raise WeightsError(what, why, "Merge it into its base with PEFT.")
    found = Settings(
        config.get("r", 0), config.get("lora_alpha", config.get("r", 0)), bool(config.get("use_rslora")),
        bool(config.get("use_dora")), config.get("rank_pattern") or {}, config.get("alpha_pattern") or {},
        config.get("target_modules") or [], config.get("exclude_modules") or [], config.get("modules_to_save") or [],
    )  # fmt: skip
    ranks, patterns = [found.rank, *_values(found.ranks)], [*found.ranks, *found.alphas]
    patterns += [names for names in (found.targets, found.without) if isinstance(names, str)]
    if (
        config.get("peft_type") != "LORA"
        or not all(isinstance(rank, int) and rank > 0 for rank in ranks)
        or not all(isinstance(alpha, int | float) for alpha in (found.alpha, *_values(found.alphas)))
        or not all(isinstance(names, list | str) for names in (found.targets, found.without, found.also))
        or found.targets in ([], "all-linear")
        or not all(map(_compiles, patterns))
    ):
        raise WeightsError(what, "it is not a LoRA adapter over named layers", "Merge it into its base with PEFT.")
    return found


def _values(patterns: Any) -> list[Any]:
    return list(patterns.values()) if isinstance(patterns, dict) else [patterns]


def _compiles(pattern: str) -> bool:
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def _named(path: str, names: list[str] | str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _first(patterns: Mapping[str, Any], path: str, usual: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), usual)


# --- names and layouts ------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A tensor of an adapter."""

    name: str
    """In the file."""
    path: str
    """In the model."""
    shape: tuple[int, ...]
    """In the file."""
    operations: tuple[Operation, ...] = ()

    def out(self, array: np.ndarray, config: Any) -> np.ndarray:
        return np.ascontiguousarray(_back(self.operations, array, config).reshape(self.shape))

    def into(self, array: np.ndarray, shape: tuple[int, ...], config: Any) -> np.ndarray:
        for operation in self.operations:
            array = operation.forward(array, config)
        return np.ascontiguousarray(array.reshape(shape))


def _back(operations: tuple[Operation, ...], array: np.ndarray, config: Any) -> np.ndarray:
    for operation in reversed(operations):
        array = operation.inverse(array, config)
    return array


class _Names:
    """Between a model and the tensors of its adapter's file."""

    def __init__(self, model: Any, port: Port | str | None):
        self.port = ports.of(model) if port is None else ports.get(port) if isinstance(port, str) else port
        usual = {field.name: field.default for field in dataclasses.fields(model.config) if field.name == "layout"}
        self.config = dataclasses.replace(model.config, **usual)  # whatever the weights came in, adapters are in this
        self.table = self.port.table(self.config)
        self.in_folders = self.port.documents is not None
        self.file, self.prefix = (DIFFUSERS_FILE, "") if self.in_folders else (WEIGHTS_FILE, PREFIX)

    def published(self, path: str) -> str:
        """What that library calls a layer."""
        return (self.table.published(f"{path}.weight")[0] or f"{path}.weight").removesuffix(".weight")

    def parts(self, model: Module, also: Collection[str]) -> list[Part]:
        """All that the file holds, whole modules in `also`."""
        parts = [part for path, layer in lora.layers(model).items() for part in self._of(path, layer)]
        for path, slot in model.slots().items():
            if lora.below(path, also):
                name, changes = self.table.published(path)
                parts.append(Part(f"{self.prefix}{name or path}", path, self._shape(changes, slot.value), changes))
        return parts

    def _of(self, path: str, layer: lora.LoRA) -> Iterator[Part]:
        start = f"{self.prefix}{self.published(path)}"
        operations = self.table.published(f"{path}.weight")[1]
        a = self._shape(operations, layer.lora_A.weight)
        window, (outputs, *_) = (1,) * (len(a) - 2), layer.lora_B.weight.shape
        yield Part(f"{start}.lora_A.weight", f"{path}.lora_A.weight", a, operations)
        yield Part(f"{start}.lora_B.weight", f"{path}.lora_B.weight", (outputs, layer.rank, *window))
        if layer.lora_magnitude_vector is not None:
            shape = (1, outputs, *window) if window else (outputs,)
            yield Part(f"{start}.{VECTOR}", f"{path}.{VECTOR}", shape)

    def _shape(self, operations: tuple[Operation, ...], tensor: Tensor) -> tuple[int, ...]:
        """As published."""
        return _back(operations, np.broadcast_to(np.int8(0), tensor.shape), self.config).shape
