"""Pictures in a folder per class: found, split, decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.core.errors import DataError
from zoo.data.files import HELD_OUT
from zoo.data.folder import Pictures, read_folder, read_split


def fill(root: Path, **counts: int) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (number, i, 0)).save(root / name / f"{i:03}.png")
    return root


def test_classes_and_files_in_the_order_of_names(tmp_path: Path) -> None:
    fill(tmp_path, dog=2, cat=3)
    (tmp_path / "cat" / "deeper").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "deeper" / "x.JPG", "jpeg")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / ".git").mkdir()
    found = read_folder(tmp_path)
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert [file.name for file in found.files] == ["000.png", "001.png", "002.png", "x.JPG", "000.png", "001.png"]


def test_every_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    train, held_out = read_split(fill(tmp_path, a=2 * HELD_OUT + 1, b=2))
    assert [f"{f.parent.name}/{f.stem}" for f in held_out.files] == ["a/000", "a/010", "a/020", "b/000"]
    assert not set(train.files) & set(held_out.files) and len(train) + len(held_out) == 2 * HELD_OUT + 3
    again = read_split(tmp_path)
    assert again[0].files == train.files and again[1].labels.tolist() == held_out.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_folders_of_their_own(name: str, tmp_path: Path) -> None:
    fill(tmp_path / "train", a=3, b=3)
    fill(tmp_path / name, a=1, b=1)
    train, held_out = read_split(tmp_path)
    assert (len(train), len(held_out), train.classes) == (6, 2, held_out.classes)
    fill(tmp_path / name, c=1)
    with pytest.raises(DataError, match="c are in one only"):
        read_split(tmp_path)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    for make, why in (
        (lambda: tmp_path / "none", "no such file or directory"),
        (lambda: fill(tmp_path / "a", x=0), "holds no picture"),
        (lambda: fill(tmp_path / "b", x=3, y=1), "y holds 1 picture"),
    ):
        with pytest.raises(DataError) as told:
            read_split(make())
        assert why in str(told.value)
    loose = fill(tmp_path / "c", x=2) / "x"
    with pytest.raises(DataError, match="2 pictures and no folders"):
        read_folder(loose)


def test_pictures_are_decoded_once_while_there_is_room(tmp_path: Path) -> None:
    labelled = read_folder(fill(tmp_path, a=4, b=3))
    decoded = []

    def decode(image: Image.Image) -> np.ndarray:
        decoded.append(image.getpixel((0, 0)))
        return np.asarray(image)

    pictures = Pictures(labelled, decode, None, keep=5 * 48)  # five of the seven
    for _ in range(2):
        batch, labels = pictures[np.array([6, 0, 3])]
        assert batch.shape == (3, 4, 4, 3) and labels.tolist() == [1, 0, 0]
        assert batch[:, 0, 0].tolist() == [[1, 2, 0], [0, 0, 0], [0, 3, 0]]
    assert len(decoded) == 3
    for _ in range(2):
        pictures[np.arange(7)]
    assert len(decoded) == 3 + 4 + 2
