"""One door to every format of weights: the content of a file decides, not its name."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub import components, consolidated, safetensors, sharded, torch_file
from zoo.hub.mapped import MappedFile, TensorFile

_NO_INDEX = "Name the index itself, or the directory."


def read(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a checkpoint: safetensors, what torch.save wrote, the index of either in several
    files or components, or the first of Meta's.

    Raises WeightsError if it is none of these, or is not whole.
    """
    path = Path(path)
    head = MappedFile(path)[:16]
    if path.name == components.INDEX:
        return components.read(path, _read_component)
    if _is_json(head):
        return sharded.read(path, _read_file)
    if path.name == consolidated.FIRST and len(consolidated.files(path)) > 1:
        return consolidated.read(path, _read_file)
    return _read_file(path)


def _read_component(path: Path) -> TensorFile:
    return sharded.read(path, _read_file) if _is_json(MappedFile(path)[:16]) else _read_file(path)


def _read_file(path: Path) -> TensorFile:
    """One file. An index is none: it would name others, and they itself."""
    head = MappedFile(path)[:16]
    if _is_json(head):
        raise WeightsError(f"cannot read {path}", "it is an index of a checkpoint, not a file of it", _NO_INDEX)
    # the number with which safetensors begins can look like the others' mark, but its ninth byte then opens the header
    if head[8:9] != b"{" and torch_file.is_one(head):
        return torch_file.read(path)
    return safetensors.read(path)


def _is_json(head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and 0 not in head[:8]  # safetensors' number holds zeros
