"""`zoo run`, `eval` and `finetune resnet`: real pictures in, results and errors out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import hub
from zoo.cli.main import main
from zoo.core.random import Generator
from zoo.resnet.classify import SAMPLES
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.resnet.preprocess import Preprocessing

CAT = str(SAMPLES / "cat.jpg")
SMALL = ResNetConfig(
    embedding_size=8, hidden_sizes=(16, 32), depths=(1, 1), layer_type="basic", num_labels=3, small_stem=True,
    downsample_in_first_stage=True, preprocessing=Preprocessing(32, 32, "bicubic"),
)  # fmt: skip


@pytest.fixture
def call(capsys: Any) -> Any:
    """`call("run", ...)` -> (exit code, stdout, stderr)."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: Any) -> Path:
    """A small network that knows nothing."""
    path = tmp_path_factory.mktemp("weights") / "small"
    return hub.save(ResNet(SMALL).init(Generator(0), "numpy"), path, port="resnet")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: Any, real: Any) -> Path:
    """60 real pictures of each of two classes."""
    root = tmp_path_factory.mktemp("photographs")
    with tarfile.open(real("cifar10-jpeg", "train.tar.gz")) as tar:
        for member in tar:
            kind, name = member.name.split("/")[-2:] if member.name.count("/") >= 2 else ("", "")
            if kind in ("airplane", "automobile") and name.endswith(".jpg") and int(name[:4]) < 60:
                (root / kind).mkdir(exist_ok=True)
                (root / kind / name).write_bytes(tar.extractfile(member).read())
            if kind == "bird":
                break
    return root


# --- run --------------------------------------------------------------------------------------------------------------


def test_the_five_likeliest_classes(call: Any, small: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("tench\ngoldfish\nshark\n")
    code, out, err = call("run", "resnet", CAT, "--weights", small, "--labels", names, "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0 and result["file"] == CAT and len(result["top"]) == 3 and "shorter side 32" in err
    probabilities = [found["probability"] for found in result["top"]]
    assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 1) < 1e-5
    assert all(["tench", "goldfish", "shark"][f["index"]] == f["label"] for f in result["top"])


def test_without_names_the_numbers_are_given(call: Any, small: Path) -> None:
    code, out, err = call("run", "resnet", CAT, "--weights", small, "--top", 2)
    assert code == 0 and len(out.splitlines()) == 2 and all(line.startswith("class ") for line in out.splitlines())
    assert "--labels FILE" in err


def test_several_files_and_folders(call: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    Image.new("L", (50, 20), 90).save(tmp_path / "in" / "deeper" / "b.png")
    Image.new("RGBA", (1, 1)).save(tmp_path / "in" / "a.png")
    code, out, _ = call("run", "resnet", tmp_path / "in", CAT, "--weights", small, "--json", "-q")
    assert code == 0
    assert [Path(r["file"]).name for r in json.loads(out)["results"]] == ["a.png", "b.png", "cat.jpg"]
    code, out, _ = call("run", "resnet", tmp_path / "in", "--weights", small, "-q", "--top", 1)
    assert code == 0 and [line.endswith(".png") for line in out.splitlines()] == [True, False, True, False]


def test_a_turned_picture_is_seen_upright(call: Any, small: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(CAT) as cat:
        cat.save(tmp_path / "upright.png")
        cat.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    _, out, _ = call("run", "resnet", tmp_path / "upright.png", tmp_path / "turned.png", "--weights", small, "--json")
    first, second = json.loads(out)["results"]
    assert first["top"] == second["top"]


def test_errors_are_three_lines(call: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([tmp_path / "text.jpg"], "not an image"), ([tmp_path / "none.jpg"], "no such file"),
        ([tmp_path / "empty"], "the folder holds none"), ([CAT, "--labels", tmp_path / "none"], "cannot read"),
        ([CAT, "--top", 0], "0 likeliest"),
    ):  # fmt: skip
        code, out, err = call("run", "resnet", *arguments, "--weights", small, "-q")
        assert code == 1 and said in err and out == "" and len(err.splitlines()) <= 3


def test_damaged_weights_give_no_answer(call: Any, small: Path, tmp_path: Path) -> None:
    model = zoo.load(small, device="numpy")
    model.set("classifier.1.bias", zoo.tensor(np.array([0, np.nan, 0], np.float32), device="numpy"))
    code, out, err = call("run", "resnet", CAT, "--weights", hub.save(model, tmp_path / "nan", port="resnet"), "-q")
    assert code == 1 and out == "" and "NaN" in err


# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_counts_what_run_says(call: Any, small: Path, photographs: Path) -> None:
    code, out, _ = call("run", "resnet", photographs, "--weights", small, "--json", "-q", "--top", 3)
    seen = json.loads(out)["results"]
    # the folders are not its classes, but two of three are missing a number
    code, _, err = call("eval", "resnet", "--data", photographs, "--weights", small)
    assert code == 1 and "there are 2 folders; the network has 3 classes" in err
    model = zoo.load(small, device="numpy")
    named = dict(enumerate(("automobile", "ship", "airplane")))
    model.config = ResNetConfig(**{**vars(SMALL), "id2label": {str(i): name for i, name in named.items()}})
    hub.save(model, small.parent / "named", port="resnet")
    code, out, err = call("eval", "resnet", "--data", photographs, "--weights", small.parent / "named", "--json")
    (result,) = json.loads(out)["results"]
    right = [named[r["top"][0]["index"]] == Path(r["file"]).parent.name for r in seen]
    assert code == 0 and result["pictures"] == 120 and result["top5"] == 1.0
    assert result["top1"] == pytest.approx(np.mean(right)) and set(result["by_class"]) == {"airplane", "automobile"}
    code, out, _ = call("eval", "resnet", "--data", photographs, "--held-out", "--weights", small.parent / "named")
    assert code == 0 and "on 12 pictures" in out


def test_data_that_is_not_there_is_told(call: Any, small: Path, tmp_path: Path) -> None:
    code, _, err = call("eval", "resnet", "--data", tmp_path / "none", "--weights", small, "-q")
    assert code == 1 and "no such directory" in err and len(err.splitlines()) == 3


# --- finetune ---------------------------------------------------------------------------------------------------------


def train(call: Any, data: Path, out: Path, weights: Path, *more: Any) -> Any:
    code, text, err = call(
        "finetune", "resnet", "--data", data, "--out", out, "--weights", weights, "--json", "--batch", 18, *more
    )
    assert code == 0, err
    return json.loads(text)["results"][0], err


def test_training_learns_two_classes_of_real_pictures(
    call: Any, small: Path, photographs: Path, tmp_path: Path
) -> None:
    """From the weights that ship, whose ten classes are not these two: a new head, and a few steps."""
    result, err = train(call, photographs, tmp_path / "run", "resnet", "--epochs", 4)
    assert "the weights have 10 classes, your data has 2: the head is new" in err
    assert result["classes"] == ["airplane", "automobile"] and (result["examples"], result["unseen"]) == (108, 12)
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    by_epoch = [line["loss"] for line in losses if "metrics" in line]
    assert by_epoch[-1] < 0.8 * by_epoch[0]
    assert result["top1"] >= 0.9  # 12 pictures; 0.5 by guessing
    code, out, _ = call("eval", "resnet", "--data", photographs, "--weights", tmp_path / "run", "--json")
    assert code == 0 and json.loads(out)["results"][0]["top1"] >= 0.95
    code, out, _ = call("run", "resnet", photographs / "airplane" / "0001.jpg", "--weights", tmp_path / "run", "-q")
    assert {line.split()[0] for line in out.splitlines()} == {"airplane", "automobile"}


def test_stopped_and_resumed_it_ends_in_the_same_bits(
    call: Any, small: Path, photographs: Path, tmp_path: Path
) -> None:
    from zoo.train import Learner

    options = ("--epochs", 2, "--mixup", 0.4, "--colour", 0.3, "-q")
    train(call, photographs, tmp_path / "whole", small, *options)
    step = Learner._step

    def stopping(self: Any, *given: Any) -> Any:
        if self.step == 4:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    arguments = ("finetune", "resnet", "--data", photographs, "--out", tmp_path / "parts", "--weights", small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_step", stopping)
        code, _, err = call(*arguments, "--batch", 18, *options)
    assert code == 130 and "stopped after step 5" in err and not (tmp_path / "parts" / "model.safetensors").exists()
    code, _, err = call(*arguments, "--batch", 18, *options, "--resume", "--lr", 1)
    assert code == 1 and "lr was 0.001 and is 1.0" in err
    train(call, photographs, tmp_path / "parts", small, *options, "--resume")
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_frozen_stages_stay_as_they_are(call: Any, small: Path, photographs: Path, tmp_path: Path) -> None:
    _, err = train(call, photographs, tmp_path / "run", small, "--epochs", 1, "--freeze", 1)
    assert "values are trained" in err
    before, after = zoo.load(small).state(), zoo.load(tmp_path / "run").state()
    changed = {name for name in before if not np.array_equal(before[name].numpy(), after[name].numpy())}
    assert changed and all(name.startswith(("resnet.encoder.stages.1.", "classifier")) for name in changed)
    assert any(name.endswith("running_mean") for name in changed)
    code, _, err = call("finetune", "resnet", "--data", photographs, "--weights", small, "--freeze", 3, "--out", "x")
    assert code == 1 and "cannot freeze 3 stages" in err


def test_a_head_that_knows_the_classes_is_kept_in_their_order(call: Any, small: Path, tmp_path: Path) -> None:
    from zoo.resnet.finetune import with_head

    model = zoo.load(small, device="numpy")
    model.config = ResNetConfig(**{**vars(SMALL), "id2label": {"0": "c", "1": "a", "2": "b"}})
    x = zoo.tensor(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32), device="numpy")
    before = model(x).numpy()
    kept, said = with_head(model, ("a", "b", "c"), seed=0)
    np.testing.assert_array_equal(kept(x).numpy(), before[:, [1, 2, 0]])
    assert "is kept" in said and list(kept.config.id2label.values()) == ["a", "b", "c"]


def test_data_that_cannot_be_trained_on_is_told(call: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "only" / f"{i}.png")
    for data, said in ((tmp_path, "holds the class only only"), (tmp_path / "only", "3 pictures and no folders")):
        code, _, err = call("finetune", "resnet", "--data", data, "--weights", small, "--out", tmp_path / "out", "-q")
        assert code == 1 and said in err and not (tmp_path / "out").exists()
