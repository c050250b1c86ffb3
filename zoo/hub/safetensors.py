"""Reading safetensors files, on the `safetensors` library, and writing them.

Reading opens the header only; each tensor is read when it is asked for, so nothing larger than one tensor is held.
Writing is atomic. Every failure is a WeightsError.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from zoo.core.errors import WeightsError
from zoo.hub.files import atomic

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


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class SafetensorsFile(Mapping[str, np.ndarray]):
    """An open file: tensor name -> array, read at each look-up. `.infos` and `.metadata` come from the header.

    A context manager; the file stays mapped until `close`.
    """

    def __init__(self, path: Path, handle: Any, infos: dict[str, TensorInfo], metadata: dict[str, str]):
        self.path, self.infos, self.metadata = path, infos, metadata
        self._handle = handle

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.infos:
            raise KeyError(name)
        return self._handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._handle = None


def read(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Opens a safetensors file.

    Raises WeightsError if it is missing, a directory, not safetensors (and says what it seems to be), truncated,
    longer than its header says, or holds a dtype that the zoo has no use for.
    """
    path = Path(path)
    what = f"cannot read {path}"
    if path.is_dir():
        raise WeightsError(what, "it is a directory, not a file", "Name the .safetensors file in it.")
    if not path.exists():
        raise WeightsError(what, "there is no such file", "Check the name; `zoo list` shows the checkpoints that ship.")
    if not path.is_file():
        raise WeightsError(what, "it is not an ordinary file", "Name a .safetensors file.")
    try:
        handle = safe_open(path, framework="numpy")
        metadata = handle.metadata() or {}
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise WeightsError(what, error.strerror or str(error), "Check the file's permissions.") from error
    except SafetensorError as error:
        why, fix = _diagnose(path, str(error))
        raise WeightsError(what, why, fix) from error
    infos = {}
    for name, entry in slices.items():
        if entry.get_dtype() not in DTYPES:
            raise WeightsError(
                what,
                f"tensor {name} has dtype {entry.get_dtype()}; the zoo reads {', '.join(DTYPES)}",
                "Convert the file to one of these with the library that wrote it.",
            )
        infos[name] = TensorInfo(tuple(entry.get_shape()), DTYPES[entry.get_dtype()])
    return SafetensorsFile(path, handle, infos, metadata)


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, atomically: readers see the old file or the whole new one.

    The same content is the same bytes, so that checkpoints can be compared by hash; the library's own writer orders the
    metadata anew each time (safetensors 0.8). Tensors lie by falling item size, then name, which keeps each aligned.
    Raises WeightsError if the place cannot be written, or a dtype has no name in the format.
    """
    path = Path(path)
    arrays = {}
    for name, value in tensors.items():
        array = np.asarray(value, order="C")
        if array.dtype.newbyteorder("=") not in _NAMES:
            raise WeightsError(f"cannot write {path}", f"tensor {name} has dtype {array.dtype}", "Cast it first.")
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    with atomic(path) as part, part.open("wb") as file:
        file.write(_header(arrays, order, metadata or {}))
        for name in order:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


def _header(arrays: Mapping[str, np.ndarray], order: list[str], metadata: Mapping[str, str]) -> bytes:
    """Eight bytes of length, then the JSON, filled up with blanks so that the tensors start at a multiple of eight."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        array = arrays[name]
        start, end = end, end + array.nbytes
        dtype = _NAMES[array.dtype.newbyteorder("=")]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
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


def _diagnose(path: Path, said: str) -> tuple[str, str]:
    """Why the library refused a file, and what to do, in words for who did not write the file."""
    with path.open("rb") as file:
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if size == 0:
        return "it is empty", _DOWNLOAD_AGAIN
    for magic, why, fix in _OTHER_FORMATS:
        if head.lstrip().startswith(magic):
            return why, fix
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{":
        return "it is not a safetensors file", _CONVERT
    if header + 8 > size:
        return f"it is truncated: the header alone takes {header + 8:,} bytes, the file has {size:,}", _DOWNLOAD_AGAIN
    if "not fully covered" in said or "IncompleteBuffer" in said:
        return f"its {size:,} bytes are not those its header describes: truncated, or damaged", _DOWNLOAD_AGAIN
    return f"its header is damaged ({said.removeprefix('Error while deserializing header: ')})", _DOWNLOAD_AGAIN
