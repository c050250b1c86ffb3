"""The autoencoder between pictures and latents (Kingma & Welling 2014; Esser et al. 2021; Rombach et al. 2022).

Names are those of diffusers' AutoencoderKL. Pictures are (B, H, W, 3) in -1 ... 1, latents (B, H/8, W/8, 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import Conv2d, GroupNorm, Linear, Module
from zoo.stable_diffusion.blocks import Downsample, ResnetBlock, Upsample
from zoo.stable_diffusion.config import VaeConfig

EPS = 1e-6
"""Of every normalisation here; a constant in the published code."""
LOG_VARIANCES = (-30.0, 20.0)
"""Limits of what the encoder may say of its uncertainty."""


class Moments(NamedTuple):
    """A normal distribution of latents, (B, H/8, W/8, latent_channels) each."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """One draw, where the noise is standard normal."""
        return self.mean + ops.exp(self.log_variance * 0.5) * noise


class Attention(Module):
    """x + attention of its pixels to each other, in one head."""

    def __init__(self, channels: int, groups: int):
        self.group_norm = GroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out = [Linear(channels, channels)]

    def __call__(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h = self.group_norm(x).reshape(B, H * W, C)
        q, k, v = (proj(h).reshape(B, H * W, 1, C) for proj in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](ops.attention(q, k, v).reshape(B, H, W, C))


Layers = Iterator[Callable[[Tensor], Tensor]]
"""Of a block, in the order in which they are run. Encoder and decoder call them one by one: the caller of a block would
hold on to its input while it runs, and at 512 pixels that is 134 MB more at the peak."""


class Middle(Module):
    def __init__(self, channels: int, groups: int):
        self.resnets = [ResnetBlock(channels, channels, groups, EPS) for _ in range(2)]
        self.attentions = [Attention(channels, groups)]

    def layers(self) -> Layers:
        yield from (self.resnets[0], self.attentions[0], self.resnets[1])


class Down(Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool):
        self.resnets = [ResnetBlock(inputs if i == 0 else outputs, outputs, groups, EPS) for i in range(layers)]
        self.downsamplers = [] if last else [Downsample(outputs, one_sided=True)]

    def layers(self) -> Layers:
        yield from self.resnets
        yield from self.downsamplers


class Up(Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool):
        self.resnets = [ResnetBlock(inputs if i == 0 else outputs, outputs, groups, EPS) for i in range(layers)]
        self.upsamplers = [] if last else [Upsample(outputs)]

    def layers(self) -> Layers:
        yield from self.resnets
        yield from self.upsamplers


class Encoder(Module):
    def __init__(self, c: VaeConfig):
        widths, groups, n = c.block_out_channels, c.norm_num_groups, c.layers_per_block
        last = len(widths) - 1
        self.conv_in = Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.down_blocks = [Down(widths[max(i - 1, 0)], w, n, groups, i == last) for i, w in enumerate(widths)]
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], 2 * c.latent_channels, 3, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        blocks: list[Down | Middle] = [*self.down_blocks, self.mid_block]
        for block in blocks:
            for layer in block.layers():
                x = layer(x)
        return self.conv_out(self.conv_norm_out(x, "silu"))


class Decoder(Module):
    def __init__(self, c: VaeConfig):
        widths, groups, n = c.block_out_channels[::-1], c.norm_num_groups, c.layers_per_block + 1
        last = len(widths) - 1
        self.conv_in = Conv2d(c.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = [Up(widths[max(i - 1, 0)], w, n, groups, i == last) for i, w in enumerate(widths)]
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], c.out_channels, 3, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        blocks: list[Middle | Up] = [self.mid_block, *self.up_blocks]
        for block in blocks:
            for layer in block.layers():
                x = layer(x)
        return self.conv_out(self.conv_norm_out(x, "silu"))


class Vae(Module):
    """The scaling of latents (config.scaling_factor) is the caller's: these are as the VAE knows them."""

    def __init__(self, config: VaeConfig):
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pixels: Tensor) -> Moments:
        """pixels (B, H, W, 3) in -1 ... 1."""
        mean, log_variance = ops.split(self.leaving(self.quant_conv(self.encoder(self.entering(pixels)))), 2)
        return Moments(mean, ops.clip(log_variance, *LOG_VARIANCES))

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, h, w, latent_channels) -> pixels (B, 8h, 8w, 3), about -1 ... 1."""
        return self.leaving(self.decoder(self.post_quant_conv(self.entering(latents))))

    def __call__(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Moments]:
        """Pixels decoded again from a sample of their latents, and the distribution: what training compares."""
        moments = self.encode(pixels)
        return self.decode(moments.sample(noise)), moments
