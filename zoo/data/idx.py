"""IDX files, the array format of MNIST: a big-endian header, then the values row by row.

    byte 0-1   0, 0
    byte 2     type code (table below)
    byte 3     number of dimensions
    4 bytes    each dimension, unsigned
    values     big-endian

Source: the description on Y. LeCun's MNIST page. Compressed files are known by their content, not by their name:
some mirrors serve `train-images-idx3-ubyte.gz` already unpacked.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from zoo.core.errors import DataError

TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
MAX_DIMENSIONS = 8  # the published files have 1 to 4; the byte could say 255
MAX_BYTES = 1 << 30  # the largest published file, EMNIST byclass, holds 547 MB
CHUNK = 1 << 20  # memory grows with what the file really holds, never with what its header claims


def read_idx(
    path: str | os.PathLike[str],
    *,
    dtype: np.dtype | str | None = None,
    shape: Sequence[int | None] | None = None,
    max_bytes: int = MAX_BYTES,
) -> np.ndarray:
    """Read an IDX file, plain or gzip, into an array of the machine's byte order.

    dtype and shape say what is expected (None in shape: any size); both are checked before any value is read.
    Raises DataError, naming the file, when it is missing, empty, truncated, too long, corrupt, not IDX, not as
    expected, or claims more than max_bytes.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size == 0:
                raise _unusable(name, "the file is empty")
            if compressed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _read(unpacked, name, dtype, shape, max_bytes, None)
            return _read(file, name, dtype, shape, max_bytes, size)
    except FileNotFoundError:
        raise DataError(f"cannot read {name}", "there is no such file", "Check the path.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _unusable(name, f"its gzip data is corrupt ({error})") from None
    except EOFError:
        raise _unusable(name, "its gzip data ends too early") from None
    except OSError as error:
        raise DataError(f"cannot read {name}", error.strerror or str(error), "Check the path and its rights.") from None


def _read(
    file: BinaryIO | gzip.GzipFile,
    name: str,
    dtype: np.dtype | str | None,
    shape: Sequence[int | None] | None,
    max_bytes: int,
    size: int | None,
) -> np.ndarray:
    """size: length of a plain file, which is then compared with the header before anything is read."""
    found, sizes = _header(file, name)
    if dtype is not None and found != np.dtype(dtype):
        raise _unusable(name, f"it holds {found.name}; {np.dtype(dtype).name} was expected", _OTHER)
    if shape is not None and not _fits(sizes, shape):
        wanted = " x ".join("n" if n is None else str(n) for n in shape)
        raise _unusable(name, f"its shape is {_times(sizes)}; {wanted} was expected", _OTHER)

    wanted_bytes = math.prod(sizes) * found.itemsize
    if wanted_bytes > max_bytes:
        raise _unusable(
            name,
            f"its header claims {_times(sizes)} {found.name}, {wanted_bytes:,} bytes; "
            f"more than {max_bytes:,} is refused",
            _OTHER,
        )
    start = 4 + 4 * len(sizes)
    if size is not None and size - start != wanted_bytes:
        raise _wrong_length(name, sizes, found, wanted_bytes, f"{size - start:,}")

    data = bytearray()
    while len(data) <= wanted_bytes:  # one byte beyond, so that trailing bytes show and gzip checks its sum
        chunk = file.read(min(CHUNK, wanted_bytes + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    if len(data) != wanted_bytes:
        raise _wrong_length(name, sizes, found, wanted_bytes, "more" if len(data) > wanted_bytes else f"{len(data):,}")
    return np.frombuffer(data, found).astype(found.newbyteorder("="), copy=False).reshape(sizes)


def _header(file: BinaryIO | gzip.GzipFile, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4:
        raise _unusable(name, f"it ends inside its header, after {len(magic)} bytes")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES:
        raise _unusable(name, f"it is not an IDX file: it begins with {magic.hex(' ')} ({magic!r})", _OTHER)
    if not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise _unusable(name, f"its header claims {magic[3]} dimensions; 1 to {MAX_DIMENSIONS} are read", _OTHER)
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise _unusable(name, f"it ends inside its header, after {4 + len(sizes)} bytes")
    return TYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes)


_OTHER = "Give an IDX file as published for MNIST, plain or .gz."


def _fits(sizes: tuple[int, ...], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(want in (None, got) for got, want in zip(sizes, shape, strict=True))


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _wrong_length(name: str, sizes: tuple[int, ...], dtype: np.dtype, wanted: int, got: str) -> DataError:
    return _unusable(name, f"its header says {_times(sizes)} {dtype.name}, {wanted:,} bytes; {got} bytes follow it")


def _unusable(name: str, why: str, fix: str = "Fetch the file again: it is damaged or cut short.") -> DataError:
    return DataError(f"cannot use {name}", why, fix)
