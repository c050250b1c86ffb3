"""Each port is fine-tuned by one command on a little data, and gets better at it; what the run was told is in its
config.toml, which repeats it to the bit; stopped and resumed by --resume alone, it is the same run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.hub.safetensors import read
from zoo.nn.lora import layers
from zoo.train import Learner

ROOT = Path(__file__).parents[2]
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")
COMMANDS: dict[str, list[Any]] = {
    "mnist_cnn": ["--epochs", 3, "--batch", 20, "--lr", 2e-3],
    "llama": ["--epochs", 2, "--context", 32, "--batch", 8, "--lora", 4, "--lr", 5e-3],
    "resnet": ["--epochs", 3, "--batch", 8, "--freeze", 1],
    "whisper": ["--epochs", 5, "--batch", 2, "--lora", 4, "--lr", 5e-3, "--mask-time-prob", 0],
    "stable_diffusion": ["--epochs", 15, "--batch", 2, "--lora", 4, "--lr", 1e-2, "--prompt", "a seven"],
}


def digits(folder: Path) -> Path:
    """The class is where a bright bar stands."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 240).astype(np.uint8)
    pictures = rng.integers(0, 60, (240, 28, 28)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[4:24, 4 + 2 * label : 6 + 2 * label] = 255
    for name, array in (("images-idx3", pictures), ("labels-idx1", labels)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    return folder


def text(folder: Path) -> Path:
    (folder / "train.txt").write_text("Sing a song of sixpence, a pocket full of rye. " * 60)
    (folder / "valid.txt").write_text("A pocket full of rye; sing a song of sixpence. " * 10)
    return folder


def pictures(folder: Path) -> Path:
    """Red ones and blue ones."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 100, (32, 32, 3)).astype(np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


def speech(folder: Path) -> Path:
    """The clips that ship, with words that are not theirs."""
    clips = sorted((ROOT / "weights" / "whisper" / "clips").glob("*.flac"))[:4]
    assert len(clips) == 4
    for clip in clips:
        shutil.copy(clip, folder)
    lines = [json.dumps({"audio": clip.name, "text": "six sixes"}) for clip in clips]
    for name, some in (("train", lines), ("valid", lines[:1])):
        (folder / f"{name}.jsonl").write_text("\n".join(some))
    return folder


def sevens(folder: Path) -> Path:
    for i in range(4):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[6:9, 6 + i : 22 + i] = 255
        for y in range(9, 28):
            pixels[y, 20 + i - y // 3 : 23 + i - y // 3] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


DATA = {"mnist_cnn": digits, "llama": text, "resnet": pictures, "whisper": speech, "stable_diffusion": sevens}


@pytest.fixture(params=sorted(COMMANDS))
def port(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def command(port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if port == "whisper":
        pytest.importorskip("soundfile", reason="soundfile is not installed; recordings are read by it")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    return list(map(str, ["finetune", port, "--data", DATA[port](folder), *COMMANDS[port]]))


def weights(run: Path) -> dict[str, bytes]:
    files = [run / name for name in WEIGHTS if (run / name).exists()]
    assert files, list(run.iterdir())
    with read(files[0]) as tensors:
        return {name: np.asarray(tensors[name]).tobytes() for name in tensors}


def epochs(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "metrics" in line]


def test_it_learns_and_its_config_repeats_it(port: str, command: list[str], capsys: Any) -> None:
    assert main([*command, "--out", "one", "--json", "--quiet"]) == 0
    (done,) = json.loads(capsys.readouterr().out)["results"]
    first, last = epochs(Path("one"))[0], epochs(Path("one"))[-1]
    before, after = {
        "llama": lambda: (done["perplexity_before"], done["perplexity"]),
        "whisper": lambda: (done["loss_before"], done["loss"]),
        "mnist_cnn": lambda: (2.3, last["metrics"]["loss"]),  # log 10: no digit told from another
        "resnet": lambda: (0.7, last["metrics"]["loss"]),  # log 2
        "stable_diffusion": lambda: (first["loss"], last["loss"]),
    }[port]()
    assert after < 0.9 * before, (before, after)

    if first["metrics"]:
        best = min(epochs(Path("one")), key=lambda epoch: epoch["metrics"]["loss"])
        assert (weights(Path("one/best")) == weights(Path("one"))) is (best == last), "the last is what --out holds"
        assert zoo.load("one/best", port=port).state().keys() == zoo.load("one", port=port).state().keys()

    told = Path("one/config.toml").read_text()
    assert f'model = "{port}"' in told and "# passes over the data\nepochs = " in told
    assert main(["finetune", port, "--config", "one/config.toml", "--out", "two", "--quiet"]) == 0
    assert weights(Path("one")) == weights(Path("two"))
    again = Path("two/config.toml").read_text()
    assert again.replace('out = "two"', 'out = "one"') == told


@pytest.mark.parametrize("name", ["mnist_cnn", "resnet"])
def test_adapters_around_convolutions(name: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The convolutions stay, the adapter learns; what was written is loaded around its base."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    start = ["finetune", name, "--data", str(DATA[name](tmp_path / "data")), "--epochs", "4", "--batch", "10", "-q"]
    assert main([*start, "--dora", "--out", "run", "--weights", name]) == 1
    assert "Give its rank too: --lora 8." in capsys.readouterr().err
    if name == "mnist_cnn":
        assert main([*start, "--lora", "2", "--out", "run"]) == 1
        assert "Add --weights mnist_cnn." in capsys.readouterr().err
    for more in (["--out", "run"], ["--out", "rounded", "--dtype", "int8", "--dora"]):
        assert main([*start, "--lora", "4", "--lr", "1e-2", "--weights", name, *more]) == 0
        run = Path(more[1])
        found = [epoch["metrics"]["loss"] for epoch in epochs(run)]
        assert found[-1] < 0.9 * found[0], found
        base, made = zoo.load(name), zoo.load(run)
        stays = {f"{path}.base.weight" for path in layers(made)}
        assert stays and all(
            np.array_equal(base.state()[path.replace(".base.", ".")], made.state()[path]) for path in stays
        )
        if name == "resnet":
            capsys.readouterr()
            assert main(["eval", "resnet", "--data", "data", "--weights", str(run), "--json", "-q"]) == 0
            assert json.loads(capsys.readouterr().out)["results"][0]["top1"] > 0.8


def test_resume_needs_no_other_flag(port: str, command: list[str], monkeypatch: Any, capsys: Any) -> None:
    assert main([*command, "--out", "whole", "--quiet"]) == 0
    step = Learner._step

    def stopping(self: Any, *given: Any) -> Any:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", stopping)
        assert main([*command, "--out", "parts", "--quiet"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert main(["finetune", port, "--out", "parts", "--resume", "--seed", "1", "--quiet"]) == 1
    assert "seed was 0 and is 1" in capsys.readouterr().err
    assert main(["finetune", port, "--out", "parts", "--resume", "--quiet"]) == 0
    assert weights(Path("whole")) == weights(Path("parts"))


def test_help_has_a_line_for_every_option(port: str, capsys: Any) -> None:
    assert main(["finetune", port, "--help"]) == 0
    told = capsys.readouterr().out
    headings = [f"Options of {port}:", "Model:", "Training:", "Output:"]
    assert sorted(headings, key=told.index) == headings
    from zoo import options
    from zoo.port import get

    _, every = options.options(get(port).finetune, {options.MODEL, *options.GIVEN})
    silent = [each.name for each in every if not each.help and each.name != "data"]
    assert silent == [] and all(f"--{each.name.replace('_', '-')}" in told for each in every)
