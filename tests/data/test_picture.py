"""Pictures of every kind become upright RGB; what is no picture is told in three lines."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.core.errors import DataError
from zoo.data.picture import open_rgb

RED, BLUE = (200, 30, 40), (20, 60, 210)


@pytest.fixture
def halves() -> Image.Image:
    """Red above, blue below; 40 wide, 60 high."""
    array = np.empty((60, 40, 3), np.uint8)
    array[:30], array[30:] = RED, BLUE
    return Image.fromarray(array)


def near(image: Image.Image, x: int, y: int, colour: Any, by: int = 12) -> bool:
    assert image.mode == "RGB"
    return max(abs(a - b) for a, b in zip(image.getpixel((x, y)), colour, strict=True)) <= by


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tiff", "gif", "ppm"])
def test_formats(kind: str, halves: Image.Image, tmp_path: Path) -> None:
    halves.save(tmp_path / f"a.{kind}")
    image = open_rgb(tmp_path / f"a.{kind}")
    assert image.size == (40, 60) and near(image, 20, 10, RED) and near(image, 20, 50, BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, halves: Image.Image, tmp_path: Path) -> None:
    """A camera held any way stores its own axes and the turn that undoes it."""
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = halves.transpose(undo[orientation]) if orientation in undo else halves
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = open_rgb(tmp_path / "a.jpg")
    assert image.size == (40, 60) and near(image, 20, 10, RED) and near(image, 20, 50, BLUE)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "P", "L", "1", "LA"])
def test_modes(mode: str, halves: Image.Image, tmp_path: Path) -> None:
    name = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    (halves.quantize() if mode == "P" else halves.convert(mode)).save(name)
    image = open_rgb(name)
    if mode in ("L", "1", "LA"):
        assert len(set(image.getpixel((20, 10)))) == 1
    else:
        assert near(image, 20, 10, RED, 25) and near(image, 20, 50, BLUE, 25)


def test_transparent_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (*RED, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = open_rgb(tmp_path / "a.png")
    assert image.getpixel((1, 1)) == (255, 255, 255) and image.getpixel((6, 6)) == RED


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((2, 2), 1)
    image.save(tmp_path / "a.png", transparency=0)
    read = open_rgb(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((2, 2)) == RED


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    """Not cut off at 255, as Pillow's own conversion does."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        seen = np.asarray(open_rgb(tmp_path / name))[..., 0]
        np.testing.assert_allclose(seen, ramp / 257, atol=1)


def test_a_jpeg_may_be_decoded_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1200), RED).save(tmp_path / "a.jpg")
    assert open_rgb(tmp_path / "a.jpg", least=200).size == (400, 300)
    assert open_rgb(tmp_path / "a.jpg").size == (1600, 1200)


def bomb(path: Path) -> None:
    """A PNG of 60 bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))


def test_what_is_no_picture_is_told(halves: Image.Image, tmp_path: Path) -> None:
    halves.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    bomb(tmp_path / "bomb.png")
    for name, why in (
        ("cut.jpg", "cut short"), ("empty.jpg", "empty"), ("text.jpg", "not an image"), ("none.jpg", "no such file"),
        ("folder.jpg", "directory"), ("bomb.png", "pixels"),
    ):  # fmt: skip
        with pytest.raises(DataError) as told:
            open_rgb(tmp_path / name)
        assert why in told.value.why and name in told.value.what and told.value.fix
