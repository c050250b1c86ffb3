"""Checkpoints of a run: one safetensors file with all tensors, and the rest of the state as JSON in its header.

One file, replaced in one step when the new one is complete on the disk: whenever the process dies, there is a whole
checkpoint, the new or the previous one. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.dtype import is_float
from zoo.core.errors import WeightsError, ZooError
from zoo.hub.safetensors import read, write

KEY = "zoo.train"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by group ("model", "optimizer", ...) and path, and what else a run needs to go on."""

    groups: dict[str, dict[str, np.ndarray]]
    facts: dict[str, Any]


def save(path: Path, groups: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint in the place of the previous one. Raises WeightsError if the disk is full or the directory
    cannot be written to, and ZooError if a weight is not finite; the previous one is then kept."""
    arrays = {f"{group}:{name}": np.asarray(value) for group, some in groups.items() for name, value in some.items()}
    for name, array in arrays.items():
        if is_float(array.dtype) and not np.isfinite(array).all():
            raise ZooError(
                f"training diverged: {name.partition(':')[2]} holds values that are not finite",
                f"the weights of step {facts.get('step')} are not saved",
                "Lower the learning rate, or clip the gradients.",
            )
    write(path, arrays, {KEY: json.dumps({"version": VERSION, **facts})})


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises WeightsError if there is none, or the file is not one."""
    with read(path) as file:
        try:
            facts = json.loads(file.metadata[KEY])
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"cannot resume from {path}",
                "it holds weights, and nothing about a run",
                "Name the directory of a run.",
            ) from error
        if facts.get("version") != VERSION:
            raise WeightsError(
                f"cannot resume from {path}",
                f"it is of version {facts.get('version')}, this program writes {VERSION}",
                "Resume with the version of the zoo that began the run.",
            )
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name in file:
            group, _, path_in_group = name.partition(":")
            groups.setdefault(group, {})[path_in_group] = file[name]
    return Checkpoint(groups, facts)
