"""The weights that ship: what they are, that they see the cat, and torch's logits of them without torch."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.data.folder import read_folder
from zoo.hub import refs
from zoo.resnet import preprocess
from zoo.resnet.evaluate import ranks, share
from zoo.resnet.labels import CIFAR10


@pytest.mark.parametrize("device", ["numpy", None])
@pytest.mark.parametrize("folded", [False, True])
def test_logits_are_torchs(device: str | None, folded: bool) -> None:
    """Against values that zoo/resnet/reference.py stored."""
    stored = np.load(Path(__file__).parent / "reference.npz")
    model = zoo.load("resnet", device=device, dtype="float32")
    x = zoo.tensor(preprocess.of(model).normalise(stored["pictures"]), device=model.device)
    logits = (model.prepare() if folded else model)(x).numpy()
    np.testing.assert_allclose(logits, stored["logits"], rtol=0, atol=1e-4 * np.abs(stored["logits"]).max())


def test_without_an_argument_it_sees_a_cat(capsys: Any) -> None:
    assert main(["run", "resnet", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    (result,) = document["results"]
    assert document["weights"].endswith("resnet") and Path(result["file"]).name == "cat.jpg"
    assert result["top"][0]["label"] == "cat" and result["top"][0]["index"] == 3 and len(result["top"]) == 5


def test_it_is_small_and_says_what_it_is() -> None:
    checkpoint = refs.resolve("resnet")
    assert sum(file.stat().st_size for file in checkpoint.directory.iterdir()) < 1.5e6
    card = checkpoint.card()
    assert card["accuracy"] >= 0.88 and f"{100 * card['accuracy']:.2f} %" in card["summary"]
    assert list(zoo.load("resnet").config.id2label.values()) == list(CIFAR10)


def test_real_photographs_are_recognised(real: Any, capsys: Any) -> None:
    assert main(["run", "resnet", str(real("photos", "dog.jpg")), str(real("photos", "hub_dog.jpg")), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["top"][0]["label"] for r in results] == ["dog", "dog"]


def test_the_card_says_what_is_measured(real: Any, tmp_path: Path) -> None:
    """1,000 of the 5,000 pictures that were held out of training: 4 standard deviations are 4 %."""
    with tarfile.open(real("cifar10-jpeg", "train.tar.gz")) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and int(Path(member.name).stem) % 50 == 0:
                path = tmp_path / Path(member.name).parent.name / Path(member.name).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    held_out = read_folder(tmp_path)
    assert len(held_out) == 1000
    top1 = share(ranks(zoo.load("resnet").prepare(), held_out), 1)
    assert abs(top1 - refs.resolve("resnet").card()["accuracy"]) < 0.04
