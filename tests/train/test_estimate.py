"""What a run will take is told before it is begun, and comes true; nothing else happens."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.nn import lora
from zoo.train import estimate as estimates
from zoo.train.estimate import Estimate


def digits(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, array in (
        ("images-idx3", rng.integers(0, 255, (1800, 28, 28))),
        ("labels-idx1", rng.integers(0, 10, 1800)),
    ):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    return folder


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("red", "blue"):
        (folder / name).mkdir()
        for i in range(100):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def text(folder: Path) -> Path:
    (folder / "train.txt").write_text("Sing a song of sixpence, a pocket full of rye. " * 200)
    (folder / "valid.txt").write_text("A pocket full of rye; sing a song of sixpence. " * 20)
    return folder


CASES: dict[str, tuple[Any, list[str]]] = {
    "mnist_cnn": (digits, ["mnist_cnn", "--epochs", "2", "--ema", "0.9"]),
    "resnet": (pictures, ["resnet", "--epochs", "2", "--batch", "32"]),
    "llama": (text, ["llama", "--epochs", "1", "--context", "128", "--batch", "4"]),
    "llama-dora": (text, ["llama", "--epochs", "1", "--context", "128", "--batch", "4", "--lora", "4", "--dora"]),
}


@pytest.fixture
def data(tmp_path: Path, request: Any) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return request.param(folder)


def estimated(arguments: list[str], capsys: Any) -> dict[str, Any]:
    assert main(["finetune", *arguments, "--estimate", "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)["estimate"]


@pytest.mark.parametrize(("data", "arguments"), CASES.values(), ids=CASES, indirect=["data"])
def test_what_is_told_comes_true(data: Path, arguments: list[str], tmp_path: Path) -> None:
    """Each in a process of its own, as users have it."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "zoo", "finetune", *arguments, "--data", str(data), "--out", str(out)]
    told = subprocess.run([*command, "--estimate", "--json", "-q"], capture_output=True, text=True, check=True)
    e = json.loads(told.stdout)["estimate"]
    assert not out.exists() and e["fits"] and e["advice"] == []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    number, unit = re.findall(r"peak memory ([0-9.]+) ([MG])B", done.stderr)[-1]
    peak = float(number) * {"M": 1e6, "G": 1e9}[unit]
    assert e["memory"]["total"] == pytest.approx(peak, rel=0.15)
    run = json.loads((out / "run.json").read_text())
    assert (e["trainable"], e["parameters"], e["steps_per_epoch"], e["steps"]) == (
        run["trainable"], run["parameters"], run["steps_per_epoch"], run["total"]
    )  # fmt: skip
    kept = [file.stat().st_size for file in (out / "checkpoints").iterdir()]
    assert e["checkpoint_bytes"] == pytest.approx(max(kept), rel=0.1, abs=20_000)  # names, shapes, settings
    ends = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in ends if "metrics" in line][-1]
    assert seconds / 4 < e["seconds"] < seconds * 4  # time is told, not promised: epochs of one run differ too
    parts = e["memory"]
    assert parts["program"] > 0 and parts["activations"] > 0 and parts["gradients"] == 4 * e["trainable"]
    held = sum(parts[name] for name in ("program", "weights", "gradients", "optimizer", "average", "activations"))
    assert held <= parts["total"] * 1.01


@pytest.mark.parametrize("data", [text], indirect=True)
@pytest.mark.parametrize("rank", [0, 4])
def test_the_model_stays_as_it_was(data: Path, tmp_path: Path, rank: int) -> None:
    from zoo.llama.finetune import finetune

    (data / "train.txt").write_text("Sing a song of sixpence. " * 100)
    options: dict[str, Any] = {"data": data, "context": 64, "epochs": 1, "lora": rank, "quiet": True}
    model, fresh = zoo.load("llama", device="cpu"), zoo.load("llama", device="cpu")
    (told,) = finetune(model, out=tmp_path / "none", estimate=True, **options)
    assert isinstance(told, Estimate) and not (tmp_path / "none").exists() and not lora.layers(model)
    before = fresh.state()
    assert all(np.array_equal(before[path].numpy(), tensor.numpy()) for path, tensor in model.state().items())
    for name, one in (("after", model), ("fresh", fresh)):
        list(finetune(one, out=tmp_path / name, **options))
    same = fresh.state()
    assert all(np.array_equal(same[path].numpy(), tensor.numpy()) for path, tensor in model.state().items())


@pytest.mark.parametrize("data", [text], indirect=True)
def test_what_does_not_fit(data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    arguments = ["llama", "--data", str(data), "--out", str(tmp_path / "out"), "--context", "256", "--batch", "8"]
    whole = estimated(arguments, capsys)["memory"]
    room = whole["total"] - whole["activations"] // 2
    monkeypatch.setattr(estimates, "memory", lambda: whole["program"] + whole["weights"])
    monkeypatch.setattr(estimates, "available_memory", lambda: room - whole["program"] - whole["weights"])
    tight = estimated(arguments, capsys)
    assert tight["fits"] is False and tight["step_seconds"] > 0
    assert [line.split()[0] for line in tight["advice"]] == ["--checkpoint", "--batch", "--lora"]
    fewer, times = map(int, re.findall(r"--batch (\d+) --accumulate (\d+)", tight["advice"][1])[0])
    assert 1 <= fewer <= 4 and fewer * times >= 8
    adapter = estimated([*arguments, "--lora", "2", "--checkpoint"], capsys)
    assert adapter["memory"]["gradients"] < whole["gradients"] / 20

    monkeypatch.setattr(estimates, "available_memory", lambda: 1_000_000)
    assert main(["finetune", *arguments, "--estimate"]) == 0
    told = capsys.readouterr()
    said = told.out
    assert "use it" not in told.err  # nothing was written
    assert "more than" in said and "does not fit" in said and "to fit   --lora 8" in said and "time" not in said


@pytest.mark.parametrize("data", [text], indirect=True)
def test_what_is_said(data: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "train.txt").write_text("Sing a song of sixpence. " * 40)  # fewer steps than are timed
    arguments = ["llama", "--data", str(data), "--out", str(tmp_path / "out"), "--context", "64", "--batch", "2"]
    arguments += ["--estimate", "--epochs", "2", "--patience", "1", "--accumulate", "2"]
    command = [sys.executable, "-m", "zoo", "finetune", *arguments]  # this process holds what other tests left
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("memory", "weights", "gradients", "optimizer", "activations of 2 rows", "it fits", "2 epochs", "disk"):
        assert name in said
    assert not (tmp_path / "out").exists()
