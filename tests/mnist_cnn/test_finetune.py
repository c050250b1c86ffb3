"""`zoo finetune mnist_cnn`: repeatable to the bit, stopped and resumed exactly, and its errors."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.cli.main import main
from zoo.core.random import Generator
from zoo.mnist_cnn.augment import augment, bilinear, to_float

WEIGHTS = "model.safetensors"


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """240 pictures, 200 of them to train on, in which the class is where the bright bar stands."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 240).astype(np.uint8)
    pictures = rng.integers(0, 60, (240, 28, 28)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[4:24, 4 + 2 * label : 6 + 2 * label] = 255
    directory = tmp_path / "digits"
    directory.mkdir()
    write_idx(directory / "train-images-idx3-ubyte", pictures)
    write_idx(directory / "train-labels-idx1-ubyte", labels)
    return directory


def command(digits: Path, out: Path, *more: str) -> list[str]:
    return ["finetune", "mnist_cnn", "--data", str(digits), "--out", str(out), "--batch", "20", *more]


def train(digits: Path, out: Path, *more: str) -> bytes:
    assert main(command(digits, out, "--quiet", *more)) == 0
    return (out / WEIGHTS).read_bytes()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_the_same_seed_gives_the_same_bits(digits: Path, tmp_path: Path, device: str, capsys: Any) -> None:
    if device == "cpu" and main(["doctor"]) == 0 and "cpu" not in json_devices(capsys):
        pytest.skip("the native kernels were not built")
    one = train(digits, tmp_path / "one", "--epochs", "1", "--device", device)
    same = train(digits, tmp_path / "same", "--epochs", "1", "--device", device)
    other = train(digits, tmp_path / "other", "--epochs", "1", "--device", device, "--seed", "1")
    assert one == same and one != other


def json_devices(capsys: Any) -> list[str]:
    from zoo.core.testing.devices import device_names

    capsys.readouterr()
    return [name.partition(":")[0] for name in device_names()[0]]


def test_stopped_at_a_random_moment_and_resumed_is_the_same_run(digits: Path, tmp_path: Path) -> None:
    """Ctrl-C: the step is finished and saved, exit 130; --resume gives the weights of a run that was never stopped."""
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    expected = train(digits, whole, "--epochs", "4")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = [sys.executable, "-m", "zoo", *command(digits, out, "--epochs", "4")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "--resume" in told and "Traceback" not in told
    assert not (out / WEIGHTS).exists(), "the run was over before it could be stopped"
    assert train(digits, out, "--epochs", "4", "--resume") == expected


def test_it_learns_and_what_it_wrote_runs(digits: Path, tmp_path: Path, capsys: Any) -> None:
    from PIL import Image

    out = tmp_path / "run"
    assert main([*command(digits, out, "--epochs", "15", "--lr", "0.004"), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert result["accuracy"] > 0.5, "chance is 0.1; the bars are shifted and turned, so neighbours are confused"
    assert (result["examples"], result["validation_examples"], result["steps"]) == (200, 40, 150)

    Image.fromarray((255 * (np.eye(28) > 0)).astype(np.uint8)).save(tmp_path / "x.png")
    assert main(["run", "mnist_cnn", str(tmp_path / "x.png"), "--weights", str(out), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "mnist_cnn" and set(document) == {"model", "weights", "device", "results"}
    prediction = document["results"][0]
    assert set(prediction) == {"file", "digit", "probabilities"} and len(prediction["probabilities"]) == 10
    assert abs(sum(prediction["probabilities"]) - 1) < 1e-5


def test_resume_with_other_settings_is_refused(digits: Path, tmp_path: Path, capsys: Any) -> None:
    train(digits, tmp_path / "run", "--epochs", "1")
    assert main(command(digits, tmp_path / "run", "--epochs", "2", "--resume")) == 1
    assert "epochs was 1 and is 2" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(digits: Path, tmp_path: Path, capsys: Any) -> None:
    before = train(digits, tmp_path / "run", "--epochs", "1")
    assert main(command(digits, tmp_path / "run", "--epochs", "1")) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "labels missing", "not idx"])
def test_damaged_data_is_told_and_nothing_is_written(digits: Path, tmp_path: Path, damage: str, capsys: Any) -> None:
    images, labels = digits / "train-images-idx3-ubyte", digits / "train-labels-idx1-ubyte"
    if damage == "labels missing":
        labels.unlink()
    else:
        data = {"empty": b"", "truncated": images.read_bytes()[:-1], "not idx": b"hello" * 100}[damage]
        images.write_bytes(data)
    assert main(command(digits, tmp_path / "run")) == 1
    told = capsys.readouterr().err
    assert told.count("\n") <= 4 and "Traceback" not in told and "train-" in told
    assert not (tmp_path / "run").exists()


def test_augmented_pictures_are_the_same_for_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 255, (7, 28, 28)).astype(np.uint8), np.arange(7)
    one, two, other = (augment(batch, Generator(s))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.1
    assert one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1


def test_bilinear_sampling() -> None:
    pictures = to_float((np.random.default_rng(0).integers(0, 255, (3, 5, 6)).astype(np.uint8), None))[0]
    r, c = (np.broadcast_to(a, (3, 5, 6)).astype(np.float32) for a in np.meshgrid(range(5), range(6), indexing="ij"))
    np.testing.assert_allclose(bilinear(pictures, r, c), pictures, atol=1e-6)
    half = bilinear(pictures, r + 0.5, c)
    np.testing.assert_allclose(half[:, :-1], (pictures[:, :-1] + pictures[:, 1:]) / 2, atol=1e-6)
    np.testing.assert_allclose(half[:, -1], pictures[:, -1] / 2, atol=1e-6)  # beyond the edge it is black
    assert (bilinear(pictures, r + 90, c - 90) == 0).all()
