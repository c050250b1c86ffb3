"""Whole pictures against diffusers' pipelines, on tiny random models: the same seed, the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.errors import ZooError
from zoo.stable_diffusion import picture
from zoo.stable_diffusion.pipeline import Picture, Request, Step, generate

PROMPT, NEGATIVE = "the red bicycle, 3 wheels", "rain"
WIDTH, HEIGHT, STEPS = 32, 24, 4
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
TOLERANCE = 1e-3
"""Of pixels in 0 ... 1. Each step's sums differ by 1e-6 of their size; guidance and a few steps of random networks
multiply that. The pictures' numbers differ among themselves by more than 0.1."""


def theirs(kind: str, directory: Path, scheduler: str, seeds: tuple[int, ...], **options: Any) -> np.ndarray:
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)  # two that spin, on a busy machine, take longer
    parts = {
        "vae": diffusers.AutoencoderKL.from_pretrained(directory / "vae"),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(directory / "unet"),
        "scheduler": getattr(diffusers, scheduler)(**_of(getattr(diffusers, scheduler), SD)),
    }
    parts["unet"].register_to_config(sample_size=64)
    for name, cls in (("", transformers.CLIPTextModel), ("_2", transformers.CLIPTextModelWithProjection)):
        if (directory / f"text_encoder{name}").is_dir():
            parts[f"text_encoder{name}"] = cls.from_pretrained(directory / f"text_encoder{name}").eval()
            parts[f"tokenizer{name}"] = transformers.CLIPTokenizer.from_pretrained(directory / f"tokenizer{name}")
    if "XL" not in kind:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        parts["add_watermarker"] = False
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(generator=generators, output_type="np", num_inference_steps=STEPS, **options).images


def _of(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    import inspect

    return {key: value for key, value in values.items() if key in inspect.signature(cls.__init__).parameters}


def ours(directory: Path, device: str, scheduler: str, **options: Any) -> np.ndarray:
    import dataclasses

    model = zoo.load(directory, device=device)
    model.config = dataclasses.replace(model.config, scheduler={"_class_name": scheduler, **SD})
    events = list(generate(model, Request(steps=STEPS, **options)))
    found = [event.pixels for event in events if isinstance(event, Picture)]
    return np.stack(found) / 2 + 0.5


def close(mine: np.ndarray, known: np.ndarray) -> None:
    assert mine.shape == known.shape and known.std() > 0.03
    assert np.abs(np.clip(mine, 0, 1) - known).max() < TOLERANCE


@pytest.mark.parametrize(
    ("family", "scheduler", "device"),
    [("1", "PNDMScheduler", "numpy"), ("1", "EulerAncestralDiscreteScheduler", "cpu"), ("2", "DDIMScheduler", "cpu"),
     ("1", "DPMSolverMultistepScheduler", "cpu"), ("1", "LCMScheduler", "numpy")],
)  # fmt: skip
def test_text_to_picture(tiny: Any, family: str, scheduler: str, device: str) -> None:
    seeds = (7, 8)
    known = theirs(
        "StableDiffusionPipeline", tiny(family), scheduler, seeds, prompt=[PROMPT] * 2, negative_prompt=[NEGATIVE] * 2,
        guidance_scale=5.0, width=WIDTH, height=HEIGHT,
    )  # fmt: skip
    options = {"prompt": PROMPT, "negative": NEGATIVE, "guidance": 5.0, "width": WIDTH, "height": HEIGHT}
    together = ours(tiny(family), device, scheduler, seeds=seeds, batch=2, **options)
    close(together, known)
    alone = ours(tiny(family), device, scheduler, seeds=(8,), **options)
    np.testing.assert_allclose(alone[0], together[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_without_guidance_and_with_rescaled_guidance(tiny: Any, guidance: float) -> None:
    options = {"width": WIDTH, "height": HEIGHT}
    known = theirs(
        "StableDiffusionPipeline", tiny("1"), "DDIMScheduler", (3,), prompt=PROMPT, guidance_scale=guidance,
        guidance_rescale=0.7, **options,
    )  # fmt: skip
    close(ours(tiny("1"), "cpu", "DDIMScheduler", prompt=PROMPT, guidance=guidance, rescale=0.7, seeds=(3,), **options),
          known)  # fmt: skip


@pytest.fixture
def drawing(tmp_path: Path) -> tuple[Path, Path]:
    """A picture of another size than is drawn, and a mask."""
    from PIL import Image

    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8).astype(np.uint8)).resize((50, 41))
    mask = Image.new("L", (50, 41))
    mask.paste(255, (10, 8, 35, 30))
    small.save(tmp_path / "init.png")
    mask.save(tmp_path / "mask.png")
    return tmp_path / "init.png", tmp_path / "mask.png"


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize(
    ("scheduler", "strength"), [("PNDMScheduler", 0.8), ("EulerDiscreteScheduler", 0.6), ("DDIMScheduler", 1.0)]
)
def test_picture_to_picture(tiny: Any, drawing: Any, scheduler: str, strength: float, device: str) -> None:
    from PIL import Image

    image = Image.open(drawing[0]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    known = theirs(
        "StableDiffusionImg2ImgPipeline", tiny("1"), scheduler, (5,), prompt=PROMPT, image=image, strength=strength,
        guidance_scale=4.0,
    )  # fmt: skip
    mine = ours(
        tiny("1"), device, scheduler, prompt=PROMPT, guidance=4.0, seeds=(5,), width=WIDTH, height=HEIGHT,
        init=picture.read_pixels(drawing[0], WIDTH, HEIGHT), strength=strength,
    )  # fmt: skip
    close(mine, known)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("strength", [1.0, 0.75])
@pytest.mark.parametrize("family", ["1", "inpainting"])
def test_inpainting(tiny: Any, drawing: Any, family: str, strength: float, device: str) -> None:
    from PIL import Image

    image, mask = (Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS) for path in drawing)
    known = theirs(
        "StableDiffusionInpaintPipeline", tiny(family), "EulerAncestralDiscreteScheduler", (9,), prompt=PROMPT,
        image=image, mask_image=mask, strength=strength, guidance_scale=4.0, width=WIDTH, height=HEIGHT,
    )  # fmt: skip
    mine = ours(
        tiny(family), device, "EulerAncestralDiscreteScheduler", prompt=PROMPT, guidance=4.0, seeds=(9,), width=WIDTH,
        height=HEIGHT, init=picture.read_pixels(drawing[0], WIDTH, HEIGHT),
        mask=picture.read_mask(drawing[1], WIDTH, HEIGHT), strength=strength,
    )  # fmt: skip
    close(mine, known)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_sdxl(tiny: Any, negative: str | None, device: str) -> None:
    known = theirs(
        "StableDiffusionXLPipeline", tiny("xl"), "EulerDiscreteScheduler", (4,), prompt=PROMPT,
        negative_prompt=negative, guidance_scale=5.0, width=WIDTH, height=HEIGHT, original_size=(100, 90),
        crops_coords_top_left=(3, 5),
    )  # fmt: skip
    import dataclasses

    model = zoo.load(tiny("xl"), device=device)
    model.config = dataclasses.replace(
        model.config, scheduler={"_class_name": "EulerDiscreteScheduler", **SD}, force_zeros_for_empty_prompt=True
    )
    request = Request(PROMPT, negative, STEPS, 5.0, WIDTH, HEIGHT, (4,), original=(90, 100), crop=(5, 3))
    (found,) = (event for event in generate(model, request) if isinstance(event, Picture))
    close(found.pixels[None] / 2 + 0.5, known)


def test_sdxl_from_a_picture(tiny: Any, drawing: Any) -> None:
    from PIL import Image

    image = Image.open(drawing[0]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    known = theirs(
        "StableDiffusionXLImg2ImgPipeline", tiny("xl"), "EulerDiscreteScheduler", (4,), prompt=PROMPT,
        negative_prompt=NEGATIVE, guidance_scale=5.0, image=image, strength=0.5,
    )  # fmt: skip
    mine = ours(
        tiny("xl"), "cpu", "EulerDiscreteScheduler", prompt=PROMPT, negative=NEGATIVE, guidance=5.0, width=WIDTH,
        height=HEIGHT, seeds=(4,), init=picture.read_pixels(drawing[0], WIDTH, HEIGHT), strength=0.5,
    )  # fmt: skip
    close(mine, known)


@pytest.mark.parametrize("tile", [8, 12])
def test_tiles_are_diffusers(tiny: Any, tile: int) -> None:
    from zoo.stable_diffusion.decoding import tiled

    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    latents = np.random.default_rng(0).normal(size=(1, 22, 17, 4)).astype(np.float32)
    vae = diffusers.AutoencoderKL.from_pretrained(tiny("1") / "vae")
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, 2 * tile
    with torch.no_grad():
        known = vae.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample.numpy().transpose(0, 2, 3, 1)
    model = zoo.load(tiny("1"), device="cpu")
    mine = tiled(model.vae, zoo.tensor(latents, device="cpu"), tile)
    np.testing.assert_allclose(mine, known, rtol=0, atol=2e-5 * np.abs(known).max())


def test_what_overflows_in_half_precision_is_decoded_again(tiny: Any) -> None:
    from zoo.stable_diffusion.decoding import decode

    class Overflowing:
        """A VAE whose half-precision pixels are not numbers."""

        def __init__(self, vae: Any, wide: bool = False):
            self.vae, self.config, self.wide = vae, vae.config, wide

        def astype(self, dtype: Any) -> Any:
            assert dtype == np.float32
            return Overflowing(self.vae, True)

        def decode(self, latents: Any) -> Any:
            return self.vae.decode(latents) * (1.0 if self.wide else float("nan"))

    model = zoo.load(tiny("1"), device="cpu")
    latents = zoo.tensor(np.ones((1, 4, 4, 4), np.float32), device="cpu")
    pixels, warning = decode(Overflowing(model.vae), latents)
    known, quiet = decode(model.vae, latents)
    assert np.array_equal(pixels, known) and "float32" in warning and quiet == ""
    with pytest.raises(ZooError, match="not a number"):
        decode(model.vae, latents * float("nan"))


def test_steps_are_yielded_with_previews_and_networks_let_go(tiny: Any) -> None:
    model = zoo.load(tiny("1"), device="cpu")
    request = Request(
        PROMPT, steps=3, width=WIDTH, height=HEIGHT, seeds=(1, 2, 3), batch=2, previews=True, release=True
    )
    events = list(generate(model, request))
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.done for step in steps] == list(range(1, len(steps) + 1)) and steps[-1].total == len(steps)
    assert steps[0].guess is not None and steps[0].guess.shape == (2, HEIGHT // 2, WIDTH // 2, 4)
    assert [event.seed for event in events if isinstance(event, Picture)] == [1, 2, 3]
    assert not hasattr(model, "unet") and not hasattr(model, "text_encoder")


@pytest.mark.parametrize(
    ("family", "changed", "says"),
    [
        ("1", {"width": 31}, "--size 32x24"),
        ("1", {"width": 0}, "pixels"),
        ("1", {"steps": 0}, "0 steps"),
        ("1", {"steps": 2000}, "2000 steps"),
        ("1", {"scheduler": "heun"}, "no scheduler"),
        ("1", {"mask": np.zeros((1, HEIGHT, WIDTH, 1), np.float32)}, "needs a picture"),
        ("1", {"init": np.zeros((1, 8, 8, 3), np.float32)}, "another size"),
        ("1", {"init": np.zeros((1, HEIGHT, WIDTH, 3), np.float32), "strength": 0.1}, "nothing to do"),
        ("inpainting", {}, "a picture and a mask"),
    ],
)
def test_what_cannot_be_is_said(tiny: Any, family: str, changed: dict[str, Any], says: str) -> None:
    model = zoo.load(tiny(family), device="numpy")
    options: dict[str, Any] = {"prompt": PROMPT, "width": WIDTH, "height": HEIGHT, "steps": 3, **changed}
    with pytest.raises(ZooError) as error:
        list(generate(model, Request(**options)))
    assert says in str(error.value)
