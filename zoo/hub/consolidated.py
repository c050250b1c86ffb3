"""Meta's own checkpoints: consolidated.00.pth, and for large models as many more as processors that they were made for.

Each file then holds a part of every matrix: that of one processor (Megatron's model parallelism; fairscale's layers in
meta-llama/llama, llama/model.py). Joined they are the tensors of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub.mapped import Joined, Place, TensorFile

FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"
PARAMS = "params.json"
"""Beside them, in the place of a config.json."""
_NUMBERED = re.compile(r"consolidated\.(\d\d)\.pth")
_BY_ROWS = re.compile(r"layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.weight|output\.weight")
"""Layers of which each processor works out some of the results (ColumnParallelLinear)."""
_BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")
"""Layers of which each takes some of the inputs (RowParallelLinear)."""
_EMBEDDING = "tok_embeddings.weight"
"""Split by columns up to Llama 2 (ParallelEmbedding), by rows from Llama 3 on (VocabParallelEmbedding)."""
_WIDTH = "norm.weight"
_FIX = "Fetch all of its consolidated.*.pth again."


def files(first: Path) -> list[Path]:
    """All files of the checkpoint that begins with `first`, in order. Raises WeightsError if one between is missing."""
    found = sorted(path for path in first.parent.iterdir() if _NUMBERED.fullmatch(path.name))
    for number, path in enumerate(found):
        if path.name != f"consolidated.{number:02d}.pth":
            raise WeightsError(f"cannot read {first.parent}", f"its consolidated.{number:02d}.pth is missing", _FIX)
    return found


def read(first: Path, read_file: Callable[[Path], TensorFile]) -> TensorFile:
    """Opens all files of a checkpoint with `read_file`; no data is read.

    Raises WeightsError for a file that is missing or cannot be read, and for files that do not belong together.
    """
    what = f"cannot read {first.parent}"
    paths = files(first)
    parts: list[dict[str, Place]] = []
    for path in paths:
        with read_file(path) as tensors:
            parts.append({name: place for name, entry in tensors.places.items() for place in entry.parts})
    for path, names in zip(paths, parts, strict=True):
        if odd := sorted(set(names) ^ set(parts[0])):
            raise WeightsError(what, f"{path.name} and {FIRST} do not both hold {odd[0][:80]}", _FIX)
    joined: dict[str, Place | Joined] = {}
    for name in parts[0]:
        here = tuple(names[name] for names in parts)
        for path, place in zip(paths, here, strict=True):
            if place.info != here[0].info:
                why = f"{name[:80]} is {here[0].info.shape} {here[0].info.dtype} in {FIRST}, "
                raise WeightsError(what, f"{why}{place.info.shape} {place.info.dtype} in {path.name}", _FIX)
        axis = _axis(name, here[0], parts[0].get(_WIDTH))
        joined[name] = here[0] if axis is None else Joined(here, axis)
    _check_width(what, joined, len(paths))
    return TensorFile(first, joined, {})


def _axis(name: str, part: Place, norm: Place | None) -> int | None:
    """Along which a tensor is split; None: every file holds all of it."""
    if len(part.info.shape) != 2:
        return None
    if name == _EMBEDDING:
        return 0 if norm is not None and part.info.shape[1:] == norm.info.shape else 1
    if _BY_ROWS.fullmatch(name):
        return 0
    return 1 if _BY_COLUMNS.fullmatch(name) else None


def _check_width(what: str, joined: dict[str, Place | Joined], count: int) -> None:
    """In Meta's models all heads together are as wide as the model: else there are too few files, or too many."""
    norm, queries = joined.get(_WIDTH), joined.get("layers.0.attention.wq.weight")
    if norm is not None and queries is not None and queries.info.shape[:1] != norm.info.shape:
        why = f"its {count} files together have {queries.info.shape[0]:,} rows of queries, the model is "
        raise WeightsError(what, f"{why}{norm.info.shape[0]:,} wide: a file is missing, or one is too many", _FIX)
