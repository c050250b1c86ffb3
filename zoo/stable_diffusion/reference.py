"""Makes tests/stable_diffusion/reference.npz: what small random models of each family give by diffusers and
transformers, for the tests that run without them.

    python -m zoo.stable_diffusion.reference

The weights follow from a seed, so that only inputs' seeds and results are stored.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.random import Generator
from zoo.core.tensor import Tensor, tensor
from zoo.hub.components import INDEX
from zoo.hub.export import export
from zoo.hub.files import write_json
from zoo.hub.load import save
from zoo.stable_diffusion.config import StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.unet import Added
from zoo.stable_diffusion.weights import documents

OUT = Path(__file__).parents[2] / "tests" / "stable_diffusion" / "reference.npz"
TEXT = TextConfig(vocab_size=99, hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                  eos_token_id=2, projection_dim=20)  # fmt: skip
TEXT_2 = TextConfig(vocab_size=99, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                    eos_token_id=98, projection_dim=20, hidden_act="gelu", with_projection=True)  # fmt: skip
UNET: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 2, "cross_attention_dim": 24, "attention_head_dim": 2,
    "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE = VaeConfig(block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
FAMILIES = {
    "1": StableDiffusionConfig(TEXT, UNetConfig(**UNET), VAE),
    "2": StableDiffusionConfig(
        TextConfig(**{**vars(TEXT), "hidden_act": "gelu", "eos_token_id": 98}),
        UNetConfig(**{**UNET, "attention_head_dim": (2, 4), "use_linear_projection": True}), VAE,
        scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    ),
    "xl": StableDiffusionConfig(
        TEXT,
        UNetConfig(**{**UNET, "cross_attention_dim": 40, "attention_head_dim": (2, 4), "use_linear_projection": True,
                      "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time",
                      "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68,
                      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                      "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}),
        VAE, text_encoder_2=TEXT_2,
    ),
}  # fmt: skip
"""What the published checkpoints of SD 1.x, 2.x and XL differ in, small."""
IDS = np.random.default_rng(0).integers(3, 98, (2, 77)).astype(np.int32)
IDS[0, 9:], IDS[1, 40:] = 98, 98  # end tokens, and what is padded with them
SIZES = np.array([[512, 512, 0, 0, 512, 512], [256, 300, 3, 4, 1024, 768]], np.float32)
TIMESTEPS = np.array([17, 801], np.float32)


def inputs() -> dict[str, np.ndarray]:
    """Channels-last. The latents' size does not divide by two, so that the way up must crop."""
    r = np.random.default_rng(1)
    return {name: r.standard_normal(shape).astype(np.float32) for name, shape in
            {"latents": (2, 10, 13, 4), "pixels": (1, 20, 28, 3), "z": (1, 6, 5, 4)}.items()}  # fmt: skip


def model_of(family: str, device: Any, seed: int = 0) -> StableDiffusion:
    """With weights of a seed; those of normalisations, which begin as ones and zeros, differ a little from these."""
    model, rng = StableDiffusion(FAMILIES[family]).init(seed, device), Generator(seed + 1)
    vectors = {path: value for path, value in model.state().items() if value.ndim == 1}
    model.update({path: v + rng.normal(v.shape, std=0.1, device=model.device) for path, v in vectors.items()})
    return model


def ours(model: StableDiffusion) -> dict[str, np.ndarray]:
    """Everything that the networks give."""
    given: dict[str, Tensor] = {name: tensor(value, device=model.device) for name, value in inputs().items()}
    ids = tensor(IDS, device=model.device)
    text, pooled = model.encode_text([ids, ids])
    added = None if pooled is None else Added(pooled, tensor(SIZES, device=model.device))
    timesteps = tensor(TIMESTEPS, device=model.device)
    found = {"text": text, "noise": model.unet(given["latents"], timesteps, text, added)}
    found |= dict(zip(("mean", "log_variance"), model.vae.encode(given["pixels"]), strict=True))
    found["decoded"] = model.vae.decode(given["z"])
    if pooled is not None:
        found["pooled"] = pooled
    return {name: np.asarray(value) for name, value in found.items()}


def theirs(directory: Path, stored: str = "float32", dtype: str = "float32") -> dict[str, np.ndarray]:
    """The same from the components of a published directory, by diffusers and transformers, in `dtype`, with weights
    rounded to `stored`."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    def prepared(kind: Any, name: str) -> Any:
        part = kind.from_pretrained(directory / name).eval()
        return part.to(getattr(torch, stored)).to(getattr(torch, dtype))

    def tensor_of(value: np.ndarray) -> Any:
        return torch.tensor(value).to(getattr(torch, dtype))

    given = {name: tensor_of(value.transpose(0, 3, 1, 2)) for name, value in inputs().items()}
    ids = torch.tensor(IDS.astype(np.int64))
    with torch.no_grad():
        first = prepared(CLIPTextModel, "text_encoder")(ids, output_hidden_states=True)
        text, added = first.last_hidden_state, None
        if (directory / "text_encoder_2").is_dir():
            second = prepared(CLIPTextModelWithProjection, "text_encoder_2")(ids, output_hidden_states=True)
            text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            added = {"text_embeds": second.text_embeds, "time_ids": tensor_of(SIZES)}
        unet = prepared(UNet2DConditionModel, "unet")
        noise = unet(given["latents"], torch.tensor(TIMESTEPS), text, added_cond_kwargs=added).sample
        vae = prepared(AutoencoderKL, "vae")
        latents = vae.encode(given["pixels"]).latent_dist
        pictures = {"noise": noise, "mean": latents.mean, "log_variance": latents.logvar,
                    "decoded": vae.decode(given["z"]).sample}  # fmt: skip
    found = {name: value.float().numpy().transpose(0, 2, 3, 1) for name, value in pictures.items()}
    found["text"] = text.float().numpy()
    if added is not None:
        found["pooled"] = added["text_embeds"].float().numpy()
    return found


def save_random(family: str, directory: Path, seed: int = 0, **options: Any) -> Path:
    """A checkpoint of the family with random weights, made and written by diffusers and transformers.

    options: of diffusers' save_pretrained, as variant="fp16".
    """
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    published = documents(FAMILIES[family])
    for name, document in published.items():
        write_json(directory / name, document)
    for name, entry in published[INDEX].items():
        if not isinstance(entry, list) or f"{name}/config.json" not in published:
            continue
        library, kind = entry
        if library == "transformers":
            config = transformers.CLIPTextConfig.from_pretrained(directory / name)
            part = getattr(transformers, kind)(config)
        else:
            part = getattr(diffusers, kind).from_config(getattr(diffusers, kind).load_config(directory / name))
        with torch.no_grad():
            for p in part.parameters():
                if p.ndim == 1:
                    p.add_(torch.randn_like(p) * 0.1)
        part.save_pretrained(directory / name, **(options if library == "diffusers" else {}))
    return directory


def main() -> None:
    import diffusers

    stored: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            save(model_of(family, "numpy"), Path(place, "ours"), port="stable_diffusion")
            export(Path(place, "ours"), Path(place, "published"))
            stored |= {f"{family}.{name}": value for name, value in theirs(Path(place, "published")).items()}
    np.savez_compressed(OUT, **stored)  # type: ignore[arg-type]
    print(f"{OUT}: {len(FAMILIES)} families, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
