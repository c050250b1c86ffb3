"""From a REF to a model that is ready to run, and back to a directory.

Files that the zoo writes say so in their metadata (`zoo.port`, `zoo.layout = "zoo"`, `zoo.config`): their tensors have
our names and layout. Anything else is a published checkpoint: its port is found by config.json or by its tensors'
names, and its tensors pass through the port's table, one at a time, on their way into the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import port as ports
from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import is_float
from zoo.core.errors import WeightsError, ZooError
from zoo.hub import adapter, quantized, refs
from zoo.hub.files import atomic, write_json
from zoo.hub.formats import read
from zoo.hub.mapped import TensorFile, TensorInfo, row_blocks
from zoo.hub.safetensors import write_each
from zoo.hub.table import Plan, Table
from zoo.nn.quantized import FORMATS, formats, quantize
from zoo.port import Port

LAYOUT = "zoo"
IDENTITY = Table()
"""The table of a file that is in our own layout."""


@dataclass(frozen=True)
class Identified:
    """What a checkpoint turned out to be."""

    port: Port
    config: Any
    table: Table
    """The port's, or the identity for a file in our own layout."""


def load(
    ref: str | os.PathLike[str],
    *,
    port: Port | str | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Any:
    """A model with the weights of `ref`, on `device` (a device or its name; None: the default), in evaluation mode.

    `port` says which model it must be; None: found out. `dtype` is that of the floating-point weights; None: as stored;
    "int8" or "int4": as stored, and linear layers and convolutions are rounded on the way (zoo/nn/quantized.py).
    An adapter's directory gives its base model with the adapter around it.
    Raises WeightsError if the weights cannot be found, read or recognised, or if a single tensor does not fit;
    DeviceError if the device is not here.
    """
    from zoo.core.device import device as find_device

    place = find_device(device)
    checkpoint = refs.resolve(ref)
    if checkpoint.is_adapter and checkpoint.directory is not None:
        model = load(adapter.base_of(checkpoint.directory), port=port, device=place, dtype=dtype)
        model.source = dataclasses.replace(model.source, name=checkpoint.shown)  # tokenizer and labels are the base's
        return adapter.attach(model, checkpoint.directory, port=port).eval()
    with read(checkpoint.file) as tensors:
        known = identify(checkpoint, tensors, port)
        model = quantized.shape(known.port.model(known.config), tensors.metadata, checkpoint.shown, dtype)
        arrays: Any = _Arrays(plan_load(checkpoint, tensors.infos, known, model.spec()), tensors)
        rounded = isinstance(dtype, str) and dtype in FORMATS
        if rounded and not formats(model):
            quantize(model, dtype)
            arrays = quantized.Rounded(arrays, model.spec(), formats(model))
        model.load(arrays, device=place, dtype=None if rounded else dtype)
    model.source = checkpoint
    return model.eval()


def plan_load(
    checkpoint: refs.Checkpoint, infos: Mapping[str, TensorInfo], known: Identified, spec: Mapping[str, Any]
) -> Plan:
    """How the tensors of a file fill a model. Raises WeightsError with the whole report if they do not, exactly."""
    fix = "Use a checkpoint of this architecture"
    fix += f"; its {refs.CONFIG_FILE} must describe its tensors." if checkpoint.config() is not None else "."
    plan = known.table.load(infos, spec, known.config).check(checkpoint.shown, known.port.name, fix)
    check_dtypes(checkpoint.shown, infos, known, plan, spec)
    return plan


def check_dtypes(
    shown: str, infos: Mapping[str, TensorInfo], known: Identified, plan: Plan, spec: Mapping[str, Any]
) -> None:
    """Raises WeightsError if a tensor of whole numbers would fill a floating-point weight."""
    for step in plan.steps:
        if is_float(spec[step.target].dtype) and not is_float(infos[step.source].dtype):
            raise WeightsError(
                f"cannot use {shown}",
                f"{step.source} holds {infos[step.source].dtype}, {known.port.name} needs floating point",
                "Use a checkpoint of this architecture in floating point.",
            )


class _Arrays(Mapping[str, np.ndarray]):
    """Our names -> arrays, read and translated at each look-up, so that one tensor is in memory at a time.

    They are in C order, as kernels want them, and read-only: nobody else holds them, so the model may keep them.
    """

    def __init__(self, plan: Plan, tensors: TensorFile):
        self._plan, self._tensors = plan, tensors
        self._steps = {step.target: step for step in plan.steps}

    def __getitem__(self, name: str) -> np.ndarray:
        step = self._steps[name]
        array = np.asarray(self._plan.apply(step, self._tensors[step.source]), order="C")
        array.flags.writeable = False
        return array

    def forget(self, name: str) -> None:
        """It is not needed in memory any more."""
        self._tensors.forget(self._steps[name].source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


# --- which model is it? -----------------------------------------------------------------------------------------------


def identify(checkpoint: refs.Checkpoint, tensors: TensorFile, port: Port | str | None = None) -> Identified:
    """The port and config of an open checkpoint. `port` is what the user wants it to be.

    The metadata of our own files decides, then `model_type` of config.json, then the names of the tensors.
    Raises WeightsError if no port recognises it, or another one than `port` does.
    """
    if "zoo.train" in tensors.metadata:
        raise refs.unfinished(checkpoint.shown, checkpoint.file.parent.parent)
    wanted = ports.get(port) if isinstance(port, str) else port
    ours = tensors.metadata.get("zoo.layout") == LAYOUT
    published = checkpoint.config()
    named = tensors.metadata.get("zoo.port") if ours else (published or {}).get("model_type")
    if wanted is None:
        wanted = _port_named(named) or _port_that_recognises(checkpoint, tensors)
    elif named not in (None, wanted.name, *wanted.model_types) and (ours or _port_named(named) is not None):
        raise WeightsError(
            f"cannot use {checkpoint.shown} with {wanted.name}",
            f"these are weights of {named}",
            f"`zoo run {named} --weights {checkpoint.shown}` runs them.",
        )
    if ours and "zoo.config" in tensors.metadata and (published or {}).get("model_type") != wanted.name:
        published = _config_in(tensors)  # without a config.json, or beside a published one that says less
    if published is not None and (ours or published.get("model_type") in (wanted.name, *wanted.model_types)):
        config = config_from_json(wanted, published, checkpoint.shown)
        if not ours and (adapt := getattr(config, "with_tensors", None)) is not None:
            config = adapt(tensors.infos)
    else:
        config = _config_without_json(wanted, checkpoint, tensors)
        if config is None:
            raise _not_recognised(checkpoint, tensors.infos, [wanted.name])
    return Identified(wanted, config, IDENTITY if ours else wanted.table(config))


def _port_named(name: Any) -> Port | None:
    return ports.get(name) if isinstance(name, str) and name in ports.names() else None


def _port_that_recognises(checkpoint: refs.Checkpoint, tensors: TensorFile) -> Port:
    for name in ports.names():
        try:
            candidate = ports.get(name)
        except ZooError:
            continue  # a third party's port that cannot be imported must not stop the others
        if (checkpoint.config() or {}).get("model_type") in candidate.model_types:
            return candidate
        if _config_without_json(candidate, checkpoint, tensors) is not None:
            return candidate
    raise _not_recognised(checkpoint, tensors.infos, ports.names())


def _not_recognised(checkpoint: refs.Checkpoint, infos: Mapping[str, TensorInfo], tried: list[str]) -> WeightsError:
    first = ", ".join(f"{name} {info.shape}" for name, info in list(infos.items())[:3])
    more = ", ..." if len(infos) > 3 else ""
    return WeightsError(
        f"cannot use {checkpoint.shown}: its tensors are not those of {' or '.join(tried) or 'any model here'}",
        f"it has {len(infos)} tensors: {first}{more}" if infos else "it has no tensors",
        f"Use a checkpoint of such an architecture; or a directory that holds its {refs.CONFIG_FILE} too.",
    )


def _config_without_json(port: Port, checkpoint: refs.Checkpoint, tensors: TensorFile) -> Any:
    found = None
    for name, beside in (("from_directory", checkpoint.directory), ("from_metadata", tensors.metadata)):
        if found is None and beside is not None and (builder := getattr(port.config, name, None)) is not None:
            found = builder(beside, tensors.infos)
    if found is None and (builder := getattr(port.config, "from_tensors", None)) is not None:
        found = builder(tensors.infos)
    return found


def _config_in(tensors: TensorFile) -> dict[str, Any]:
    try:
        config = json.loads(tensors.metadata["zoo.config"])
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise WeightsError(
            f"cannot use {tensors.path}",
            "the config in its metadata is damaged",
            f"Put its {refs.CONFIG_FILE} beside it.",
        )
    return config


# --- config.json <-> dataclass ----------------------------------------------------------------------------------------


def config_from_json(port: Port, values: Mapping[str, Any], shown: str) -> Any:
    """The port's config from a config.json; keys that it does not have are ignored, as published files hold many.

    Raises WeightsError for a key that is needed and absent, or a value that the config refuses.
    """
    fields = {field.name for field in dataclasses.fields(port.config) if field.init}
    known = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in fields
    }
    try:
        return port.config(**known)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"cannot use {shown}: its config does not describe a {port.name}",
            str(error).replace(f"{port.config.__name__}.__init__() ", ""),
            f"Correct its {refs.CONFIG_FILE}.",
        ) from error


def config_to_json(port: str, config: Any) -> dict[str, Any]:
    """The content of config.json: the port's name as `model_type`, then the fields of its config."""
    return {"model_type": port, **dataclasses.asdict(config)}


# --- saving -----------------------------------------------------------------------------------------------------------


def save(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    port: str,
    dtype: Any = None,
    card: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model as a checkpoint directory that `load` reads; returns it.

    `dtype` is that in which floating-point weights are stored; None: as they are. Rounded layers stay rounded, and the
    file says which they are. `card` says what the weights are (its "summary" is shown when they are run). What lay
    beside the weights that the model was loaded from (tokenizer, preprocessing, licence) goes with it. Each file is
    written atomically, the tensors last: a directory without them is not a checkpoint.
    Raises WeightsError if the place cannot be written.
    """
    import zoo

    directory = Path(directory)
    config = config_to_json(port, model.config)
    slots, infos = model.slots(), {}
    for name, tensor in model.state().items():
        cast = dtype is not None and is_float(tensor.dtype) and not slots[name].exact
        infos[name] = TensorInfo(tensor.shape, dtype_of(dtype) if cast else tensor.dtype)

    def parts(name: str) -> Iterator[np.ndarray]:
        for part in row_blocks(np.asarray(slots[name].value)):
            yield part.astype(infos[name].dtype, copy=False)

    about = {
        "zoo.port": port,
        "zoo.layout": LAYOUT,
        "zoo.version": zoo.__version__,
        "zoo.config": json.dumps(config),
        **quantized.metadata(model),
        **(metadata or {}),
    }
    source = None if model.source is None else model.source.directory
    if source is not None and source.resolve() != directory.resolve():
        for path in model.source.companions():
            if path != source / refs.CONFIG_FILE:
                with atomic(directory / path.relative_to(source)) as part:
                    shutil.copyfile(path, part)
    write_json(directory / refs.CONFIG_FILE, config)
    if card is not None:
        write_json(directory / refs.CARD_FILE, card)
    write_each(directory / refs.WEIGHTS_FILE, infos, parts, about)
    return directory
