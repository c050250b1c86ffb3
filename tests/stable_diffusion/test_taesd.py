"""TAESD against diffusers' AutoencoderTiny: with its real weights, and with random ones in diffusers' own layout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError
from zoo.stable_diffusion import taesd

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
NEAR = 2e-5
"""Of the largest value: twenty layers of float32 sums in another order."""


@pytest.fixture
def real() -> Path:
    if not (DATA / "taesd").exists():
        pytest.skip(f"no {DATA / 'taesd'} (ZOO_TEST_DATA)")
    return DATA / "taesd"


def diffusers_model():
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed; it is the reference")
    torch.manual_seed(0)
    return torch, diffusers.AutoencoderTiny().eval()


def photo() -> np.ndarray:
    """(1, 96, 128, 3) in -1 ... 1."""
    from PIL import Image

    if not (DATA / "photos").exists():
        pytest.skip(f"no {DATA / 'photos'} (ZOO_TEST_DATA)")
    picture = Image.open(DATA / "photos" / "dog.jpg").convert("RGB").resize((128, 96))
    return np.asarray(picture, np.float32)[None] / 127.5 - 1


def near(found, expected) -> bool:
    expected = expected.numpy().transpose(0, 2, 3, 1)
    return bool(np.abs(found.numpy() - expected).max() < NEAR * np.abs(expected).max())


def test_real_weights_give_what_diffusers_makes_of_them(real):
    torch, theirs = diffusers_model()
    from safetensors.torch import load_file

    halves = {half: load_file(real / f"taesd_{half}.safetensors") for half in ("encoder", "decoder")}
    named = {f"encoder.layers.{name}": value for name, value in halves["encoder"].items()}
    for name, value in halves["decoder"].items():
        number, _, rest = name.partition(".")
        named[f"decoder.layers.{int(number) - 1}.{rest}"] = value
    theirs.load_state_dict({name: value.float() for name, value in named.items()})
    pixels, noise = photo(), np.random.default_rng(0).standard_normal((2, 9, 7, 4)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(pixels.transpose(0, 3, 1, 2))).latents
        decoded = theirs.decode(latents).sample
        random = theirs.decode(torch.tensor(noise.transpose(0, 3, 1, 2))).sample
    for device in ("numpy", "cpu"):
        vae = taesd.load(real, device=device)
        moments = vae.encode(zoo.tensor(pixels, device=device))
        assert near(moments.mean, latents)
        assert near(vae.decode(zoo.tensor(latents.numpy().transpose(0, 2, 3, 1).copy(), device=device)), decoded)
        assert near(vae.decode(zoo.tensor(noise, device=device)), random)
        sample = moments.sample(zoo.tensor(np.ones(moments.mean.shape, np.float32), device=device))
        assert np.allclose(sample.numpy(), moments.mean.numpy(), atol=1e-6)


def test_a_photograph_there_and_back(real):
    """TAESD reaches 24.3 dB on a photograph (measured with another implementation): it is the right picture."""
    pixels = photo()
    vae = taesd.load(real, device="cpu").prepare()
    back = np.clip(vae.decode(vae.encode(zoo.tensor(pixels, device="cpu")).mean).numpy(), -1, 1)
    assert 10 * np.log10(4 / np.mean((back - pixels) ** 2)) > 20


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_the_layout_of_diffusers(tmp_path, device):
    torch, theirs = diffusers_model()
    theirs.save_pretrained(tmp_path)
    z = np.random.default_rng(0).standard_normal((1, 5, 6, 4)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.tensor(z.transpose(0, 3, 1, 2))).sample
    for ref in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        assert near(taesd.load(ref, device=device).decode(zoo.tensor(z, device=device)), expected)


def test_what_is_no_taesd(tmp_path, real):
    (tmp_path / "taesd_decoder.safetensors").write_bytes((real / "taesd_encoder.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="taesd_encoder"):
        taesd.load(tmp_path)
    (tmp_path / "taesd_encoder.safetensors").write_bytes((real / "taesd_encoder.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="do not fit TAESD"):
        taesd.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(WeightsError, match="fast VAE"):
        taesd.load(tmp_path)
