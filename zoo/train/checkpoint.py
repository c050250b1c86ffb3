"""Checkpoints of a run: one safetensors file with all tensors, and the rest of the state as JSON in its header.

A file is put in place in one step when it is complete on the disk, and holds a sum of each tensor's bytes: whatever is
read from it is what was written, or it is refused. Nothing is pickled.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.dtype import is_float
from zoo.core.errors import WeightsError, ZooError
from zoo.hub.safetensors import read, write

KEY = "zoo.train"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by group ("model", "optimizer", ...) and path, and what else a run needs to go on."""

    groups: dict[str, dict[str, np.ndarray]]
    facts: dict[str, Any]


class Damaged(WeightsError):
    """A file that is no whole checkpoint any more, whatever it was: an older one may serve in its place."""


def save(path: Path, groups: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint, in the place of one of that name. Raises WeightsError if the disk is full or the directory
    cannot be written to, and ZooError if a weight is not finite; what was there is then kept."""
    arrays = {f"{group}:{name}": np.asarray(value) for group, some in groups.items() for name, value in some.items()}
    for name, array in arrays.items():
        if is_float(array.dtype) and not np.isfinite(array).all():
            raise ZooError(
                f"training diverged: {name.partition(':')[2]} holds values that are not finite",
                f"the weights of step {facts.get('step')} are not saved",
                "Lower the learning rate, or clip the gradients.",
            )
    sums = {name: _sum(array) for name, array in arrays.items()}
    write(path, arrays, {KEY: json.dumps({"version": VERSION, "sums": sums, **facts})})


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises Damaged if there is none, or it is not whole, and WeightsError if the file is of
    another kind or version."""
    try:
        file = read(path)
    except WeightsError as error:
        raise Damaged(error.what, error.why, "Resume from an older checkpoint, or begin anew.") from error
    with file:
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
        sums = facts.pop("sums")
        for name in file:
            group, _, path_in_group = name.partition(":")
            groups.setdefault(group, {})[path_in_group] = array = file[name]
            if _sum(array) != sums.get(name):
                why = f"the bytes of {path_in_group} are not those that were written"
                raise Damaged(f"cannot resume from {path}", why, "Resume from an older checkpoint, or begin anew.")
    return Checkpoint(groups, facts)


def _sum(array: np.ndarray) -> int:
    """CRC-32 of the bytes: finds what disks and copies do to files, at the speed at which they are read."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
