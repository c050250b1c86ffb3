"""Tensors that lie in files: where, and the arrays made of them.

Files are mapped, not read: an array of a float32, float16 or bfloat16 tensor is a view of the file, costs no memory of
its own, and keeps the map alive for as long as it lives. Sizes are checked against the file before anything is mapped,
since touching a page behind the end of a file kills the process. A file must not be shortened in place while it is
mapped; the zoo replaces files by renaming, which leaves the old one whole for who has it mapped.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.core.errors import WeightsError
from zoo.core.mapping import forget

LIMIT_DIMENSIONS = 64
"""numpy's."""


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


class Bytes(Protocol):
    """The bytes of a file, wherever it is."""

    size: int

    def __getitem__(self, part: slice) -> bytes:
        """A copy of some; fewer where the file ends before."""

    def find_last(self, needle: bytes, start: int) -> int:
        """Where `needle` last begins, at `start` or behind it; -1 if it does not."""


class MappedFile:
    """The bytes of a file, mapped read-only. `size` is what it had when it was opened."""

    def __init__(self, path: Path):
        """Raises WeightsError if there is no such file, it is not an ordinary one, or may not be read."""
        what = f"cannot read {path}"
        if path.is_dir():
            raise WeightsError(what, "it is a directory, not a file", "Name the file of weights in it.")
        if not path.exists():
            fix = "Check the name; `zoo list` shows the checkpoints that ship."
            raise WeightsError(what, "there is no such file", fix)
        if not path.is_file():
            raise WeightsError(what, "it is not an ordinary file", "Name a .safetensors file.")
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                # an empty file cannot be mapped
                empty = self.size == 0
                self._bytes: Any = b"" if empty else mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise WeightsError(what, why, "Check the file's permissions.") from error
        self.path = path

    def __getitem__(self, part: slice) -> bytes:
        """A copy of some bytes; fewer where the file ends before."""
        return self._bytes[part]

    def find_last(self, needle: bytes, start: int) -> int:
        return self._bytes.rfind(needle, start)

    def elements(self, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` elements from a byte offset, read-only: a view of the file; a copy where they are not aligned."""
        if count == 0:
            return np.empty(0, dtype)
        if offset % dtype.itemsize == 0:
            return np.frombuffer(self._bytes, dtype, count, offset)
        moved = np.frombuffer(self._bytes, np.uint8, count * dtype.itemsize, offset).copy().view(dtype)
        moved.flags.writeable = False
        return moved

    def forget(self, offset: int, nbytes: int) -> None:
        """Lets go of the pages of a part that was read: the file stays, and they are read again if need be."""
        if self.size:
            forget(self._bytes, offset, nbytes)


@dataclass(frozen=True)
class Place:
    """Where one tensor lies. Whoever makes one has checked that it lies within the file."""

    info: TensorInfo
    file: MappedFile
    offset: int
    """Of its first element, in bytes."""
    strides: tuple[int, ...] | None = None
    """In elements, none negative; None: C order."""
    swapped: bool = False
    """Stored in the other byte order than this machine's."""

    @property
    def parts(self) -> tuple[Place, ...]:
        return (self,)

    def read(self) -> np.ndarray:
        shape, dtype = self.info.shape, self.info.dtype
        if self.strides is None or self.info.size == 0:
            extent = self.info.size
        else:
            extent = 1 + sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True))
        flat = self.file.elements(self.offset, extent, dtype)
        if self.swapped:
            flat = flat.byteswap()
        if self.strides is None or self.info.size == 0:
            return flat.reshape(shape)
        strides = tuple(s * dtype.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)


@dataclass(frozen=True)
class Joined:
    """A tensor whose parts along one axis lie in several files. Reading it makes a copy."""

    parts: tuple[Place, ...]
    axis: int

    @property
    def info(self) -> TensorInfo:
        shape = list(self.parts[0].info.shape)
        shape[self.axis] = sum(part.info.shape[self.axis] for part in self.parts)
        return TensorInfo(tuple(shape), self.parts[0].info.dtype)

    def read(self) -> np.ndarray:
        return np.concatenate([part.read() for part in self.parts], axis=self.axis)


def row_blocks(array: np.ndarray, limit: int = 16 << 20) -> Iterator[np.ndarray]:
    """The array in parts along its first axis of at most `limit` bytes, or one row: what must be worked out for all of
    it is then worked out for a part at a time."""
    if array.ndim == 0 or array.nbytes <= limit:
        yield array
        return
    rows = max(1, limit * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


class TensorFile(Mapping[str, np.ndarray]):
    """An open checkpoint: tensor name -> array, made at each look-up. `.infos` and `.metadata` come from headers.

    A context manager; its files stay mapped until `close`, and longer for the arrays that were taken from them.
    """

    def __init__(self, path: Path, places: Mapping[str, Place | Joined], metadata: dict[str, str]):
        self.path, self.metadata = path, metadata
        self.infos = {name: place.info for name, place in places.items()}
        self.places = places

    def __getitem__(self, name: str) -> np.ndarray:
        return self.places[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Of its files."""
        parts = [part for place in self.places.values() for part in place.parts]
        return sum(size for _, size in {(part.file.path, part.file.size) for part in parts})

    def forget(self, name: str) -> None:
        """A tensor's pages are not needed in memory any more."""
        for part in self.places[name].parts:
            part.file.forget(part.offset, part.info.nbytes)

    def close(self) -> None:
        self.places = {}
