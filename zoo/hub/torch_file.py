"""Reading what torch.save wrote (.pt, .pth, .bin, .ckpt, .th), without torch and without running any of it.

Two formats. Since 1.6: a zip file of `NAME/data.pkl`, which describes the tensors, and `NAME/data/KEY`, the bytes of
each storage. Before: a row of pickles (magic number, version, machine, the tensors, the storages' keys), then for each
key its number of elements and its bytes. The pickles run on zoo.hub.unpickle; tensors are views of the mapped file.
Source: torch/serialization.py and torch/_utils.py of PyTorch 2.x (BSD-3-Clause).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zoo.core.errors import WeightsError
from zoo.hub.mapped import LIMIT_DIMENSIONS, Bytes, MappedFile, Place, TensorFile, TensorInfo
from zoo.hub.unpickle import IGNORED, LIMIT_BYTES, Global, Machine, Refused, ordered_dict
from zoo.hub.zip_spans import members, span

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First value of a file in the format before 1.6 (torch.serialization.MAGIC_NUMBER)."""
PROTOCOL_VERSION = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs put the weights, beside the optimizer's state and the epoch."""
PREFIX = "module."
"""What torch's DataParallel puts before every name."""

_ELEMENTS = {
    "Double": np.dtype(np.float64),
    "Float": np.dtype(np.float32),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_FETCH_AGAIN = "Fetch the file again."
_RESAVE = "Use the model's safetensors file; or, if you trust this one, keep its tensors only, with torch: \
torch.save(model.state_dict(), ...)."


@dataclass(frozen=True)
class Storage:
    """A run of elements that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int
    """Elements."""
    start: int = 0
    """Element of the stored run at which this one begins: old files know views of storages."""
    whole: int = 0
    """Elements of the stored run."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the pickle describes it. Offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What a file describes."""

    tensors: dict[str, Stored]
    beside: dict[str, str]
    """As metadata: "beside.NAME" -> JSON, of dictionaries of numbers and text that lie beside the state dict, such as
    the `dims` of OpenAI's Whisper."""


def read(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a file of torch.save that holds a state dict, alone or under one of WRAPPERS. `module.` before all names is
    taken away.

    Raises WeightsError if it is missing, truncated or damaged, holds no state dict, or asks for anything that is not
    data: nothing in it is ever executed.
    """
    path = Path(path)
    file = MappedFile(path)
    with _refusals(f"cannot read {path}"):
        places, beside = _zip_places(file) if _is_zip(file) else _legacy_places(file)
        return TensorFile(path, places, beside)


def is_one(head: bytes) -> bool:
    """Whether a file that begins so may be one of torch.save."""
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5")


def describe(file: Bytes, what: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of such a file by name, and its metadata, from its description alone; the tensors' bytes are not
    looked at.

    Raises WeightsError, whose first line is `what`, as `read` does.
    """
    with _refusals(what):
        found = _zip(file)[0] if _is_zip(file) else _legacy(file)[0]
        return {name: _info(name, tensor) for name, tensor in found.tensors.items()}, found.beside


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        why = str(refused)
        fix = _FETCH_AGAIN if "truncated" in why or "damaged" in why else _RESAVE
        raise WeightsError(what, why, fix) from refused


# --- the two formats --------------------------------------------------------------------------------------------------


def _is_zip(file: Bytes) -> bool:
    return file[:4] == b"PK\x03\x04"


def _zip(file: Bytes) -> tuple[Contents, dict[str, tuple[int, int]], str, str]:
    """What it holds; the members of the zip file; the directory of them all in it; the byte order of the numbers."""
    found = members(file)
    programs = [name for name in found if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise Refused("it is a zip file, but not one of torch.save: it has no data.pkl")
    root = programs[0].removesuffix("data.pkl")
    if root + "constants.pkl" in found:
        raise Refused("it is a TorchScript program, not a state dict")
    start, size = span(file, programs[0], *found[programs[0]])
    if size > LIMIT_BYTES:
        raise Refused(f"its data.pkl takes {size:,} bytes; a state dict takes less than {LIMIT_BYTES:,}")
    order = "little"
    if (name := root + "byteorder") in found:
        at, length = span(file, name, *found[name])
        order = file[at : at + min(length, 8)].decode("ascii", "replace")
        if order not in ("little", "big"):
            raise Refused(f"it is damaged: its byte order is {order!r}")
    contents = _contents(Machine(NAMES, _storage).run(io.BytesIO(file[start : start + size])))
    for name, tensor in contents.tensors.items():
        member = f"{root}data/{tensor.storage.key}"
        if member not in found:
            raise Refused(f"it is damaged: tensor {name[:80]} lies in {member[:80]!r}, which is not there")
        if found[member][1] < tensor.storage.whole * tensor.storage.dtype.itemsize:
            raise Refused(f"it is damaged: {member[:80]!r} is shorter than tensor {name[:80]} needs")
    return contents, found, root, order


def _zip_places(file: MappedFile) -> tuple[dict[str, Place], dict[str, str]]:
    contents, found, root, order = _zip(file)
    places = {}
    for name, tensor in contents.tensors.items():
        member = f"{root}data/{tensor.storage.key}"
        start, _ = span(file, member, *found[member])
        places[name] = _place(file, name, tensor, start, order != sys.byteorder)
    return places, contents.beside


def _legacy(file: Bytes) -> tuple[Contents, dict[str, Storage], list[str], int]:
    """What it holds; the storages by key; their keys in the order in which they lie; where the first one begins."""
    stored: dict[str, Storage] = {}

    def remember(identity: Any) -> Storage:
        storage = _storage(identity)
        first = stored.setdefault(storage.key, storage)
        if (first.dtype, first.whole) != (storage.dtype, storage.whole):
            raise Refused(f"it is damaged: it describes the storage {storage.key[:80]!r} in two ways")
        return storage

    program = _Program(file)
    machine = Machine(NAMES, remember)
    first = machine.run(program)
    if type(first) is not int or first != MAGIC_NUMBER:
        raise Refused("it is a pickle, but not one of torch.save")
    try:
        if machine.run(program) != PROTOCOL_VERSION:
            raise Refused("it is of a version of torch.save that is not known")
        machine.run(program)  # the machine that wrote it; storages are little-endian whatever it was
        contents = _contents(machine.run(program))
        keys = machine.run(program)
    except Refused as refused:
        if program.tell() >= file.size and "damaged" in str(refused):
            raise Refused(f"it is truncated: its {file.size:,} bytes end within the description") from refused
        raise
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(stored):
        raise Refused("it is damaged: the storages it describes are not those it holds")
    return contents, stored, keys, program.tell()


class _Program:
    """The beginning of a file, as a stream for pickletools. What is read never takes more memory than there are bytes:
    a length in a damaged file may say anything."""

    def __init__(self, file: Bytes):
        self._file, self._at = file, 0

    def read(self, count: int) -> bytes:
        part = self._file[self._at : min(self._at + count, self._file.size, LIMIT_BYTES)]
        self._at += len(part)
        return part

    def readline(self) -> bytes:
        line = b""
        while piece := self.read(256):
            line += piece
            if (end := line.find(b"\n") + 1) > 0:
                self._at -= len(line) - end
                return line[:end]
        return line

    def tell(self) -> int:
        return self._at


def _legacy_places(file: MappedFile) -> tuple[dict[str, Place], dict[str, str]]:
    contents, stored, keys, at = _legacy(file)
    starts = {}
    for key in keys:
        size, at = int.from_bytes(file[at : at + 8], "little"), at + 8
        nbytes = stored[key].whole * stored[key].dtype.itemsize
        if at + nbytes > file.size:
            raise Refused(f"it is truncated: its storages end behind the file's {file.size:,} bytes")
        if size != stored[key].whole:
            raise Refused(f"it is damaged: storage {key[:80]!r} has {size:,} elements, {stored[key].whole:,} were said")
        starts[key], at = at, at + nbytes
    places = {
        name: _place(file, name, tensor, starts[tensor.storage.key], sys.byteorder == "big")
        for name, tensor in contents.tensors.items()
    }
    return places, contents.beside


def _info(name: str, tensor: Stored) -> TensorInfo:
    info = TensorInfo(tensor.shape, tensor.storage.dtype)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) if info.size else -1
    if tensor.offset + last >= tensor.storage.size:
        raise Refused(f"it is damaged: tensor {name[:80]} {tensor.shape} reaches out of its storage")
    if info.size > tensor.storage.size:
        # one number, expanded to a terabyte
        raise Refused(f"tensor {name[:80]} {tensor.shape} repeats the {tensor.storage.size:,} elements that are stored")
    return info


def _place(file: MappedFile, name: str, tensor: Stored, start: int, swapped: bool) -> Place:
    """`start` is where the storage's bytes begin; they all lie in the file."""
    info = _info(name, tensor)
    offset = start + (tensor.storage.start + tensor.offset) * info.dtype.itemsize
    return Place(info, file, offset, tensor.strides, swapped and info.dtype.itemsize > 1)


# --- what a pickle may name -------------------------------------------------------------------------------------------


def _storage(identity: Any) -> Storage:
    """A persistent id: ("storage", its type, key, device, elements), and in old files (key, start, size) of a view."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refused("it is damaged: it refers to something that is no storage")
    _, kind, key, _, size = identity[:5]
    if not isinstance(kind, np.dtype) or type(key) is not str:
        raise Refused("it is damaged: a storage without a type or a name")
    (whole,) = _counts((size,))
    view = identity[5] if len(identity) == 6 else None
    if view is None:
        return Storage(key, kind, whole, 0, whole)
    if type(view) is not tuple or len(view) != 3:
        raise Refused("it is damaged: a view of a storage that is none")
    start, length = _counts(view[1:])
    if start + length > whole:
        raise Refused("it is damaged: a view that reaches out of its storage")
    return Storage(key, kind, length, start, whole)


def _counts(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > LIMIT_DIMENSIONS:
        raise Refused("it is damaged: a shape that is none")
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise Refused("it is damaged: a size that is none")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Stored:
    """torch._utils._rebuild_tensor, and _v2 with requires_grad, hooks and metadata, which are nothing to us."""
    if not isinstance(storage, Storage):
        raise Refused("it is damaged: a tensor without a storage")
    (offset,), shape, strides = _counts((offset,)), _counts(shape), _counts(strides)
    if len(shape) != len(strides):
        raise Refused("it is damaged: a tensor with more or fewer strides than dimensions")
    if math.prod(shape) >= 2**62:
        raise Refused(f"it is damaged: a tensor of shape {shape}")
    return Stored(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Stored:
    if not isinstance(tensor, Stored):
        raise Refused("it is damaged: a parameter that is no tensor")
    return tensor


def _ignored(*_: Any) -> Any:
    return IGNORED


_CALLED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _counts,
    # where a tensor lay, and the best accuracy so far as a numpy scalar: nothing to us
    "torch.device": _ignored,
    "numpy.core.multiarray.scalar": _ignored,
    "numpy._core.multiarray.scalar": _ignored,
    "numpy.dtype": _ignored,
    "_codecs.encode": _ignored,
}
NAMES: dict[str, Any] = {
    **{name: Global(name, make) for name, make in _CALLED.items()},
    **{f"torch.{name}Storage": dtype for name, dtype in _ELEMENTS.items()},
    **{f"torch.{name}": None for name in _DTYPES},
}
"""All that a file may name."""


def _contents(value: Any) -> Contents:
    """The tensors by name, wherever a training program put them. Entries that are no tensors are left out."""
    seen: list[str] = []
    beside: dict[str, str] = {}
    for _ in range(len(WRAPPERS) + 1):
        if type(value) is not dict:
            break
        inner = next((value[key] for key in WRAPPERS if type(value.get(key)) is dict), None)
        tensors = {name: entry for name, entry in value.items() if isinstance(entry, Stored) and type(name) is str}
        if tensors and inner is None:
            if all(name.startswith(PREFIX) for name in tensors):
                tensors = {name.removeprefix(PREFIX): entry for name, entry in tensors.items()}
            return Contents(tensors, beside)
        beside |= {f"beside.{name}": json.dumps(entry) for name, entry in value.items() if _is_plain(entry)}
        seen = [str(key)[:40] for key in list(value)[:8]]
        value = inner
    where = f"; it holds {', '.join(seen)}" if seen else ""
    raise Refused(f"it holds no state dict (names of tensors, alone or under {', '.join(WRAPPERS)}){where}")


def _is_plain(value: Any) -> bool:
    return type(value) is dict and all(type(entry) in (int, float, str, bool) for entry in value.values())
