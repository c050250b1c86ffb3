"""How published tensors become ours, and back, and how a published directory becomes a config, and back.

Names are diffusers' and transformers' throughout, each under the folder of its component. What differs among published
checkpoints of this layout is in the words of `config.layout`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub import components
from zoo.hub.files import read_json
from zoo.hub.table import Drop, Operation, Row, Table, drop, permute, row
from zoo.stable_diffusion.config import StableDiffusionConfig, TextConfig
from zoo.stable_diffusion.text_encoder import TextEncoder

ORIGINAL = "original"
"""The layout of the single files of the original code (zoo/stable_diffusion/original.py)."""
CHANNELS_LAST = "torch stores (out, in, height, width), we (out, height, width, in)"
MATRIX = Operation(
    "squeeze", lambda a, config: a.reshape(a.shape[:2]), lambda a, config: a.reshape(*a.shape, 1, 1)
)  # fmt: skip
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names in the VAEs of before diffusers 0.16, SD 1.5's among them."""
UNET_LEVELS = ("unet.down_blocks.{i}", "unet.mid_block", "unet.up_blocks.{i}")
VAE_LEVELS = ("encoder.down_blocks.{i}", "encoder.mid_block", "decoder.mid_block", "decoder.up_blocks.{i}")
CONVOLUTIONS = (
    *(f"{level}.resnets.{{j}}.{name}" for level in (*UNET_LEVELS, *(f"vae.{level}" for level in VAE_LEVELS))
      for name in ("conv1", "conv2", "conv_shortcut")),
    *(f"{part}.{name}" for part in ("unet.down_blocks.{i}", "vae.encoder.down_blocks.{i}")
      for name in ("downsamplers.0.conv",)),
    *(f"{part}.upsamplers.0.conv" for part in ("unet.up_blocks.{i}", "vae.decoder.up_blocks.{i}")),
    *(f"{part}.{name}" for part in ("unet", "vae.encoder", "vae.decoder") for name in ("conv_in", "conv_out")),
    "vae.quant_conv", "vae.post_quant_conv",
)  # fmt: skip


def table(config: StableDiffusionConfig) -> Table:
    """That of the layout in which these weights were published."""
    words = config.layout.split()
    if words[0] == ORIGINAL:
        from zoo.stable_diffusion import original

        return original.table(config)
    return _diffusers(config.unet.use_linear_projection, "query" in words, _bare(config, words))


def _bare(config: StableDiffusionConfig, words: list[str]) -> tuple[tuple[str, TextConfig], ...]:
    """The text encoders whose names lack "text_model.", as transformers 5 saves those without a projection."""
    encoders = {"text_encoder": config.text_encoder, "text_encoder_2": config.text_encoder_2}
    return tuple((name, c) for name, c in encoders.items() if f"{name}:bare" in words and c is not None)


@functools.lru_cache(maxsize=8)
def _diffusers(linear_projection: bool, old_attention: bool, bare: tuple[tuple[str, TextConfig], ...]) -> Table:
    rows: list[Row | Drop] = []
    for name in CONVOLUTIONS:
        rows.append(row(f"{name}.weight", f"{name}.weight", permute(0, 2, 3, 1), why=CHANNELS_LAST))
    if not linear_projection:
        for level in UNET_LEVELS:
            for name in ("proj_in", "proj_out"):
                target = f"{level}.attentions.{{j}}.{name}.weight"
                rows.append(row(target, target, MATRIX, why="a 1x1 convolution over channels-last pixels is a matrix"))
    if old_attention:
        for part in ("encoder", "decoder"):
            prefix = f"vae.{part}.mid_block.attentions.{{i}}"
            for ours, theirs in OLD_ATTENTION.items():
                for kind in ("weight", "bias"):
                    names = f"{prefix}.{ours}.{kind}", f"{prefix}.{theirs}.{kind}"
                    rows.append(row(*names, why="names of before diffusers 0.16"))
    for name, config in bare:
        for path in TextEncoder(config).spec():
            theirs = path.removeprefix("text_model.")
            rows.append(row(f"{name}.{path}", f"{name}.{theirs}", why="transformers 5 saves it without text_model."))
    for name in ("text_encoder", "text_encoder_2"):
        rows.append(drop(f"{name}.text_model.embeddings.position_ids", why="0 to 76"))
    return Table(*rows)


# --- a directory, and its config --------------------------------------------------------------------------------------


def config(directory: Path, tensors: Mapping[str, Any]) -> StableDiffusionConfig | None:
    """That of a directory with a model_index.json; None for others.

    Raises WeightsError if a component is missing or its config.json describes something else.
    """
    if not (directory / components.INDEX).is_file() or not any(name.startswith("unet.") for name in tensors):
        return None
    what = f"cannot use {directory}"
    index = read_json(directory / components.INDEX)
    present = components.parse_index(directory / components.INDEX)
    read = {}
    for name, kind in StableDiffusionConfig.COMPONENTS.items():
        if name in present:
            path = directory / name / "config.json"
            if not path.is_file():
                why = f"its component {name} is missing: there is no {name}/config.json"
                raise WeightsError(what, why, f"Fetch the files of {name}/ too.")
            read[name] = _part(path, kind)
        elif name != "text_encoder_2":
            why = f"its {components.INDEX} names no {name}"
            raise WeightsError(what, why, "Use a checkpoint with all components: text_encoder, unet and vae.")
    scheduler = directory / "scheduler" / "scheduler_config.json"
    try:
        return StableDiffusionConfig(
            **read,
            scheduler=read_json(scheduler) if scheduler.is_file() else {},
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
            layout=" ".join(["diffusers", *_words(tensors)]),
        )
    except ValueError as error:
        raise WeightsError(what, str(error), "Use components that were made for each other.") from error


def _part(path: Path, kind: Any) -> Any:
    try:
        return kind.published(read_json(path))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"cannot use {path.parents[1]}", f"{path.parent.name}/config.json: {error}",
                           "Use a Stable Diffusion 1, 2 or XL.") from error  # fmt: skip


def _words(tensors: Mapping[str, Any]) -> Iterator[str]:
    if any(name.startswith("vae.") and ".query." in name for name in tensors):
        yield "query"
    for name in ("text_encoder", "text_encoder_2"):
        if f"{name}.embeddings.token_embedding.weight" in tensors:
            yield f"{name}:bare"


def documents(config: StableDiffusionConfig) -> dict[str, dict[str, Any]]:
    """model_index.json and the components' config.json, as diffusers reads them; {} for the original code's one
    file."""
    if config.layout == ORIGINAL:
        return {}
    xl = config.text_encoder_2 is not None
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"}
    found: dict[str, dict[str, Any]] = {components.INDEX: index}
    for name in ("text_encoder", "text_encoder_2")[: 1 + xl]:
        text: TextConfig = getattr(config, name)
        architecture = "CLIPTextModelWithProjection" if text.with_projection else "CLIPTextModel"
        index[name] = ["transformers", architecture]
        found[f"{name}/config.json"] = {
            "architectures": [architecture], "model_type": "clip_text_model",
            **{key: value for key, value in vars(text).items() if key != "with_projection"},
        }  # fmt: skip
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    for name, architecture in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        index[name] = ["diffusers", architecture]
        found[f"{name}/config.json"] = {"_class_name": architecture, **vars(getattr(config, name))}
    if config.scheduler:
        index["scheduler"] = ["diffusers", config.scheduler.get("_class_name", "PNDMScheduler")]
        found["scheduler/scheduler_config.json"] = dict(config.scheduler)
    if xl:
        index["force_zeros_for_empty_prompt"] = config.force_zeros_for_empty_prompt
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return found
