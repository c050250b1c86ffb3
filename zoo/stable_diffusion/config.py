"""The shape of a Stable Diffusion: a config for each component, in the field names of the published config.json files
(transformers' CLIPTextConfig, diffusers' UNet2DConditionModel, AutoencoderKL and AutoencoderTiny).

Published files hold fields for many other models too. What would change the result and is not implemented is refused
by name; what changes nothing is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

C = TypeVar("C")

Levels = int | tuple[int, ...]
"""One number, or one for each level of a U-Net from the finest."""


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text encoder (transformers' CLIPTextConfig)."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512
    with_projection: bool = False
    """Whether it has a text_projection: CLIPTextModelWithProjection in the `architectures` of its config.json."""

    @classmethod
    def published(cls, values: Mapping[str, Any]) -> TextConfig:
        projected = "CLIPTextModelWithProjection" in (values.get("architectures") or ())
        return accepted(cls, {"with_projection": projected, **values})


@dataclass(frozen=True)
class UNetConfig:
    """diffusers' UNet2DConditionModel."""

    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "_class_name": ("UNet2DConditionModel",),
        "center_input_sample": (False,), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "only_cross_attention": (False,), "downsample_padding": (1,), "mid_block_scale_factor": (1, 1.0),
        "act_fn": ("silu", "swish"), "reverse_transformer_layers_per_block": (None,), "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,), "dual_cross_attention": (False,), "class_embed_type": (None,),
        "addition_embed_type": (None, "text_time"), "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",), "resnet_out_scale_factor": (1.0,), "resnet_skip_time_act": (False,),
        "time_embedding_type": ("positional",), "time_embedding_dim": (None,), "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
        "attention_type": ("default",), "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
    }  # fmt: skip
    """Fields of a published config with the values that are implemented."""

    sample_size: int | None = None
    """Height and width of the latents that it was trained on."""
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2
    transformer_layers_per_block: Levels = 1
    attention_head_dim: Levels = 8
    """The number of heads, not their size: diffusers gave it this name by mistake and published configs keep it."""
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    """Whether proj_in and proj_out are published as matrices, or as 1x1 convolutions; they compute the same."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: str | None = None
    """"text_time": SDXL's conditions on pooled text and on sizes."""
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        _same_length(self, levels, "down_block_types", "up_block_types")
        for name in ("transformer_layers_per_block", "attention_head_dim"):
            value = getattr(self, name)
            if isinstance(value, int):
                _fill(self, name, (value,) * levels)
        _same_length(self, levels, "transformer_layers_per_block", "attention_head_dim")
        _known_blocks("down_block_types", self.down_block_types, ("CrossAttnDownBlock2D", "DownBlock2D"))
        _known_blocks("up_block_types", self.up_block_types, ("CrossAttnUpBlock2D", "UpBlock2D"))
        _dividing("norm_num_groups", self.norm_num_groups, self.block_out_channels)
        for width, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):  # type: ignore[arg-type]
            if width % heads:
                raise ValueError(f"block_out_channels {width} do not divide among attention_head_dim = {heads} heads")
        needed = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        if self.addition_embed_type is not None and any(getattr(self, name) is None for name in needed):
            raise ValueError(f"addition_embed_type = {self.addition_embed_type!r} needs {' and '.join(needed)}")

    @classmethod
    def published(cls, values: Mapping[str, Any]) -> UNetConfig:
        return accepted(cls, values)


@dataclass(frozen=True)
class VaeConfig:
    """diffusers' AutoencoderKL."""

    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"), "shift_factor": (None, 0.0), "latents_mean": (None,), "latents_std": (None,),
        "use_quant_conv": (True,), "use_post_quant_conv": (True,), "mid_block_add_attention": (True,),
    }  # fmt: skip

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    """Latents of the VAE times this have a variance of about 1: what the U-Net sees."""
    force_upcast: bool = True
    """Whether it was seen to overflow in float16."""

    def __post_init__(self) -> None:
        _same_length(self, len(self.block_out_channels), "down_block_types", "up_block_types")
        _known_blocks("down_block_types", self.down_block_types, ("DownEncoderBlock2D",))
        _known_blocks("up_block_types", self.up_block_types, ("UpDecoderBlock2D",))
        _dividing("norm_num_groups", self.norm_num_groups, self.block_out_channels)

    @classmethod
    def published(cls, values: Mapping[str, Any]) -> VaeConfig:
        return accepted(cls, values)

    @property
    def scale(self) -> int:
        """Pixels along a latent's edge."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class StableDiffusionConfig:
    """All components. Where it comes from a config.json of ours, they are dicts at first."""

    text_encoder: TextConfig
    unet: UNetConfig
    vae: VaeConfig
    text_encoder_2: TextConfig | None = None
    """SDXL's second one, which gives the pooled text too."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """scheduler_config.json as published."""
    force_zeros_for_empty_prompt: bool = False
    """SDXL: without a negative prompt, what the U-Net is told is zeros instead of the encoding of ""."""
    layout: str = "diffusers"
    """The published layout that the tensors came in, and are exported to: a key of weights.LAYOUTS."""

    COMPONENTS: ClassVar[dict[str, type]] = {
        "text_encoder": TextConfig, "text_encoder_2": TextConfig, "unet": UNetConfig, "vae": VaeConfig,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name, kind in self.COMPONENTS.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                _fill(self, name, accepted(kind, value))
        width = self.text_encoder.hidden_size + (self.text_encoder_2.hidden_size if self.text_encoder_2 else 0)
        if width != self.unet.cross_attention_dim:
            raise ValueError(
                f"the text encoders give {width} channels, the unet's cross_attention_dim = "
                f"{self.unet.cross_attention_dim}"
            )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> StableDiffusionConfig | None:
        """That of a single file of the original code (zoo/stable_diffusion/original.py); None for others."""
        from zoo.stable_diffusion import original

        return original.config(tensors)

    @classmethod
    def from_directory(cls, directory: Path, tensors: Mapping[str, Any]) -> StableDiffusionConfig | None:
        """That of a directory with a model_index.json (zoo/stable_diffusion/weights.py); None for others."""
        from zoo.stable_diffusion import weights

        return weights.config(directory, tensors)


def accepted(kind: type[C], values: Mapping[str, Any]) -> C:
    """A config from a published file. Raises ValueError for a value that is not implemented."""
    for name, known in getattr(kind, "REFUSED", {}).items():
        if name in values and values[name] not in known:
            raise ValueError(f"{name} = {values[name]!r} is not implemented; only {known[0]!r} is")
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in values.items() if name in fields}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _fill(config: Any, name: str, value: Any) -> None:
    object.__setattr__(config, name, value)  # of a frozen dataclass


def _same_length(config: Any, levels: int, *names: str) -> None:
    for name in names:
        if len(getattr(config, name)) != levels:
            raise ValueError(f"{name} has {len(getattr(config, name))} entries, block_out_channels {levels}")


def _known_blocks(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} holds {unknown[0]!r}; known are {', '.join(known)}")


def _dividing(name: str, groups: int, channels: tuple[int, ...]) -> None:
    if groups < 1 or any(c % groups for c in channels):
        raise ValueError(f"block_out_channels {channels} do not divide into {name} = {groups}")
