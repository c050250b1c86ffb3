"""Single files of the original code: diffusers' own conversion is the oracle, and export is the way back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.hub import load, save
from zoo.hub.export import export
from zoo.hub.formats import read
from zoo.hub.safetensors import write
from zoo.stable_diffusion import original
from zoo.stable_diffusion.config import StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from zoo.stable_diffusion.model import StableDiffusion

TEXT: dict[str, Any] = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                        "num_attention_heads": 1, "eos_token_id": 98, "projection_dim": 64}  # fmt: skip
UNET: dict[str, Any] = {
    "block_out_channels": (64, 128), "layers_per_block": 2, "cross_attention_dim": 64, "attention_head_dim": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE = VaeConfig(block_out_channels=(32, 64), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
SCHEDULER = {**original.SCHEDULER, "prediction_type": "epsilon"}
FAMILIES = {
    "1": StableDiffusionConfig(TextConfig(**TEXT), UNetConfig(**UNET), VAE, scheduler=SCHEDULER),
    "2": StableDiffusionConfig(
        TextConfig(**{**TEXT, "hidden_act": "gelu"}),
        UNetConfig(**{**UNET, "attention_head_dim": (1, 2), "use_linear_projection": True}), VAE,
        scheduler={**SCHEDULER, "prediction_type": "v_prediction"},
    ),
    "xl": StableDiffusionConfig(
        TextConfig(**TEXT),
        UNetConfig(**{**UNET, "cross_attention_dim": 128, "attention_head_dim": (1, 2), "use_linear_projection": True,
                      "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time",
                      "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
                      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                      "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}),
        dataclasses.replace(VAE, scaling_factor=0.13025),
        text_encoder_2=TextConfig(**{**TEXT, "hidden_act": "gelu", "projection_dim": 32, "with_projection": True}),
        force_zeros_for_empty_prompt=True, scheduler=SCHEDULER,
    ),
}  # fmt: skip


def files(family: str, place: Path) -> tuple[StableDiffusion, Path, Path]:
    """A model, its checkpoint as diffusers publishes it, and its single file, with what such files hold beside."""
    model = StableDiffusion(FAMILIES[family]).init(0, "numpy")
    save(model, place / "ours", port="stable_diffusion")
    export(place / "ours", place / "diffusers")
    model.config = dataclasses.replace(model.config, layout="original")
    save(model, place / "single", port="stable_diffusion")
    export(place / "single", place / "original")
    model.config = dataclasses.replace(model.config, layout="diffusers")
    with read(place / "original" / "model.safetensors") as tensors:
        held = {name: tensors[name] for name in tensors}
    more = {"betas": np.ones(9, np.float32), "model_ema.diffusion_modelout0weight": np.ones(3, np.float32),
            "model_ema.decay": np.ones(1, np.float32)}  # fmt: skip
    if family == "2":
        at = f"{original.OPEN_CLIP_2}transformer.resblocks."
        more |= {name.replace(f"{at}1.", f"{at}2."): a for name, a in held.items() if name.startswith(f"{at}1.")}
        more |= {f"{original.OPEN_CLIP_2}text_projection": np.ones((64, 64), np.float32),
                 f"{original.OPEN_CLIP_2}logit_scale": np.ones((), np.float32)}  # fmt: skip
    write(place / "file.safetensors", {**held, **more}, {})
    return model, place / "diffusers", place / "file.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_model_that_was_written(tmp_path, family):
    model, _, file = files(family, tmp_path)
    found = load(file, device="numpy")
    assert found.config == dataclasses.replace(model.config, layout="original")
    expected = model.state()
    assert all(np.array_equal(tensor.numpy(), expected[name].numpy()) for name, tensor in found.state().items())
    save(found, tmp_path / "kept", port="stable_diffusion")
    export(tmp_path / "kept", tmp_path / "back")
    with read(file) as there, read(tmp_path / "back" / "model.safetensors") as back:
        assert all(there[name].tobytes() == back[name].tobytes() for name in back)
        assert len(back) == len(there) - {"1": 3, "2": 17, "xl": 3}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_converts_it_to_the_same(tmp_path, family):
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    pytest.importorskip("diffusers", reason="diffusers is not installed; it is the reference")
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as theirs
    from safetensors.torch import load_file

    _, directory, file = files(family, tmp_path)
    held = load_file(file)
    unet, vae = (kind.load_config(directory / name) for kind, name in
                 ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))  # fmt: skip
    converted = {"unet": theirs.convert_ldm_unet_checkpoint(dict(held), unet),
                 "vae": theirs.convert_ldm_vae_checkpoint(dict(held), vae)}  # fmt: skip

    class Shaped:
        class config:
            hidden_size = 64

    if family == "1":
        converted["text_encoder"] = theirs.convert_ldm_clip_checkpoint(held, remove_prefix=original.CLIP_1)
    elif family == "xl":
        converted["text_encoder"] = theirs.convert_ldm_clip_checkpoint(held, remove_prefix=original.CLIP_XL)
        converted["text_encoder_2"] = theirs.convert_open_clip_checkpoint(
            Shaped, {name: value for name, value in held.items() if not name.endswith("text_projection")},
            prefix=original.OPEN_CLIP_XL,
        )  # fmt: skip
    else:
        unread = f"{original.OPEN_CLIP_2}transformer.resblocks.2."  # theirs knows the last layer by the number 23
        converted["text_encoder"] = theirs.convert_open_clip_checkpoint(
            Shaped, {name: value for name, value in held.items() if not name.startswith(unread)}
        )
    for component, state in converted.items():
        published = load_file(next((directory / component).glob("*.safetensors")))
        if component == "vae":  # they leave the 1x1 convolutions of the attention for later
            state = {name: value.reshape(published[name].shape) for name, value in state.items()}
        absent = {"text_projection.weight"} if component == "text_encoder_2" else set()
        assert set(state) == set(published) - absent, component
        assert all(torch.equal(value, published[name]) for name, value in state.items()), component


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ("cond_stage_model.", "no text encoder"),
        ("first_stage_model.", "no VAE"),
        ("model.diffusion_model.out.2", "out.2"),
    ],
)
def test_files_without_a_component(tmp_path, lost, why):
    _, _, file = files("1", tmp_path)
    with read(file) as tensors:
        held = {name: tensors[name] for name in tensors if not name.startswith(lost)}
    write(tmp_path / "part.safetensors", held, {})
    with pytest.raises(WeightsError) as error:
        load(tmp_path / "part.safetensors", port="stable_diffusion")
    assert why in error.value.why
