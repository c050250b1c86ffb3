"""Fine-tuning: the loss of diffusers' training scripts, adapters that diffusers reads, exact resume, data."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.core.errors import DataError, ZooError
from zoo.core.random import Generator
from zoo.hub import adapter, save
from zoo.hub.adapter import DIFFUSERS_FILE
from zoo.hub.files import write_json
from zoo.hub.safetensors import read as read_tensors
from zoo.nn import lora as adapters
from zoo.stable_diffusion import captioned
from zoo.stable_diffusion.finetune import TARGETS, Batches, Told, finetune, loss
from zoo.stable_diffusion.noising import Noising
from zoo.stable_diffusion.reference import model_of
from zoo.stable_diffusion.schedulers import from_config
from zoo.stable_diffusion.weights import documents
from zoo.train import Learner
from zoo.train.gradients import gradients

SD = {"_class_name": "DDPMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIDE = 16
MODULE = importlib.import_module("zoo.stable_diffusion.finetune")  # the package's attribute is the function


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures: two captions beside, one in metadata.jsonl."""
    directory, rng = tmp_path / "data", np.random.default_rng(0)
    directory.mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 24 + i, 3), np.uint8)).save(directory / f"{i}.png")
    (directory / "0.txt").write_text("the red bike\n")
    (directory / "1.txt").write_text("a (blue) bike")
    (directory / "metadata.jsonl").write_text(json.dumps({"file_name": "2.png", "text": "the sea"}) + "\n")
    return directory


@pytest.fixture
def weights(write_tokenizer: Any, tmp_path: Path) -> Path:
    directory = save(model_of("1", "cpu"), tmp_path / "random", port="stable_diffusion")
    write_tokenizer(directory / "tokenizer")
    write_json(directory / "model_index.json", documents(model_of("1", "cpu").config)["model_index.json"])
    return directory


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_scripts(tiny: Any, prediction: str, min_snr: float) -> None:
    """examples/text_to_image/train_text_to_image.py: forward noise, target, min-SNR weights, means."""
    directory = tiny("1")
    import diffusers
    import torch
    from diffusers.training_utils import compute_snr

    rng = np.random.default_rng(0)
    mean, deviation, text = (rng.normal(size=s).astype(np.float32) for s in ((3, 8, 6, 4), (3, 8, 6, 4), (3, 77, 24)))
    schedule = from_config({**SD, "prediction_type": prediction})
    noising = Noising(schedule.alphas_cumprod, prediction, 0.18215, min_snr=min_snr)
    batches = Batches(noising, [text], None, None)
    noisy, times, target, weights, told = batches((mean, np.abs(deviation), np.arange(3)), Generator(7))
    model = zoo.load(directory, device="cpu")
    live = model.unet.to(zoo.Autodiff(model.device)).train()
    batch = [zoo.tensor(part, device="cpu") for part in (noisy, times, target, weights, told)]
    mine = loss(live, batch)

    scheduler = diffusers.DDPMScheduler(**{k: v for k, v in SD.items() if k[0] != "_"}, prediction_type=prediction)
    draws = Generator(7)  # the same numbers: the draw of latents, then noise, then times
    first, noise = (draws.normal(mean.shape, device="numpy").numpy() for _ in range(2))
    latents = (mean + np.abs(deviation) * first) * np.float32(0.18215)
    t = torch.from_numpy(times.astype(np.int64))
    x, n = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (latents, noise))
    unet = diffusers.UNet2DConditionModel.from_pretrained(directory / "unet")
    wanted = n if prediction == "epsilon" else scheduler.get_velocity(x, n, t)
    output = unet(scheduler.add_noise(x, n, t), t, torch.from_numpy(text)).sample
    each = torch.nn.functional.mse_loss(output, wanted, reduction="none").mean(dim=(1, 2, 3))
    if min_snr:
        snr = compute_snr(scheduler, t)
        capped = torch.stack([snr, min_snr * torch.ones_like(t)], dim=1).min(dim=1)[0]
        each = each * capped / (snr if prediction == "epsilon" else snr + 1)
    known = each.mean()
    assert abs(float(mine) - float(known)) < 1e-5 * float(known)
    known.backward()
    grads = gradients(mine, live)
    theirs = unet.conv_in.weight.grad.numpy().transpose(0, 2, 3, 1)
    assert np.abs(grads["conv_in.weight"].numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_a_prior_weighs_as_in_dreambooth() -> None:
    """examples/dreambooth/train_dreambooth.py: mse of the own pictures, plus the weight times that of the others."""
    own, other = (np.full((2, 2, 2, 1), v, np.float32) for v in (1, 2))
    rows = Told(own, own * 0, np.zeros(2, np.int32), Told(other, other * 0, np.ones(2, np.int32)))
    schedule = from_config(SD)
    batches = Batches(Noising(schedule.alphas_cumprod, "epsilon", 1.0), [np.eye(2, dtype=np.float32)], None, 0.5)
    noisy, _, target, weights, told = batches(rows[np.arange(2)], Generator(0))
    assert told.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]] and noisy.shape == (4, 2, 2, 1)
    errors = np.asarray([1.0, 2.0, 3.0, 5.0])
    assert np.isclose((errors * weights).mean(), errors[:2].mean() + 0.5 * errors[2:].mean())
    assert target.shape == noisy.shape


def test_captions_are_left_out() -> None:
    schedule = from_config(SD)
    noising = Noising(schedule.alphas_cumprod, "epsilon", 1.0, empty=np.zeros(1, np.int32), drop=0.25)
    ones = np.ones((4000, 1, 1, 1), np.float32)
    *_, ids = noising((ones, ones, np.ones((4000, 1), np.int32)), Generator(3))
    assert abs(ids.mean() - 0.75) < 0.03  # four standard errors


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_is_what_diffusers_reads(tiny: Any, tmp_path: Path, dora: bool) -> None:
    directory = tiny("1")
    import diffusers
    import torch

    pytest.importorskip("peft")
    model = zoo.load(directory, device="cpu")
    adapters.attach(model.unet, 2, alpha=2, dora=dora, targets=(*TARGETS, "proj_in", "conv1"), seed=0)
    rng = Generator(5)
    for layer in adapters.layers(model.unet).values():
        layer.lora_B.set("weight", rng.normal(layer.lora_B.weight.shape, device="cpu"))
    adapter.save(model, tmp_path, "tiny")
    unet = diffusers.UNet2DConditionModel.from_pretrained(directory / "unet")
    from safetensors.torch import load_file

    tensors = load_file(str(tmp_path / DIFFUSERS_FILE))
    diffusers.StableDiffusionPipeline.load_lora_into_unet(tensors, network_alphas=None, unet=unet)
    draw = np.random.default_rng(0)
    x, text = draw.normal(size=(1, 8, 6, 4)).astype(np.float32), draw.normal(size=(1, 77, 24)).astype(np.float32)
    with torch.no_grad():
        known = unet(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.tensor([500]), torch.from_numpy(text)).sample
    given = [zoo.tensor(part, device="cpu") for part in (x, np.asarray([500.0], np.float32), text)]
    mine = model.unet(*given).numpy()
    theirs = known.numpy().transpose(0, 2, 3, 1)
    assert np.abs(mine - theirs).max() < 3e-5 * np.abs(theirs).max()
    plain = zoo.load(directory, device="cpu").unet(*given).numpy()
    assert np.abs(mine - plain).max() > 1e-3
    merged = adapters.merge(model.unet)
    assert np.abs(merged(*given).numpy() - mine).max() < 1e-5 and not adapters.layers(merged)


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_a_resumed_run_is_the_run(weights: Path, data: Path, tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"data": data, "size": SIDE, "batch": 2, "lr": 1e-3, "quiet": True, "drop": 0.1,
                               "min_snr": 5.0, "mirror": True}  # fmt: skip
    options |= {"lora": 2} if kind == "adapter" else {"ema": 0.9}
    (whole,) = finetune(zoo.load(weights), epochs=3, out=tmp_path / "whole", **options)
    assert whole.pictures == 3 and whole.steps == 9

    fit = Learner.fit
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "fit", lambda self, epochs: fit(self, steps=4))
        list(finetune(zoo.load(weights), epochs=3, out=tmp_path / "parts", **options))
    (resumed,) = finetune(zoo.load(weights), epochs=3, out=tmp_path / "parts", resume=True, **options)
    assert resumed.steps == 9 and resumed.loss == whole.loss
    name = DIFFUSERS_FILE if kind == "adapter" else "model.safetensors"
    with read_tensors(tmp_path / "whole" / name) as one, read_tensors(tmp_path / "parts" / name) as two:
        assert sorted(one) == sorted(two)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        if kind == "adapter":
            assert all(key.startswith("unet.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in one)
            assert any("to_out.0" in key for key in one)


def test_the_command_tunes_and_what_it_tuned_draws(
    weights: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(MODULE, "PRIOR_STEPS", 2)
    out = tmp_path / "tuned"
    arguments = ["--data", str(data), "--weights", str(weights), "--size", str(SIDE), "--epochs", "1",
                 "--out", str(out), "--prior", "a bike", "--prior-count", "1", "--json", "--quiet"]  # fmt: skip
    assert main(["finetune", "stable_diffusion", *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["pictures"] == 3 and result["steps"] == 3 and (out / "prior" / "0.png").is_file()
    assert (out / "tokenizer" / "vocab.json").is_file()
    picture = tmp_path / "p.png"
    draw = ["the red bike", "--weights", str(out), "--size", "16x16", "--steps", "1", "--out", str(picture)]
    assert main(["run", "stable_diffusion", *draw]) == 0 and picture.is_file()


def test_captions_and_pictures(data: Path, tmp_path: Path) -> None:
    found = captioned.read(data)
    assert [(pair.path.name, pair.caption) for pair in found] == [
        ("0.png", "the red bike"), ("1.png", "a (blue) bike"), ("2.png", "the sea"),
    ]  # fmt: skip
    array = captioned.pixels(data / "0.png", (8, 8))
    assert array.shape == (8, 8, 3) and -1 <= array.min() < array.max() <= 1
    assert np.array_equal(captioned.pixels(data / "0.png", (8, 8), mirrored=True), array[:, ::-1])
    Image.new("RGB", (9, 9)).save(data / "3.png")
    with pytest.raises(DataError, match=r"3\.png has none"):
        captioned.read(data)
    assert captioned.read(data, "a bike")[3][1] == "a bike"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"metadata\.jsonl:1"),
        ('{"file_name": 3, "text": "x"}', r"metadata\.jsonl:1"),
        ('{"file_name": "9.png", "text": "x"}', "9.png"),
    ],
)
def test_broken_metadata_is_named(data: Path, line: str, says: str) -> None:
    (data / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=says):
        captioned.read(data, "a bike")


def test_what_cannot_be_trained_is_said(weights: Path, data: Path, tmp_path: Path) -> None:
    model = zoo.load(weights)
    empty = tmp_path / "empty"
    empty.mkdir()
    for options, says in (
        ({"data": empty}, "no pictures"),
        ({"data": tmp_path / "absent"}, "no such file or directory"),
        ({"data": data, "size": 17}, "17 x 17"),
        ({"data": data, "drop": 1.5}, "--drop"),
        ({"data": data, "size": SIDE, "prior_data": data}, "--prior"),
    ):
        with pytest.raises(ZooError) as error:
            list(finetune(model, out=tmp_path / "out", quiet=True, **options))  # type: ignore[arg-type]
        assert says in str(error.value)
    assert not (tmp_path / "out").exists()
