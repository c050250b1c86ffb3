"""Stable Diffusion (Rombach et al. 2022; SDXL: Podell et al. 2023): its networks. How a picture comes of them is in
pipeline.py."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import Module
from zoo.stable_diffusion.config import StableDiffusionConfig
from zoo.stable_diffusion.text_encoder import TextEncoder
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import Vae


class StableDiffusion(Module):
    """Text encoders, U-Net and VAE, named as the folders of a published checkpoint."""

    def __init__(self, config: StableDiffusionConfig):
        self.config = config
        self.text_encoder = TextEncoder(config.text_encoder)
        if config.text_encoder_2 is not None:
            self.text_encoder_2 = TextEncoder(config.text_encoder_2)
        self.unet = UNet(config.unet)
        self.vae = Vae(config.vae)

    def encode_text(self, ids: Sequence[Tensor], skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """What the U-Net is told of texts: hidden states (B, 77, cross_attention_dim), and for SDXL the pooled text
        (B, P), else None.

        ids: token ids (B, 77) for each text encoder. skip: so many of the last layers are left out ("clip skip").
        """
        if self.config.text_encoder_2 is None:
            return self.text_encoder.encode(ids[0], skip).hidden, None
        first, second = self.text_encoder.encode(ids[0], skip), self.text_encoder_2.encode(ids[1], skip)
        return ops.concat([first.penultimate, second.penultimate], axis=-1), second.pooled
