"""Reading safetensors files, and writing them.

Reading checks the header and maps the file; a tensor is a view of it (zoo.hub.mapped). Writing is atomic. Every failure
is a WeightsError. The format: eight bytes of length, a JSON header, the tensors one after another.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zoo.core.errors import WeightsError
from zoo.hub.files import atomic, unique
from zoo.hub.mapped import LIMIT_DIMENSIONS, MappedFile, Place, TensorFile, TensorInfo

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


LIMIT_HEADER = 32 << 20
"""Bytes. A tensor takes about a hundred."""


def read(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a safetensors file.

    Raises WeightsError if it is missing, a directory, not safetensors (and says what it seems to be), truncated,
    longer than its header says, or holds a dtype that the zoo has no use for; if tensors overlap, leave a hole, are
    named twice, or take other bytes than their shape and dtype.
    """
    path = Path(path)
    what = f"cannot read {path}"
    file = MappedFile(path)
    if (other := _other_format(file)) is not None:
        raise WeightsError(what, *other)
    length = int.from_bytes(file[:8], "little")
    start = 8 + length
    if start > file.size:
        why = f"it is truncated: the header alone takes {start:,} bytes, the file has {file.size:,}"
        raise WeightsError(what, why, _DOWNLOAD_AGAIN)
    if length > LIMIT_HEADER:
        why = f"its header takes {length:,} bytes: no checkpoint has that many tensors"
        raise WeightsError(what, why, _DOWNLOAD_AGAIN)
    infos, offsets, metadata = _checked(file[8:start], file.size - start, what)
    swapped = sys.byteorder == "big"
    places = {
        name: Place(info, file, start + offsets[name], swapped=swapped and info.dtype.itemsize > 1)
        for name, info in infos.items()
    }
    return TensorFile(path, places, metadata)


def check_header(text: bytes, rest: int, what: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(infos, metadata) of a header with `rest` bytes behind it. Raises WeightsError(what, ...)."""
    infos, _, metadata = _checked(text, rest, what)
    return infos, metadata


def _checked(text: bytes, rest: int, what: str) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    try:
        infos, offsets, metadata = _parse(text)
    except _Damaged as damaged:
        raise WeightsError(what, f"its header is damaged: {damaged}", _DOWNLOAD_AGAIN) from damaged
    except _Unknown as unknown:
        raise WeightsError(what, str(unknown), "Convert the file with the library that wrote it.") from unknown
    end = sum(info.nbytes for info in infos.values())
    if end != rest:
        why = f"its header describes {end:,} bytes, the file has {rest:,}: truncated, or damaged"
        raise WeightsError(what, why, _DOWNLOAD_AGAIN)
    return infos, offsets, metadata


class _Damaged(Exception):
    """A header that no writer writes."""


class _Unknown(Exception):
    """A dtype that the zoo does not read."""


def _parse(text: bytes) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """(infos, offset of each tensor behind the header, metadata); the tensors fill their bytes without hole or overlap.

    Raises _Damaged and _Unknown.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"it is not valid JSON ({str(error)[:100]})") from error
    if type(header) is not dict:
        raise _Damaged("it is no JSON object")
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise _Damaged("its metadata is not text")
    infos, offsets = {}, {}
    for name, entry in header.items():
        infos[name], offsets[name] = _entry(name, entry)
    at = 0
    for name in sorted(infos, key=lambda name: (offsets[name], infos[name].nbytes)):
        if offsets[name] != at:
            raise _Damaged(f"tensor {name[:80]} begins at byte {offsets[name]:,}, where {at:,} was expected")
        at += infos[name].nbytes
    return infos, offsets, metadata


def _entry(name: str, entry: Any) -> tuple[TensorInfo, int]:
    """What the header says of one tensor: shape and dtype, and where it begins."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Damaged(f"tensor {name[:80]} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if type(numbers) is not list or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise _Damaged(f"tensor {name[:80]} has a shape or offsets that are no sizes")
    if type(kind) is not str or len(offsets) != 2 or len(shape) > LIMIT_DIMENSIONS:
        raise _Damaged(f"tensor {name[:80]} is described by something else than dtype, shape and two offsets")
    if kind not in DTYPES:
        raise _Unknown(f"tensor {name[:80]} has dtype {kind[:20]}; the zoo reads {', '.join(DTYPES)}")
    info = TensorInfo(tuple(shape), DTYPES[kind])
    if offsets[1] - offsets[0] != info.nbytes:
        raise _Damaged(f"tensor {name[:80]} {info.shape} {kind} has {offsets[1] - offsets[0]:,} bytes")
    return info, offsets[0]


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays to a safetensors file. See `write_each`."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    infos = {name: TensorInfo(array.shape, array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    write_each(path, infos, lambda name: [arrays[name]], metadata)


def write_each(
    path: str | os.PathLike[str],
    infos: Mapping[str, TensorInfo],
    parts: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, atomically: readers see the old file or the whole new one. `parts(name)` is asked for
    each tensor in turn; its parts, one after the other in C order, must come to what `infos` says.

    The same content is the same bytes, so that checkpoints can be compared by hash; the library's own writer orders the
    metadata anew each time (safetensors 0.8). Tensors lie by falling item size, then name, which keeps each aligned.
    Raises WeightsError if the place cannot be written, or a dtype has no name in the format.
    """
    path = Path(path)
    for name, info in infos.items():
        if info.dtype not in _NAMES:
            raise WeightsError(f"cannot write {path}", f"tensor {name} has dtype {info.dtype}", "Cast it first.")
    order = sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name))
    with atomic(path) as part, part.open("wb") as file:
        file.write(_header(infos, order, metadata or {}))
        for name in order:
            end = file.tell() + infos[name].nbytes
            for part_of_it in parts(name):
                value = np.asarray(part_of_it, order="C")
                value = value.astype(value.dtype.newbyteorder("<"), copy=False)
                file.write(value.reshape(-1).view(np.uint8).data)
            assert file.tell() == end, name


def _header(infos: Mapping[str, TensorInfo], order: list[str], metadata: Mapping[str, str]) -> bytes:
    """Eight bytes of length, then the JSON, filled up with blanks so that the tensors start at a multiple of eight."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        info = infos[name]
        start, end = end, end + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_DOWNLOAD_AGAIN = "Fetch the file again."
_CONVERT = "The zoo reads safetensors: look for one of the same model, or make it with `safetensors.torch.save_file`."

# What people pass instead, by its first bytes.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "it is a zip file, as torch.save writes (.pt, .pth, .bin)", _CONVERT),
    (b"\x80", "it is a pickle, as torch.save wrote before 1.6 (.pt, .pth, .th)", _CONVERT),
    (b"GGUF", "it is a GGUF file (llama.cpp)", _CONVERT),
    (b"\x89HDF", "it is an HDF5 file (Keras)", _CONVERT),
    (b"\x93NUMPY", "it is a NumPy .npy file", _CONVERT),
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the file itself",
        "Run `git lfs pull` in that repository.",
    ),
    (b"<", "it is a web page, not a checkpoint", _DOWNLOAD_AGAIN),
)


def _other_format(file: MappedFile) -> tuple[str, str] | None:
    """Why a file cannot be safetensors, and what to do, in words for who did not write it; None if it can."""
    head = file[:64]
    if not head:
        return "it is empty", _DOWNLOAD_AGAIN
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return None
    for magic, why, fix in _OTHER_FORMATS:
        if head.lstrip().startswith(magic):
            return why, fix
    if len(head) > 8 and head[8:9] == b"{":
        return None
    return "it is not a safetensors file", _CONVERT
