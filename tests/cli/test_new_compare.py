"""`zoo new` and `zoo compare` as programs: results on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.cli.main import main
from zoo.hub.safetensors import write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "published"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "toy", "hidden_size": 8, "vocab_size": 9}')
    tensors = {"fc.weight": np.ones((8, 8), np.float32), "fc.bias": np.zeros(8, np.float32)}
    write(directory / "model.safetensors", tensors, {})
    return directory


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    code = main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_new_prints_the_folder_alone(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "new", "toy_cli", "--from", checkpoint, "--out", tmp_path / "ports")
    assert (code, out) == (0, f"{tmp_path / 'ports' / 'toy_cli'}\n")
    assert "2 tensors" in err and "zoo compare" in err
    assert sorted(path.name for path in (tmp_path / "ports/toy_cli").iterdir()) == [
        "README.md", "__init__.py", "config.py", "example.py", "model.py", "reference.py", "run.py", "test_parity.py",
        "weights.py",
    ]  # fmt: skip
    code, out, err = run(capsys, "new", "toy_cli", "--from", checkpoint, "--out", tmp_path / "ports")
    assert code == 1 and out == "" and "there already" in err


def test_new_of_nothing_says_so(tmp_path: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "new", "toy", "--from", tmp_path / "absent", "--out", tmp_path)
    assert code == 1 and out == "" and err.count("\n") <= 4
    assert not (tmp_path / "toy").exists()


def test_compare_holds_two_devices_against_each_other(capsys: Any) -> None:
    code, out, _ = run(capsys, "compare", "mnist_cnn", "--device", "numpy", "--device", "numpy", "--json")
    found = json.loads(out)
    assert code == 0 and found["agrees"] and found["first_difference"] is None
    assert all(row["max"] == 0 for row in found["modules"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnist_cnn"], "nothing to compare with"),
        (["mnist_cnn", "--device", "numpy", "--device", "numpy", "--reference", "x"], "two devices"),
        (["lama", "--reference", "x"], "Did you mean llama"),
        (["llama", "--reference", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_compared_is_told(arguments: list[str], words: str, capsys: Any) -> None:
    code, out, err = run(capsys, "compare", *arguments)
    assert code == 1 and out == "" and words in err


def test_stored_activations_need_no_reference(tmp_path: Path, capsys: Any) -> None:
    """What compare keeps, it reads: ours as the reference here."""
    import zoo
    from zoo.compare import record
    from zoo.llama.example import example

    model = zoo.load("llama", device="numpy", dtype="float32")
    record(model, example(model.config), "kept").save(tmp_path / "kept.npz")
    code, out, _ = run(capsys, "compare", "llama", "--reference", "llama", "--activations", tmp_path / "kept.npz")
    assert code == 0 and "agree within" in out
    (tmp_path / "kept.npz").write_bytes(b"no zip")
    code, out, err = run(capsys, "compare", "llama", "--reference", "llama", "--activations", tmp_path / "kept.npz")
    assert code == 1 and "cannot read the activations" in err
