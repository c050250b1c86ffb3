"""The networks against diffusers' and transformers': tiny random models of SD 1.x, 2.x and XL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.hub import load
from zoo.port import Port
from zoo.stable_diffusion.config import StableDiffusionConfig
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.reference import FAMILIES, IDS, SIZES, TIMESTEPS, inputs, model_of, ours, save_random, theirs
from zoo.stable_diffusion.unet import Added
from zoo.stable_diffusion.weights import documents, table

PORT = Port("stable_diffusion", "", StableDiffusionConfig, StableDiffusion, table, print, documents=documents)
"""The networks' share of the port."""


def published(family: str, directory: Path) -> Path:
    for module in ("torch", "diffusers", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed; it is the reference")
    return save_random(family, directory)


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Within 2e-5 of the largest value: up to forty layers of float32 sums in another order come to 1e-6 of it."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert np.abs(value - expected[name]).max() < 2e-5 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_checkpoint_gives_what_it_gives_there(tmp_path, family):
    directory = published(family, tmp_path)
    expected = theirs(directory)
    for device in ("numpy", "cpu"):
        close(ours(load(directory, port=PORT, device=device)), expected)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_values(family, device):
    """The same, against values that zoo/stable_diffusion/reference.py stored: neither torch nor diffusers is needed."""
    stored = np.load(Path(__file__).parent / "reference.npz")
    mine = {name.removeprefix(f"{family}."): stored[name] for name in stored.files if name.startswith(f"{family}.")}
    close(ours(model_of(family, device)), mine)


def test_clip_skip_is_that_of_diffusers(tmp_path):
    """diffusers takes hidden_states[-(skip + 1)] through the last normalisation."""
    directory = published("1", tmp_path)
    import torch
    import transformers

    encoder = transformers.CLIPTextModel.from_pretrained(directory / "text_encoder").eval()
    with torch.no_grad():
        states = encoder(torch.tensor(IDS.astype(np.int64)), output_hidden_states=True).hidden_states
        expected = encoder.final_layer_norm(states[-2]).numpy()
    model = load(directory, port=PORT, device="cpu")
    text, pooled = model.encode_text([zoo.tensor(IDS, device="cpu")], skip=1)
    assert pooled is None
    close({"text": text.numpy()}, {"text": expected})


def test_keys_and_values_of_the_text_once_for_many_steps():
    model = model_of("xl", "cpu")
    ids, x = zoo.tensor(IDS, device="cpu"), zoo.tensor(inputs()["latents"], device="cpu")
    text, pooled = model.encode_text([ids, ids])
    added = Added(pooled, zoo.tensor(SIZES, device="cpu"))
    once = model.unet.keys_values(text)
    for t in TIMESTEPS:
        time = zoo.tensor(np.array([t, t]), device="cpu")
        whole = model.unet(x, time, text, added).numpy()
        assert np.array_equal(model.unet(x, time, once, added).numpy(), whole)


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
@pytest.mark.parametrize("rows", [1, 2])
def test_latents_that_several_texts_share(kind, rows):
    """1e-5: kernels may take another way for half the batch; the texts make 1e-2."""
    model = model_of(kind, "cpu")
    latents = inputs()["latents"][:rows]
    x, both = (zoo.tensor(a, device="cpu") for a in (latents, np.concatenate([latents] * 2)))
    ids = np.concatenate([IDS, IDS[:, ::-1]])[: 2 * rows]
    text, pooled = model.encode_text([zoo.tensor(np.ascontiguousarray(ids), device="cpu")] * (2 if kind == "xl" else 1))
    sizes = zoo.tensor(np.concatenate([SIZES] * 2)[: 2 * rows], device="cpu")
    added = Added(pooled, sizes) if kind == "xl" else None
    time = zoo.tensor(np.full(1, 801, np.float32), device="cpu")
    expected = model.unet(both, time, text, added).numpy()
    assert np.abs(expected[:rows] - expected[rows:]).max() > 0.01 * np.abs(expected).max()  # the text counts
    for given in (text, model.unet.keys_values(text)):
        assert np.abs(model.unet(x, time, given, added).numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_one_time_for_all_latents():
    """1e-6: the sums over a broadcast row and over two equal ones are the same; kernels may differ in a last place."""
    model = model_of("1", "cpu")
    x = zoo.tensor(inputs()["latents"], device="cpu")
    text, _ = model.encode_text([zoo.tensor(IDS, device="cpu")])
    one, two = (model.unet(x, zoo.tensor(np.full(n, 801, np.float32), device="cpu"), text).numpy() for n in (1, 2))
    assert np.abs(one - two).max() < 1e-6 * np.abs(two).max()


@pytest.mark.parametrize("family", ["1", "xl"])
def test_the_gradient_reaches_every_parameter(family):
    model = model_of(family, "cpu")
    device = model.device
    live = model.to(zoo.Autodiff(device))
    given = {name: zoo.tensor(value, device=device) for name, value in inputs().items()}
    ids = zoo.tensor(IDS, device=device)
    text, pooled = live.encode_text([ids, ids])
    added = None if pooled is None else Added(pooled, zoo.tensor(SIZES, device=device))
    noise = live.unet(given["latents"], zoo.tensor(TIMESTEPS, device=device), text, added)
    draw = ops.normal((1, 10, 14, 4), seed=3, device=device)
    pixels, moments = live.vae(given["pixels"], draw)
    loss = sum(ops.mean(ops.square(y)) for y in (noise, pixels, moments.mean, moments.log_variance, text))
    grads = loss.backward()
    unread = ("text_encoder.text_model.encoder.layers.2.", "text_encoder.text_model.final_layer_norm.")
    for path, parameter in live.parameters().items():
        if family == "xl" and path.startswith(unread):
            continue  # SDXL takes what goes into the first encoder's last layer
        assert np.abs(grads[parameter].numpy()).max() > 0, path


def test_a_prepared_model_gives_the_same():
    model = model_of("1", "cpu")
    before = ours(model)
    close(ours(model.prepare()), before)


def test_rounded_to_int8_it_still_tells_the_noise():
    """5 %: each layer of int8 is about 1 % off, and residual sums keep that from adding up."""
    model = model_of("1", "cpu")
    expected = ours(model)["noise"]
    zoo.nn.quantize(model.unet, "int8")
    found = ours(model.prepare())["noise"]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
