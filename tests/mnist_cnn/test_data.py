"""MNIST's files: found under every usual name, split, refused when they do not pair up, fetched from a mirror."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from zoo.core.errors import DataError, DownloadError
from zoo.mnist_cnn import data
from zoo.mnist_cnn.data import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, Split, load


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(directory: Path, count: int, images: str = TRAIN_IMAGES, labels: str = TRAIN_LABELS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pictures = np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1), (count, 28, 28))
    for name, array in ((images, pictures), (labels, np.arange(count, dtype=np.uint8) % 10)):
        content = idx(np.ascontiguousarray(array))
        (directory / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("spelling", ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte", "{}.idx{}-ubyte.gz"])
def test_found_under_every_usual_name(tmp_path: Path, layout: str, spelling: str) -> None:
    write(tmp_path / layout, 12, spelling.format("train-images", 3), spelling.format("train-labels", 1))
    mnist = load(tmp_path)
    assert len(mnist.train) == 10 and len(mnist.validation) == 2 and mnist.test is None
    assert mnist.validation.images[:, 0, 0].tolist() == [10, 11] and mnist.validation.labels.tolist() == [0, 1]


def test_the_official_test_set_is_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, 12)
    write(tmp_path, 5, TEST_IMAGES, TEST_LABELS)
    mnist = load(tmp_path)
    assert len(mnist.train) == 10 and mnist.test is not None and len(mnist.test) == 5


def test_at_least_one_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert len(load(tmp_path).validation) == 1
    write(tmp_path, 1)
    with pytest.raises(DataError, match="at least 2 are needed"):
        load(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"no {TRAIN_IMAGES}"):
        load(tmp_path)
    write(tmp_path, 12)
    (tmp_path / TRAIN_LABELS).unlink()
    with pytest.raises(DataError, match=f"no {TRAIN_LABELS}"):
        load(tmp_path)


def test_files_that_do_not_pair_up(tmp_path: Path) -> None:
    write(tmp_path, 12)
    (tmp_path / TRAIN_LABELS).write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match="12 images, and train-labels-idx1-ubyte 11 labels"):
        load(tmp_path)
    (tmp_path / TRAIN_LABELS).write_bytes(idx(np.full(12, 10, np.uint8)))
    with pytest.raises(DataError, match="label 10; digits are labelled 0 to 9"):
        load(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(idx(np.zeros((12, 32, 32), np.uint8)))
    with pytest.raises(DataError, match="12 x 32 x 32; n x 28 x 28 was expected"):
        load(tmp_path)


def test_labels_for_images(tmp_path: Path) -> None:
    write(tmp_path, 12)
    shutil.copy(tmp_path / TRAIN_LABELS, tmp_path / TRAIN_IMAGES)
    with pytest.raises(DataError, match="its shape is 12"):
        load(tmp_path)


def test_real_mnist(unseen: Split) -> None:
    assert unseen.images.shape == (10_000, 28, 28)
    # labels 50,000 to 59,999 of the published file
    assert np.bincount(unseen.labels).tolist() == [991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that is served, in the place of the public mirrors, with four small files published in it."""
    site = tmp_path / "site"
    write(site, 12, f"{TRAIN_IMAGES}.gz", f"{TRAIN_LABELS}.gz")
    write(site, 5, f"{TEST_IMAGES}.gz", f"{TEST_LABELS}.gz")
    published = {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name in data.PUBLISHED
        if (content := (site / f"{name}.gz").read_bytes())
    }
    monkeypatch.setattr(data, "PUBLISHED", published)
    handler = partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(data, "MIRRORS", (f"{address}moved/", address))
        yield site
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_fetched_from_the_mirror_that_has_it(tmp_path: Path, mirror: Path) -> None:
    data.fetch(tmp_path / "mnist", test=False)
    assert load(tmp_path / "mnist").test is None
    data.fetch(tmp_path / "mnist")
    mnist = load(tmp_path / "mnist")
    assert len(mnist.train) == 10 and mnist.test is not None


def test_what_is_there_is_not_fetched_again(tmp_path: Path, mirror: Path) -> None:
    write(tmp_path / "mnist", 24)
    data.fetch(tmp_path / "mnist")
    assert len(load(tmp_path / "mnist").train) == 20
    assert sorted(f.name for f in (tmp_path / "mnist").iterdir() if f.name.startswith("train")) == [
        TRAIN_IMAGES,
        TRAIN_LABELS,
    ]


def test_a_mirror_that_serves_something_else(tmp_path: Path, mirror: Path) -> None:
    file = mirror / f"{TRAIN_IMAGES}.gz"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DownloadError):
        data.fetch(tmp_path / "mnist")
    assert not (tmp_path / "mnist" / f"{TRAIN_IMAGES}.gz").exists()


def test_digits_as_pictures_in_folders_and_in_rows(tmp_path):
    from PIL import Image

    from zoo.data.bad import Skipped

    rng = np.random.default_rng(0)
    rows = []
    for digit in (3, 7):
        (tmp_path / str(digit)).mkdir()
        for i in range(4):
            picture = np.zeros((28, 28), np.uint8)
            picture[4:24, 10:18] = rng.integers(150, 255, (20, 8))
            Image.fromarray(picture).save(tmp_path / str(digit) / f"{i}.png")
            rows.append(f'{{"file_name": "{digit}/{i}.png", "label": {digit}}}')
    found = load(tmp_path)
    assert found.train.labels.tolist() == [3, 3, 3, 7, 7, 7] and found.validation.labels.tolist() == [3, 7]
    assert found.test is None and found.train.images.dtype == np.uint8 and found.train.images.shape == (6, 28, 28)
    assert found.train.images.max() > 150 and found.train.images[:, 0].max() == 0
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    again = load(tmp_path)
    assert np.array_equal(again.train.images, found.train.images)

    (tmp_path / "7" / "1.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"train.jsonl:6, .*1\.png\n.*cannot read a digit"):
        load(tmp_path)
    skipped = Skipped()
    assert len(load(tmp_path, skipped).train) == 5 and len(skipped) == 1
    (tmp_path / "train.jsonl").write_text("\n".join(rows).replace(": 7}", ': "seven"}'))
    with pytest.raises(DataError, match="seven is no digit"):
        load(tmp_path)
