"""Back to the published layout: a port's table read backwards, tensors byte for byte as they were published."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.core.errors import WeightsError
from zoo.hub import quantized, refs, store
from zoo.hub.download import Progress
from zoo.hub.files import sync_directory, writing
from zoo.hub.formats import read
from zoo.hub.load import IDENTITY, identify
from zoo.hub.mapped import TensorInfo, row_blocks
from zoo.hub.safetensors import write_each
from zoo.hub.table import shape_after

METADATA = {"format": "pt"}
"""transformers refuses a safetensors file that does not say which framework's layout it has."""


@dataclass(frozen=True)
class Exported:
    directory: Path
    port: str
    tensors: int
    nbytes: int


def export(
    ref: str | os.PathLike[str], directory: str | os.PathLike[str], progress: Progress | None = None
) -> Exported:
    """Writes the checkpoint that `ref` names as other programs read it: model.safetensors under the published names,
    with config and tokenizer files. `directory` must be new or empty; it is whole or not there.

    Raises WeightsError if the checkpoint cannot be read or recognised, or the place cannot be written.
    """
    directory = Path(directory)
    checkpoint = refs.resolve(ref)
    with writing(directory):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            fix = "Name a directory that does not exist yet."
            raise WeightsError(f"cannot export to {directory}", "something is there already", fix)
    with read(checkpoint.file) as tensors:
        known = identify(checkpoint, tensors)
        if (kept := quantized.stated(tensors.metadata, checkpoint.shown)[0]) is not None:
            why = f"its weights are rounded to {kept}; what other programs read holds them in full, and that is lost"
            raise WeightsError(f"cannot export {checkpoint.shown}", why, "Export the weights that it was made from.")
        table = known.port.table(known.config) if known.table is IDENTITY else IDENTITY
        plan = table.export(tensors.infos, known.config).check(checkpoint.shown, known.port.name)
        steps = {step.target: step for step in plan.steps}
        infos = {}
        for step in plan.steps:
            stored = tensors.infos[step.source]
            shape = shape_after(step.functions, stored.shape, known.config)
            if shape is None:
                raise WeightsError(f"cannot export {checkpoint.shown}", f"{step.source} is {stored.shape}", "")
            infos[step.target] = TensorInfo(shape, stored.dtype)
        total = sum(info.nbytes for info in infos.values())
        made = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.tmp"
        done = 0

        def parts(name: str) -> Iterator[np.ndarray]:
            nonlocal done
            for part in row_blocks(plan.apply(steps[name], tensors[steps[name].source])):
                yield part
                done += part.nbytes
                if progress is not None:
                    progress(done, total, f"exporting {checkpoint.shown}")
            tensors.forget(steps[name].source)

        try:
            with writing(directory):
                made.mkdir(parents=True)
                for path in checkpoint.companions():
                    shutil.copyfile(path, made / path.name)
            write_each(made / refs.WEIGHTS_FILE, infos, parts, METADATA)
            with writing(directory):
                with contextlib.suppress(FileNotFoundError):
                    directory.rmdir()
                made.rename(directory)
                sync_directory(directory.parent)
        finally:
            store.remove_tree(made)
    return Exported(directory, known.port.name, len(infos), total)
