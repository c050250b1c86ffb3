"""Back to the published layout: a port's table read backwards, tensors byte for byte as they were published."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import adapter, components, quantized, refs, store
from zoo.hub.download import Progress
from zoo.hub.files import sync_directory, write_json, writing
from zoo.hub.formats import read
from zoo.hub.load import IDENTITY, identify, load
from zoo.hub.mapped import TensorFile, TensorInfo, row_blocks
from zoo.hub.safetensors import write_each
from zoo.hub.table import shape_after
from zoo.nn import Module, lora

METADATA = {"format": "pt"}
"""transformers refuses a safetensors file that does not say which framework's layout it has."""


@dataclass(frozen=True)
class Exported:
    directory: Path
    port: str
    tensors: int
    nbytes: int


def export(
    ref: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    merge: bool = False,
) -> Exported:
    """Writes the checkpoint that `ref` names as other programs read it: model.safetensors under the published names,
    with config and tokenizer files; or a folder with these for each component, where it is published so. `directory`
    must be new or empty; it is whole or not there.

    merge: `ref` is an adapter; what is written is its base with the change in its weights, in their dtype.
    Raises WeightsError if the checkpoint cannot be read or recognised, or the place cannot be written.
    """
    directory = Path(directory)
    checkpoint = refs.resolve(ref)
    if merge != checkpoint.is_adapter:
        what = f"cannot {'merge' if merge else 'export'} {checkpoint.shown}"
        if merge:
            raise WeightsError(what, "it is no adapter, but a whole model", "Export it without --merge.")
        fix = "PEFT reads the directory as it is; --merge writes the base with the change in its weights."
        raise WeightsError(what, "it is an adapter: a change to another checkpoint", fix)
    with writing(directory):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            fix = "Name a directory that does not exist yet."
            raise WeightsError(f"cannot export to {directory}", "something is there already", fix)
    base = refs.resolve(adapter.base_of(checkpoint.directory)) if checkpoint.directory and merge else checkpoint
    with read(base.file) as tensors:
        known = identify(base, tensors)
        if (kept := quantized.stated(tensors.metadata, base.shown)[0]) is not None:
            why = f"its weights are rounded to {kept}; what other programs read holds them in full, and that is lost"
            raise WeightsError(f"cannot export {base.shown}", why, "Export the weights that it was made from.")
        source: _Stored | _Merged
        if merge:
            model = load(ref, device="numpy")
            known = dataclasses.replace(known, config=model.config)
            source, table = _Merged(model), known.port.table(known.config)
        else:
            source, table = _Stored(tensors), known.port.table(known.config) if known.table is IDENTITY else IDENTITY
        plan = table.export(source.infos, known.config).check(base.shown, known.port.name)
        steps = {step.target: step for step in plan.steps}
        infos = {}
        for step in plan.steps:
            stored = source.infos[step.source]
            shape = shape_after(step.functions, stored.shape, known.config)
            if shape is None:
                raise WeightsError(f"cannot export {base.shown}", f"{step.source} is {stored.shape}", "")
            shape = (shape[0] * (1 + len(step.more)), *shape[1:]) if step.more else shape
            infos[step.target] = TensorInfo(shape, stored.dtype)
        total = sum(info.nbytes for info in infos.values())
        made = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.tmp"
        done = 0

        def parts(name: str) -> Iterator[np.ndarray]:
            nonlocal done
            step = steps[name]
            for piece in (step.source, *step.more):
                for part in row_blocks(plan.apply(step, source[piece])):
                    yield part
                    done += part.nbytes
                    if progress is not None:
                        progress(done, total, f"exporting {checkpoint.shown}")
                source.forget(piece)

        try:
            documents = known.port.documents(known.config) if known.port.documents is not None else {}
            with writing(directory):
                made.mkdir(parents=True)
                for path in base.companions():
                    if documents and path.parent == base.directory and path.name == refs.CONFIG_FILE:
                        continue  # ours: it would stand beside those of the components, and say the same
                    target = made / path.relative_to(path.parent if base.directory is None else base.directory)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, target)
                if merge and checkpoint.directory and (own := checkpoint.directory / refs.CONFIG_FILE).is_file():
                    shutil.copyfile(own, made / refs.CONFIG_FILE)  # of modules that were trained whole
            for name, document in documents.items():
                if not (made / name).exists():
                    write_json(made / name, document)
            if not documents:
                write_each(made / refs.WEIGHTS_FILE, infos, parts, METADATA)
            for component, library in components.parse_index(made / components.INDEX).items() if documents else ():
                _write_component(made / component / components.file_name(library), f"{component}.", infos, parts)
            with writing(directory):
                with contextlib.suppress(FileNotFoundError):
                    directory.rmdir()
                made.rename(directory)
                sync_directory(directory.parent)
        finally:
            store.remove_tree(made)
    return Exported(directory, known.port.name, len(infos), total)


def _write_component(file: Path, prefix: str, infos: Mapping[str, TensorInfo], parts: Callable[[str], Any]) -> None:
    """The tensors whose names begin with `prefix`, without it; no file if there are none."""
    own = {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
    if own:
        write_each(file, own, lambda name: parts(prefix + name), METADATA)


class _Stored:
    """The tensors of a file."""

    def __init__(self, tensors: TensorFile):
        self.infos, self._tensors = tensors.infos, tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def forget(self, name: str) -> None:
        self._tensors.forget(name)


class _Merged:
    """Those of a model under the names that it has without the adapter around it. Each weight is worked out when it is
    asked for: the base is mapped, and one changed tensor is in memory at a time."""

    def __init__(self, model: Module):
        self._layers = lora.layers(model)
        self._state: dict[str, Tensor] = {}
        for path, tensor in model.state().items():
            holder, _, rest = path.rpartition(".base.")
            if holder in self._layers:
                self._state[f"{holder}.{rest}"] = tensor
            elif path.rpartition(".lora_")[0] not in self._layers:
                self._state[path] = tensor
        self.infos = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in self._state.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        path, _, part = name.rpartition(".")
        if part == "weight" and path in self._layers:
            return self._layers[path].merged_weight().numpy()
        return self._state[name].numpy()

    def forget(self, name: str) -> None:
        """Nothing is kept."""
