"""IDX files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.core.errors import DataError
from zoo.data.idx import TYPES, read_idx

CODES = {dtype.name: code for code, dtype in TYPES.items()}


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file."""
    head = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


PICTURES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
FILE = idx(PICTURES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some-idx3-ubyte"


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_in_every_wrapping(file: Path, name: str, compressed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 12).astype(name)
    file.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    found = read_idx(file)
    assert found.dtype == np.dtype(name) and found.dtype.isnative and found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_the_content_says_whether_it_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(FILE)
    (tmp_path / "packed").write_bytes(gzip.compress(FILE))
    for name in ("plain.gz", "packed"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), PICTURES)


def test_two_gzip_members_are_one_file(file: Path) -> None:
    file.write_bytes(gzip.compress(FILE[:9]) + gzip.compress(FILE[9:]))
    np.testing.assert_array_equal(read_idx(file), PICTURES)


def test_no_rows(file: Path) -> None:
    for wrapped in (idx(PICTURES[:0]), gzip.compress(idx(PICTURES[:0]))):
        file.write_bytes(wrapped)
        assert read_idx(file).shape == (0, 4, 3)


def told(file: Path, **expected: object) -> str:
    """The message of the error; it names the file, and is what, why, and what to do."""
    with pytest.raises(DataError) as caught:
        read_idx(file, **expected)  # type: ignore[arg-type]
    assert caught.value.why and caught.value.fix and str(file) in caught.value.what
    assert len(str(caught.value).splitlines()) == 3
    return caught.value.why


BROKEN = {  # name: the bytes, and why they are refused as they are and compressed
    "empty": (b"", "the file is empty", "inside its header"),
    "inside the magic": (FILE[:3], "inside its header", "inside its header"),
    "inside the sizes": (FILE[:13], "inside its header", "inside its header"),
    "no values": (FILE[:16], "60 bytes; 0 bytes follow", "60 bytes; 0 bytes follow"),
    "cut short": (FILE[:-1], "60 bytes; 59 bytes follow", "60 bytes; 59 bytes follow"),
    "a byte too many": (FILE + b"\0", "60 bytes; 61 bytes follow", "60 bytes; more bytes follow"),
    "a web page": (b"<!DOCTYPE html><html>", "not an IDX file: it begins with 3c 21 44 4f", "not an IDX file"),
    "unknown type": (b"\0\0\x0a\3" + FILE[4:], "not an IDX file", "not an IDX file"),
    "no dimension": (b"\0\0\x08\0" + FILE[4:], "claims 0 dimensions", "claims 0 dimensions"),
    "255 dimensions": (b"\0\0\x08\xff" + FILE[4:], "claims 255 dimensions", "claims 255 dimensions"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(file: Path, name: str) -> None:
    content, plain, compressed = BROKEN[name]
    file.write_bytes(content)
    assert plain in told(file)
    file.write_bytes(gzip.compress(content))
    assert compressed in told(file)


def test_broken_gzip(file: Path) -> None:
    packed = gzip.compress(FILE, mtime=0)
    for content, why in (
        (packed[:-9], "ends too early"),
        (packed[:5], "ends too early"),
        (packed[:-8] + b"\0\0\0\0" + packed[-4:], "corrupt"),  # a wrong check sum
        (packed[:10] + b"\xff" * 8 + packed[18:], "corrupt"),
        (packed + b"more", "corrupt"),
        (gzip.compress(packed), "not an IDX file"),
    ):
        file.write_bytes(content)
        assert why in told(file)


def test_missing_and_directory(tmp_path: Path) -> None:
    assert "no such file" in told(tmp_path / "nothing")
    assert told(tmp_path)


def test_what_was_expected(file: Path) -> None:
    file.write_bytes(FILE)
    assert "it holds uint8; int16 was expected" in told(file, dtype="int16")
    assert "its shape is 5 x 4 x 3; n x 28 x 28 was expected" in told(file, shape=(None, 28, 28))
    assert "n was expected" in told(file, shape=(None,))
    assert read_idx(file, dtype="uint8", shape=(None, 4, 3)).shape == (5, 4, 3)


def peak(file: Path) -> int:
    tracemalloc.start()
    told(file)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_a_header_that_lies_allocates_nothing(file: Path) -> None:
    lies = b"\0\0\x0e\3" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    modest = b"\0\0\x08\3" + struct.pack(">3I", 500_000, 28, 28)  # 392 MB: below the limit
    for content, why in ((lies, "is refused"), (modest, "392,000,000 bytes; 0 bytes follow")):
        for wrapped in (content, gzip.compress(content)):
            file.write_bytes(wrapped)
            assert why in told(file)
            assert peak(file) < 4 << 20


def test_a_gzip_bomb_is_read_no_further_than_its_header_says(file: Path) -> None:
    bomb = gzip.compress(idx(PICTURES) + bytes(64 << 20))
    assert len(bomb) < 1 << 17
    file.write_bytes(bomb)
    assert "more bytes follow" in told(file)
    assert peak(file) < 4 << 20


@given(st.binary(max_size=64), st.booleans())
def test_any_bytes_are_an_array_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, magic: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes((b"\0\0\x08\1" if magic else b"") + tail)
    try:
        assert read_idx(file).ndim >= 1
    except DataError as error:
        assert str(file) in error.what
