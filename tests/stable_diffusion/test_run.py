"""`zoo run stable_diffusion`: the picture, what the PNG says, repeating it, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.cli.main import main
from zoo.hub import save
from zoo.stable_diffusion import picture
from zoo.stable_diffusion.reference import model_of


@pytest.fixture
def weights(write_tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> Path:
    """A checkpoint of ours with random weights; the working directory is empty."""
    directory = save(model_of("1", "cpu"), tmp_path / "random", port="stable_diffusion")
    write_tokenizer(directory / "tokenizer")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return directory


def draw(weights: Path, *arguments: str) -> int:
    return main(["run", "stable_diffusion", *arguments, "--weights", str(weights)])


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_says_how_it_was_made_and_is_drawn_again(weights: Path, capsys: Any) -> None:
    options = ["--size", "24x16", "--steps", "3", "--seed", "5", "--negative", "rain", "--scheduler", "euler_a",
               "--guidance", "4", "--out", "bike.png"]  # fmt: skip
    assert draw(weights, "a (red:1.3) bike", *options) == 0
    streams = capsys.readouterr()
    assert streams.out == "bike.png\n"
    assert "24x16 · 3 steps, euler_a · guidance 4 · seed 5 · expected:" in streams.err and "s a step" in streams.err
    settings = picture.settings_of("bike.png")
    assert settings["prompt"] == "a (red:1.3) bike" and settings["seed"] == 5 and settings["steps"] == 3
    assert settings["scheduler"] == "euler_a" and settings["weights"] == str(weights) and "revision" in settings
    assert Image.open("bike.png").size == (24, 16)
    assert draw(weights, "--from", "bike.png", "--out", "again.png") == 0
    assert np.array_equal(pixels("bike.png"), pixels("again.png"))
    assert picture.settings_of("again.png") == settings
    assert draw(weights, "--from", "bike.png", "--out", "other.png", "--seed", "6") == 0
    assert not np.array_equal(pixels("bike.png"), pixels("other.png"))


def test_the_document(weights: Path, capsys: Any) -> None:
    assert draw(weights, "a bike", "--size", "16x16", "--steps", "2", "--count", "2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "stable_diffusion" and document["device"] == "cpu"
    assert document["images"] == ["a-bike-0.png", "a-bike-1.png"] and all(Path(p).exists() for p in document["images"])
    assert document["seed"] == 0 and document["steps"] == 2 and document["scheduler"] == "PNDMScheduler"
    assert document["stats"]["s_per_step"] > 0 and document["stats"]["peak_mb"] > 0
    assert draw(weights, "a bike", "--size", "16x16", "--steps", "2", "--seed", "1", "--out", "alone") == 0
    assert np.abs(pixels("alone.png").astype(int) - pixels("a-bike-1.png")).max() <= 1
    assert draw(weights, "a bike", "--size", "16x16", "--steps", "2", "--quiet") == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines()[-1] == "a-bike-0-2.png"  # nothing is written over


def test_an_empty_prompt_draws_something(weights: Path) -> None:
    assert draw(weights, "", "--size", "16x16", "--steps", "2") == 0
    assert pixels("picture-0.png").shape == (16, 16, 3)


def test_from_a_picture_and_a_mask(weights: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (21, 33, 3), np.uint8)).save("photo.png")
    Image.fromarray((np.indices((21, 33)).sum(0) % 20 > 9).astype(np.uint8) * 255).save("mask.png")
    options = ["--steps", "4", "--init", "photo.png", "--mask", "mask.png", "--strength", "0.9", "--out", "new.png"]
    assert draw(weights, "a bike", *options) == 0
    assert Image.open("new.png").size == (32, 16)  # each side down to a multiple of 8
    assert draw(weights, "--from", "new.png", "--out", "again.png") == 0
    assert np.array_equal(pixels("new.png"), pixels("again.png"))
    Image.fromarray(rng.integers(0, 255, (21, 33, 3), np.uint8)).save("photo.png")
    assert draw(weights, "--from", "new.png") == 1
    assert "photo.png is not the file that it was drawn from" in capsys.readouterr().err


def test_previews(weights: Path) -> None:
    assert draw(weights, "a bike", "--size", "16x16", "--steps", "3", "--preview", "2", "--out", "p.png") == 0
    assert pixels("p-preview.png").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "--size", "17x16"], "cannot draw 17 x 16 pixels"),
        (["x", "--size", "large"], "WIDTHxHEIGHT"),
        (["x", "--steps", "0"], "0 steps"),
        (["x", "--count", "0"], "nothing to draw"),
        (["x", "--scheduler", "heun"], "there is no scheduler 'heun'"),
        (["x", "--init", "absent.png"], "there is no such file"),
        (["x", "--init", "text.png"], "not an image"),
        (["x", "--mask", "photo.png"], "needs a picture"),
        (["x", "--out", "bike.jpg"], "PNG files only"),
        (["--from", "photo.png"], "does not say how it was made"),
        (["--from", "other.png"], "it was drawn by someone/else"),
        (["x", "--size", "90000x90000"], "not enough memory"),
    ],
)
def test_errors_are_three_lines_and_nothing_is_written(
    weights: Path, arguments: list[str], says: str, capsys: Any
) -> None:
    Image.new("RGB", (16, 16)).save("photo.png")
    Path("text.png").write_text("no picture")
    picture.write(Path("other.png"), np.zeros((8, 8, 3), np.uint8), {"prompt": "x", "weights": "someone/else"})
    before = sorted(Path.cwd().iterdir())
    assert draw(weights, *arguments) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and sorted(Path.cwd().iterdir()) == before


def test_cut_prompts_say_what_is_lost(weights: Path, capsys: Any) -> None:
    assert draw(weights, "a " * 75 + "red bike", "--size", "16x16", "--steps", "1", "--cut", "--out", "o.png") == 0
    assert "cut off after 75 tokens, and lost: red bike" in capsys.readouterr().err


def test_other_files_say_nothing_or_too_much(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    from zoo.core.errors import DataError

    for text in ("{", "[]", '{"prompt": 3}', "x" * (2 << 20)):
        about = PngImagePlugin.PngInfo()
        about.add_itxt(picture.KEY, text, zip=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=about)
        with pytest.raises(DataError):
            picture.settings_of(tmp_path / "odd.png")


def test_a_lora_and_a_small_autoencoder(weights: Path, real: Any, capsys: Any) -> None:
    from zoo.core.random import Generator
    from zoo.hub import adapter
    from zoo.nn import lora as adapters
    from zoo.stable_diffusion.finetune import TARGETS

    model = model_of("1", "cpu")
    adapters.attach(model.unet, 2, alpha=2, targets=TARGETS)
    for layer in adapters.layers(model.unet).values():
        layer.lora_B.set("weight", Generator(5).normal(layer.lora_B.weight.shape, device="cpu"))
    adapter.save(model, Path("adapter"), str(weights))
    options = ["a bike", "--size", "16x16", "--steps", "2"]
    assert draw(weights, *options, "--out", "plain.png") == 0
    assert draw(weights, *options, "--lora", f"adapter/{adapter.DIFFUSERS_FILE}=0.5", "--out", "half.png") == 0
    assert "× 0.5: " in capsys.readouterr().err and picture.settings_of("half.png")["lora"]
    assert not np.array_equal(pixels("plain.png"), pixels("half.png"))
    assert draw(weights, "--from", "half.png", "--out", "again.png") == 0
    assert np.array_equal(pixels("half.png"), pixels("again.png"))
    assert draw(weights, *options, "--lora", f"adapter/{adapter.DIFFUSERS_FILE}=much") == 1
    assert (
        draw(weights, *options, "--vae", str(real("taesd", "taesd_decoder.safetensors").parent), "--out", "t.png") == 0
    )
    assert pixels("t.png").shape == (16, 16, 3)


def test_a_lora_changes_packed_weights_as_it_changes_plain_ones(weights: Path) -> None:
    import zoo
    from zoo.core.random import Generator
    from zoo.hub import adapter
    from zoo.nn import lora as adapters
    from zoo.stable_diffusion import lora
    from zoo.stable_diffusion.finetune import TARGETS

    tuned = model_of("1", "cpu")
    adapters.attach(tuned.unet, 2, alpha=2, targets=TARGETS)
    for layer in adapters.layers(tuned.unet).values():
        layer.lora_B.set("weight", Generator(5).normal(layer.lora_B.weight.shape, device="cpu"))
    adapter.save(tuned, Path("adapter"), str(weights))
    given = [zoo.tensor(np.ones(shape, np.float32), device="cpu") for shape in ((1, 8, 8, 4), (1,), (1, 77, 24))]
    plain, packed = zoo.load(weights, device="cpu"), zoo.load(weights, device="cpu").prepare()
    for model in (plain, packed):
        assert lora.merge(model, Path("adapter") / adapter.DIFFUSERS_FILE).unknown == ()
    found = [model.prepare().unet(*given).numpy() for model in (plain, packed)]
    assert np.array_equal(found[0], found[1])
    known = tuned.unet(*given).numpy()
    assert np.abs(found[0] - known).max() < 3e-5 * np.abs(known).max()
