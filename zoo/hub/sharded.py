"""A checkpoint in several files, with an index that says which tensor lies where (`model.safetensors.index.json`).

Strict: every tensor of the index is in its shard, and every tensor of a shard in the index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json
from zoo.hub.mapped import Joined, Place, TensorFile

LIMIT_INDEX = 64 << 20  # bytes; an entry takes about a hundred
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""A file beside the index: no directory, no drive, nothing hidden."""


def parse_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index. Raises WeightsError if a name leads out of the directory."""
    what = f"cannot read {path}"
    if (size := path.stat().st_size) > LIMIT_INDEX:
        raise WeightsError(what, f"its {size:,} bytes are more than an index can have", "Fetch the file again.")
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        why = "it is JSON, but no index of a checkpoint: it has no weight_map"
        raise WeightsError(what, why, "Name the file of weights, or the directory.")
    for name, file in index.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file) or file == path.name:
            why = f"it puts tensor {name[:80]} into {json.dumps(file)[:80]}, which is no file beside it"
            raise WeightsError(what, why, "Do not use this checkpoint: an honest index names files beside it.")
    return index


def read(path: Path, read_file: Callable[[Path], TensorFile]) -> TensorFile:
    """Opens all shards of an index with `read_file`; no data is read.

    Raises WeightsError for an index that is none, a shard that is missing or cannot be read, a tensor that is not where
    the index says, and one that the index does not know.
    """
    index = parse_index(path)
    what = f"cannot read {path}"
    places: dict[str, Place | Joined] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(index.values())):
        shard = path.parent / file
        if not shard.exists():
            names = [name for name, where in index.items() if where == file]
            why = f"its shard {file} is missing, with {len(names)} tensors ({names[0]}{', ...' if names[1:] else ''})"
            raise WeightsError(what, why, "Fetch that file too, into the same directory.")
        with read_file(shard) as tensors:
            for name, place in tensors.places.items():
                if index.get(name) != file:
                    why = f"{file} holds {name[:80]}, which the index puts into {index.get(name, 'no file')}"
                    raise WeightsError(what, why, "The files do not belong together: fetch them all again.")
                places[name] = place
            metadata.update(tensors.metadata)
    if absent := [name for name in index if name not in places]:
        why = f"{index[absent[0]]} lacks {absent[0][:80]}"
        why += f", and {len(absent) - 1} more tensors are not where the index says" if absent[1:] else ""
        raise WeightsError(what, why, "The files do not belong together: fetch them all again.")
    return TensorFile(path, {name: places[name] for name in index}, metadata)
