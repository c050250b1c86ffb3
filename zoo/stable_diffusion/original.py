"""The single files of the original code (CompVis/stable-diffusion, Stability-AI/stablediffusion and generative-models):
one .safetensors or .ckpt with U-Net, VAE and text encoders, and no config.

What it is follows from names and shapes, but for what no shape tells: the number of heads (8 in SD 1.x, channels / 64
in 2.x and XL), the scale of latents, and that 2.x tells the velocity and not the noise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.table import Drop, Operation, Row, Table, drop, permute, row, third, transpose
from zoo.stable_diffusion.config import StableDiffusionConfig, TextConfig, UNetConfig, VaeConfig
from zoo.stable_diffusion.text_encoder import TextEncoder
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import Vae
from zoo.stable_diffusion.weights import CHANNELS_LAST, MATRIX, ORIGINAL

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_1, OPEN_CLIP_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
HEADS_1, HEAD_DIM = 8, 64
NAMES = "the names of the original code"
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
"""As diffusers publishes it for all of them."""
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip


# --- names ------------------------------------------------------------------------------------------------------------


def unet_modules(c: UNetConfig) -> dict[str, str]:
    """Our path of each part of the U-Net -> that of the original code, which counts blocks from first to last."""
    found = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    found |= {f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)}
    found |= {f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)}
    levels, n = len(c.block_out_channels), 1
    for i in range(levels):
        for j in range(c.layers_per_block):
            found |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{n}.0",
                      f"down_blocks.{i}.attentions.{j}": f"input_blocks.{n}.1"}  # fmt: skip
            n += 1
        found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
        n += 1
    found |= {
        f"mid_block.{part}": f"middle_block.{i}" for i, part in enumerate(("resnets.0", "attentions.0", "resnets.1"))
    }
    n = 0
    for i, kind in enumerate(c.up_block_types):
        for j in range(c.layers_per_block + 1):
            found |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{n}.0",
                      f"up_blocks.{i}.attentions.{j}": f"output_blocks.{n}.1"}  # fmt: skip
            n += 1
        found[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{2 if kind.startswith('Cross') else 1}.conv"
    return found


def vae_modules(c: VaeConfig) -> dict[str, str]:
    """The same of the VAE, whose decoder counts levels from the finest."""
    found = {}
    last = len(c.block_out_channels) - 1
    for side in ("encoder", "decoder"):
        found[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        found |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        found[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
    for i in range(last + 1):
        found |= {
            f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}" for j in range(c.layers_per_block)
        }
        found[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        ups = c.layers_per_block + 1
        found |= {f"decoder.up_blocks.{i}.resnets.{j}": f"decoder.up.{last - i}.block.{j}" for j in range(ups)}
        found[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{last - i}.upsample"
    return found


def renamed(path: str, modules: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """A path with its longest known beginning replaced, and then what `inner` replaces of the rest."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        if (theirs := modules.get(".".join(parts[:n]))) is not None:
            rest = ".".join(parts[n:])
            for ours, other in inner.items():
                if rest.startswith(f"{ours}."):
                    rest = other + rest[len(ours) :]
                    break
            return f"{theirs}.{rest}"
    return path


# --- the table --------------------------------------------------------------------------------------------------------


def table(config: StableDiffusionConfig) -> Table:
    """Every tensor of this config by its name in the original code."""
    return _table(config.unet, config.vae, config.text_encoder, config.text_encoder_2)


@functools.lru_cache(maxsize=4)
def _table(unet: UNetConfig, vae: VaeConfig, first: TextConfig, second: TextConfig | None) -> Table:
    rows: list[Row | Drop] = []
    names = unet_modules(unet)
    for path, meta in UNet(unet).spec().items():
        squeezed = not unet.use_linear_projection and path.endswith(("proj_in.weight", "proj_out.weight"))
        change = [MATRIX] if squeezed else [permute(0, 2, 3, 1)] if len(meta.shape) == 4 else []
        rows.append(row(f"unet.{path}", UNET + renamed(path, names, RESNET), *change, why=CHANNELS_LAST))
    names = vae_modules(vae)
    for path, meta in Vae(vae).spec().items():
        attends = ".attentions." in path
        inner = VAE_ATTENTION if attends else {"conv_shortcut": "nin_shortcut"}
        change = [MATRIX] if attends and len(meta.shape) == 2 else [permute(0, 2, 3, 1)] if len(meta.shape) == 4 else []
        rows.append(row(f"vae.{path}", VAE + renamed(path, names, inner), *change, why=CHANNELS_LAST))
    if second is not None:
        rows += [*_clip("text_encoder", CLIP_XL, first), *_open_clip("text_encoder_2", OPEN_CLIP_XL, second)]
    elif first.hidden_act == "gelu":
        rows += _open_clip("text_encoder", OPEN_CLIP_2, first)
        rows.append(drop(f"{OPEN_CLIP_2}text_projection", why="not used by Stable Diffusion 2"))
        unread = f"{OPEN_CLIP_2}transformer.resblocks.{first.num_hidden_layers}.**"
        rows.append(drop(unread, why="the last layer is not used by Stable Diffusion 2"))
    else:
        rows += _clip("text_encoder", CLIP_1, first)
    rows += [drop(f"{name}**", why="weights of training, or constants") for name in _UNREAD]
    return Table(*rows)


_UNREAD = ("model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "logvar",
           "denoiser.", "cond_stage_model.logit_scale", f"{OPEN_CLIP_2}logit_scale", f"{OPEN_CLIP_XL}logit_scale",
           f"{OPEN_CLIP_2}attn_mask", f"{VAE}loss.", "first_stage_model_ema.")  # fmt: skip


def _clip(ours: str, theirs: str, config: TextConfig) -> Iterator[Row | Drop]:
    for path in TextEncoder(config).spec():
        yield row(f"{ours}.{path}", f"{theirs}{path}", why=NAMES)
    yield drop(f"{theirs}text_model.embeddings.position_ids", why="0 to 76")


def _open_clip(ours: str, theirs: str, config: TextConfig) -> Iterator[Row]:
    """OpenCLIP's, whose queries, keys and values are one matrix."""
    at = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
        "text_projection.weight": "text_projection",
    }  # fmt: skip
    for path in TextEncoder(config).spec():
        change: list[Operation] = [transpose()] if path == "text_projection.weight" else []
        if path in at:
            name = at[path]
        else:
            number, _, rest = path.removeprefix("text_model.encoder.layers.").partition(".")
            part = next((i for i, q in enumerate("qkv") if rest.startswith(f"self_attn.{q}_proj.")), None)
            if part is not None:
                change, rest = [third(part)], f"attn.in_proj_{rest.rpartition('.')[2]}"
            else:
                rest = renamed(rest, OPEN_CLIP, {}).rstrip(".")
            name = f"transformer.resblocks.{number}.{rest}"
        yield row(f"{ours}.{path}", theirs + name, *change, why=NAMES)


# --- the config -------------------------------------------------------------------------------------------------------


def config(tensors: Mapping[str, Any]) -> StableDiffusionConfig | None:
    """What a single file holds; None if its names are another model's.

    Raises WeightsError if a component is missing, or it is a Stable Diffusion that is not known here.
    """
    if f"{UNET}input_blocks.0.0.weight" not in tensors:
        return None
    shapes = {name: tuple(info.shape) for name, info in tensors.items()}
    what = "cannot use this file of Stable Diffusion"
    try:
        xl = f"{OPEN_CLIP_XL}ln_final.weight" in shapes
        if xl:
            texts = [_clip_config(shapes, CLIP_XL), _open_clip_config(shapes, OPEN_CLIP_XL, unread=0)]
        elif f"{OPEN_CLIP_2}ln_final.weight" in shapes:
            texts = [_open_clip_config(shapes, OPEN_CLIP_2, unread=1)]
        elif f"{CLIP_1}text_model.final_layer_norm.weight" in shapes:
            texts = [_clip_config(shapes, CLIP_1)]
        else:
            raise ValueError("it holds no text encoder of Stable Diffusion 1, 2 or XL base")
        if f"{VAE}encoder.conv_in.weight" not in shapes:
            raise ValueError("it holds no VAE (first_stage_model)")
        velocity = not xl and texts[0].hidden_act == "gelu"
        return StableDiffusionConfig(
            texts[0], _unet_config(shapes, fixed_heads=not xl and not velocity), _vae_config(shapes, xl),
            text_encoder_2=texts[1] if xl else None, force_zeros_for_empty_prompt=xl, layout=ORIGINAL,
            scheduler={**SCHEDULER, "prediction_type": "v_prediction" if velocity else "epsilon"},
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(what, why, "Use a whole checkpoint of Stable Diffusion 1, 2 or XL base.") from error


def _count(shapes: Mapping[str, Any], prefix: str, rest: str) -> int:
    n = 0
    while f"{prefix}{n}{rest}" in shapes:
        n += 1
    return n


def _unet_config(shapes: Mapping[str, tuple[int, ...]], fixed_heads: bool) -> UNetConfig:
    widths: list[int] = []
    depths: list[int] = []
    layers, n, found, linear = 0, 1, 0, False
    width, depth = 0, 0
    while True:
        block = f"{UNET}input_blocks.{n}"
        if f"{block}.0.out_layers.3.weight" in shapes:
            width, found = shapes[f"{block}.0.out_layers.3.weight"][0], found + 1
            depth = _count(shapes, f"{block}.1.transformer_blocks.", ".norm1.weight")
            linear = linear or len(shapes.get(f"{block}.1.proj_in.weight", ())) == 2
        else:
            widths.append(width)
            depths.append(depth)
            layers, found = found, 0
            if f"{block}.0.op.weight" not in shapes:
                break
        n += 1
    attends = [depth > 0 for depth in depths]
    middle = _count(shapes, f"{UNET}middle_block.1.transformer_blocks.", ".norm1.weight")
    depths = [depth or (middle if i == len(depths) - 1 else 1) for i, depth in enumerate(depths)]
    text = next(
        shape[1] for name, shape in shapes.items() if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
    )
    label = shapes.get(f"{UNET}label_emb.0.0.weight")
    if label is not None and label[1] != 2816 and label[1] % 8:
        raise ValueError(f"its label_emb takes {label[1]} numbers")
    time = 0 if label is None else (label[1] - shapes[f"{OPEN_CLIP_XL}text_projection"][1]) // 6
    return UNetConfig(
        in_channels=shapes[f"{UNET}input_blocks.0.0.weight"][1], out_channels=shapes[f"{UNET}out.2.weight"][0],
        block_out_channels=tuple(widths), layers_per_block=layers, cross_attention_dim=text,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        transformer_layers_per_block=tuple(depths), use_linear_projection=linear,
        attention_head_dim=tuple(HEADS_1 if fixed_heads else max(width // HEAD_DIM, 1) for width in widths),
        addition_embed_type=None if label is None else "text_time", addition_time_embed_dim=time or None,
        projection_class_embeddings_input_dim=None if label is None else label[1],
    )  # fmt: skip


def _vae_config(shapes: Mapping[str, tuple[int, ...]], xl: bool) -> VaeConfig:
    levels = _count(shapes, f"{VAE}encoder.down.", ".block.0.conv1.weight")
    widths = tuple(shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels))
    return VaeConfig(
        in_channels=shapes[f"{VAE}encoder.conv_in.weight"][1], out_channels=shapes[f"{VAE}decoder.conv_out.weight"][0],
        latent_channels=shapes[f"{VAE}post_quant_conv.weight"][0], block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=_count(shapes, f"{VAE}encoder.down.0.block.", ".conv1.weight"),
        scaling_factor=0.13025 if xl else 0.18215,
    )  # fmt: skip


def _clip_config(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> TextConfig:
    at = f"{prefix}text_model."
    vocabulary, width = shapes[f"{at}embeddings.token_embedding.weight"]
    return TextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=shapes[f"{at}encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=_count(shapes, f"{at}encoder.layers.", ".layer_norm1.weight"),
        num_attention_heads=max(width // HEAD_DIM, 1), eos_token_id=vocabulary - 1, projection_dim=width,
        max_position_embeddings=shapes[f"{at}embeddings.position_embedding.weight"][0],
    )  # fmt: skip


def _open_clip_config(shapes: Mapping[str, tuple[int, ...]], prefix: str, unread: int) -> TextConfig:
    """unread: so many of the last layers are not used, nor the projection behind them."""
    vocabulary, width = shapes[f"{prefix}token_embedding.weight"]
    blocks = f"{prefix}transformer.resblocks."
    return TextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=shapes[f"{blocks}0.mlp.c_fc.weight"][0],
        num_hidden_layers=_count(shapes, blocks, ".ln_1.weight") - unread, hidden_act="gelu",
        num_attention_heads=max(width // HEAD_DIM, 1), eos_token_id=vocabulary - 1,
        max_position_embeddings=shapes[f"{prefix}positional_embedding"][0], with_projection=unread == 0,
        projection_dim=width if unread else shapes[f"{prefix}text_projection"][1],
    )  # fmt: skip
