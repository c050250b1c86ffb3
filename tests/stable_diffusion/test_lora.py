"""LoRA files against diffusers' load_lora_weights and fuse_lora, under both kinds of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.hub.formats import read
from zoo.hub.safetensors import write
from zoo.nn import quantize
from zoo.stable_diffusion import lora
from zoo.stable_diffusion.original import RESNET, renamed, unet_modules
from zoo.stable_diffusion.reference import FAMILIES, model_of, save_random

RANK, ALPHA, SCALE = 3, 5.0, 0.7
LAYERS = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "linear",
    "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0": "linear",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": "linear",
    "unet.down_blocks.0.attentions.0.proj_in": "1x1",
    "unet.mid_block.resnets.1.conv2": "3x3",
    "unet.down_blocks.0.downsamplers.0.conv": "3x3",
    "unet.up_blocks.1.resnets.0.time_emb_proj": "linear",
    "text_encoder.text_model.encoder.layers.1.self_attn.v_proj": "linear",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": "linear",
}  # fmt: skip


def parts(model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> down and up, as torch lays them out."""
    r = np.random.default_rng(0)
    modules = dict(model.named_modules())
    found = {}
    for path, kind in LAYERS.items():
        outputs, *_, inputs = modules[path].weight.shape
        window = {"linear": (), "1x1": (1, 1), "3x3": (3, 3)}[kind]
        down = r.standard_normal((RANK, inputs, *window)).astype(np.float32)
        up = r.standard_normal((outputs, RANK, *(1 for _ in window))).astype(np.float32)
        found[path] = 0.1 * down, 0.1 * up
    return found


def kohya(path: str) -> str:
    component, _, rest = path.partition(".")
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + rest.replace(".", "_")


def write_file(kind: str, place: Path, model) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for path, (down, up) in parts(model).items():
        if kind == "kohya":
            names = (f"{kohya(path)}.lora_down.weight", f"{kohya(path)}.lora_up.weight", f"{kohya(path)}.alpha")
            tensors |= dict(zip(names, (down, up, np.asarray(ALPHA, np.float32)), strict=True))
        else:
            tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    write(place / f"{kind}.safetensors", tensors, {"format": "pt"})
    return place / f"{kind}.safetensors"


def fused_by_diffusers(directory: Path, file: Path) -> dict[str, np.ndarray]:
    """Every tensor of U-Net and text encoder with the change in it, by our names, as torch lays them out."""
    for module in ("torch", "diffusers", "transformers", "peft"):
        pytest.importorskip(module, reason=f"{module} is not installed; it is the reference")
    import diffusers
    import transformers

    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(directory / "vae"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(directory / "text_encoder"), tokenizer=None,
        unet=diffusers.UNet2DConditionModel.from_pretrained(directory / "unet"), scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.fuse_lora(lora_scale=SCALE)
    pipe.unload_lora_weights()
    text = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    found = {f"unet.{name}": value.numpy() for name, value in pipe.unet.state_dict().items()}
    return found | {f"text_encoder.text_model.{name}": value.numpy() for name, value in text.items()}


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_merged_weights_are_those_that_diffusers_fuses(tmp_path, kind):
    """1e-6 of the largest weight: one product and one sum in float32."""
    pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    pytest.importorskip("diffusers", reason="diffusers is not installed; it is the reference")
    import zoo

    directory = save_random("1", tmp_path / "model")
    model = zoo.load(directory, device="numpy")
    before = {name: tensor.numpy() for name, tensor in model.state().items()}
    file = write_file(kind, tmp_path, model)
    expected = fused_by_diffusers(directory, file)
    merged = lora.merge(model, file, SCALE)
    assert merged == lora.Merged(len(LAYERS), ())
    changed = set()
    for name, tensor in model.state().items():
        path = name.removesuffix(".weight")
        if kind == "kohya" and path.startswith("text_encoder.") and path in LAYERS:
            # diffusers 0.42 does not find these names in the text encoders of transformers 5
            down, up = parts(model)[path]
            expected[name] = before[name] + SCALE * ALPHA / RANK * (up @ down)
        if name.startswith("vae."):
            continue
        theirs = expected[name].transpose(0, 2, 3, 1) if tensor.ndim == 4 else expected[name].reshape(tensor.shape)
        assert np.abs(tensor.numpy() - theirs).max() < 1e-6 * np.abs(theirs).max(), name
        if not np.array_equal(tensor.numpy(), before[name]):
            changed.add(path)
    assert changed == set(LAYERS)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_negative_scale_takes_it_away(tmp_path, device):
    model = model_of("1", device)
    before = {name: tensor.numpy() for name, tensor in model.state().items()}
    file = write_file("kohya", tmp_path, model)
    lora.merge(model, file, 1.0)
    lora.merge(model, file, -1.0)
    assert all(np.allclose(t.numpy(), before[name], atol=1e-6) for name, t in model.state().items())


def test_sdxl_under_the_names_of_the_original_code(tmp_path):
    """What kohya calls lora_unet_output_blocks_0_1_... is the layer that it stands for."""
    model = model_of("xl", "numpy")
    path = "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_k"
    names = unet_modules(FAMILIES["xl"].unet)
    theirs = renamed(f"{path}.weight", names, RESNET).removesuffix(".weight")
    assert theirs == "output_blocks.0.1.transformer_blocks.1.attn1.to_k"
    text = "text_model_encoder_layers_0_mlp_fc1"
    tensors = {}
    for key, inputs, outputs in (
        (f"lora_unet_{theirs.replace('.', '_')}", 32, 32),
        (f"lora_te1_{text}", 24, 48),
        (f"lora_te2_{text}", 16, 48),
    ):
        tensors[f"{key}.lora_down.weight"] = np.ones((2, inputs), np.float32)
        tensors[f"{key}.lora_up.weight"] = np.ones((outputs, 2), np.float32)
    write(tmp_path / "xl.safetensors", {name: np.ascontiguousarray(a) for name, a in tensors.items()}, {})
    before = {name: tensor.numpy() for name, tensor in model.state().items()}
    assert lora.merge(model, tmp_path / "xl.safetensors") == lora.Merged(3, ())
    for name in (
        f"unet.{path}",
        *(f"{e}.text_model.encoder.layers.0.mlp.fc1" for e in ("text_encoder", "text_encoder_2")),
    ):
        name += ".weight"
        assert np.allclose(model.state()[name].numpy(), before[name] + 2, atol=1e-6), name


def test_what_belongs_to_no_layer_is_reported(tmp_path):
    model = model_of("1", "numpy")
    file = write_file("kohya", tmp_path, model)
    with read(file) as tensors:
        held = {name: tensors[name] for name in tensors}
    odd = {"lora_unet_nowhere.lora_down.weight": np.ones((2, 3), np.float32), "lora_unet_conv_in.dora_scale":
           np.ones(3, np.float32)}  # fmt: skip
    write(tmp_path / "more.safetensors", {**held, **odd}, {})
    assert set(lora.merge(model, tmp_path / "more.safetensors").unknown) == set(odd)


def test_what_does_not_fit_changes_nothing(tmp_path):
    model = model_of("1", "numpy")
    before = {name: tensor.numpy() for name, tensor in model.state().items()}
    file = write_file("kohya", tmp_path, model)
    with read(file) as tensors:
        held = {name: tensors[name] for name in tensors}
    wrong = {**held, f"{kohya(list(LAYERS)[-1])}.lora_up.weight": np.ones((7, RANK), np.float32)}
    write(tmp_path / "wrong.safetensors", wrong, {})
    with pytest.raises(WeightsError, match="takes 24 channels and gives 48"):
        lora.merge(model, tmp_path / "wrong.safetensors")
    write(tmp_path / "none.safetensors", {"a.weight": np.ones(2, np.float32)}, {})
    with pytest.raises(WeightsError, match="none of its 1 tensors"):
        lora.merge(model, tmp_path / "none.safetensors")
    quantize(model.unet, "int8")
    with pytest.raises(WeightsError, match="rounded to int8"):
        lora.merge(model, file)
    state = model.state()
    assert all(np.array_equal(state[name].numpy(), a) for name, a in before.items() if not name.startswith("unet."))
