"""The U-Net of latent diffusion (Ho et al. 2020; Rombach et al. 2022, section 3; SDXL: Podell et al. 2023).

Names are those of diffusers' UNet2DConditionModel. It tells from noisy latents, their time and a text what the noise is
(or the velocity: that is the scheduler's business). Shapes: B latents, H x W latent pixels, S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.tensor import Tensor
from zoo.nn import Conv2d, GroupNorm, Linear, Module
from zoo.nn.recompute import Run, called, recomputed
from zoo.stable_diffusion.attention import KeysValues, Transformer, repeated
from zoo.stable_diffusion.blocks import Downsample, ResnetBlock, Upsample
from zoo.stable_diffusion.config import UNetConfig


class Added(NamedTuple):
    """What SDXL is told beside time and text."""

    text_embeds: Tensor
    """(B, P), the pooled text of the second encoder."""
    time_ids: Tensor
    """(B, 6): original height and width, crop's top and left, target height and width, in pixels."""


def sinusoids(values: Tensor, width: int, flip: bool, shift: int) -> Tensor:
    """values (N,) -> sines and cosines of them at width / 2 frequencies from 1 to 1/10000 (N, width) (Vaswani et al.
    2017). flip: cosines first. shift: how far the last frequency lies from 1/10000 (0: one step)."""
    half = width // 2
    steps = ops.arange(half, dtype=float32, device=values.device)
    angles = values.astype(float32).reshape(-1, 1) * ops.exp(steps * (-math.log(10000) / (half - shift)))
    sin, cos = ops.sin(angles), ops.cos(angles)
    return ops.concat((cos, sin) if flip else (sin, cos), axis=-1)


class TimestepEmbedding(Module):
    def __init__(self, inputs: int, outputs: int):
        self.linear_1 = Linear(inputs, outputs)
        self.linear_2 = Linear(outputs, outputs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(x, "silu"))


class Level(Module):
    """What a level has on its way down, up or in the middle: residual blocks, and transformers behind them."""

    def __init__(self, c: UNetConfig, level: int, channels: Sequence[tuple[int, int]], transformers: int):
        """channels: inputs and outputs of each residual block; transformers: how many (0: none at this level)."""
        time = 4 * c.block_out_channels[0]
        heads, depth = c.attention_head_dim[level], c.transformer_layers_per_block[level]  # type: ignore[index]
        self.resnets = [ResnetBlock(a, b, c.norm_num_groups, c.norm_eps, time) for a, b in channels]
        self.attentions = [
            Transformer(channels[0][1], heads, c.cross_attention_dim, depth, c.norm_num_groups)
            for _ in range(transformers)
        ]

    def block(self, i: int, x: Tensor, time: Tensor, texts: Iterator[KeysValues], run: Run) -> Tensor:
        x = run(self.resnets[i], x, time)
        return self.attentions[i](x, texts, run) if self.attentions else x


class Down(Level):
    def __init__(self, c: UNetConfig, level: int):
        n, inputs, outputs = c.layers_per_block, c.block_out_channels[max(level - 1, 0)], c.block_out_channels[level]
        transformers = n if c.down_block_types[level].startswith("CrossAttn") else 0
        super().__init__(c, level, [(inputs if i == 0 else outputs, outputs) for i in range(n)], transformers)
        self.downsamplers = [Downsample(outputs)] if level < len(c.block_out_channels) - 1 else []

    def __call__(self, x: Tensor, time: Tensor, texts: Iterator[KeysValues], run: Run) -> Iterator[Tensor]:
        """What each block makes of x, for the way up; the last goes on down."""
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, texts, run)
            yield x
        for downsampler in self.downsamplers:
            yield downsampler(x)


class Middle(Level):
    def __init__(self, c: UNetConfig):
        width = c.block_out_channels[-1]
        super().__init__(c, -1, [(width, width)] * 2, 1)

    def __call__(self, x: Tensor, time: Tensor, texts: Iterator[KeysValues], run: Run) -> Tensor:
        return run(self.resnets[1], self.block(0, x, time, texts, run), time)


class Up(Level):
    def __init__(self, c: UNetConfig, index: int):
        """index: from the coarsest level, as they are run and numbered."""
        levels = len(c.block_out_channels)
        level, n = levels - 1 - index, c.layers_per_block + 1
        width = c.block_out_channels[level]
        below = c.block_out_channels[min(level + 1, levels - 1)]
        skips = [width] * (n - 1) + [c.block_out_channels[max(level - 1, 0)]]
        transformers = n if c.up_block_types[index].startswith("CrossAttn") else 0
        channels = [((below if i == 0 else width) + skips[i], width) for i in range(n)]
        super().__init__(c, level, channels, transformers)
        self.upsamplers = [Upsample(width)] if level > 0 else []

    def __call__(self, x: Tensor, skips: list[Tensor], time: Tensor, texts: Iterator[KeysValues], run: Run) -> Tensor:
        """Takes from `skips` what it needs, from the end."""
        for i in range(len(self.resnets)):
            x = self.block(i, ops.concat([x, repeated(skips.pop(), x.shape[0])], axis=-1), time, texts, run)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[1:3])
        return x


class UNet(Module):
    """latents (B, H, W, in_channels), timesteps (B,) or (1,), text (B, S, cross_attention_dim) -> prediction (B, H, W,
    out_channels).

    Latents may be fewer than texts, which then come in rounds: the latents with the first texts, the same latents with
    the next. Guidance asks so, and up to the first text they have everything in common, which is worked out once.
    text: also what `keys_values(text)` gave, where it is the same for many steps. added: SDXL's, and only SDXL's.
    """

    def __init__(self, config: UNetConfig):
        self.config = c = config
        self.recompute = False
        """In training, blocks keep what goes into them only, and work the rest out again for the gradient."""
        first, levels = c.block_out_channels[0], len(c.block_out_channels)
        self.conv_in = Conv2d(c.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, 4 * first)
        if c.addition_embed_type is not None:
            assert c.projection_class_embeddings_input_dim is not None
            self.add_embedding = TimestepEmbedding(c.projection_class_embeddings_input_dim, 4 * first)
        self.down_blocks = [Down(c, i) for i in range(levels)]
        self.mid_block = Middle(c)
        self.up_blocks = [Up(c, i) for i in range(levels)]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, first, c.norm_eps)
        self.conv_out = Conv2d(first, c.out_channels, 3, padding=1)

    def __call__(
        self, latents: Tensor, timesteps: Tensor, text: Tensor | Sequence[KeysValues], added: Added | None = None
    ) -> Tensor:
        time = self.entering(ops.silu(self._time(timesteps, added)))
        if time.shape[0] > 1:  # then nothing is in common: SDXL's time knows the text
            latents = repeated(latents, time.shape[0])
        texts = iter(self.keys_values(text) if isinstance(text, Tensor) else text)
        run = recomputed if self.recompute else called
        x = self.conv_in(self.entering(latents))
        skips = [x]
        for down in self.down_blocks:
            skips.extend(down(skips[-1], time, texts, run))
        x = self.mid_block(skips[-1], time, texts, run)
        for up in self.up_blocks:
            x = up(x, skips, time, texts, run)
        return self.leaving(self.conv_out(self.conv_norm_out(x, "silu")))

    def keys_values(self, text: Tensor) -> list[KeysValues]:
        """What every cross-attention makes of text (B, S, cross_attention_dim), in the order in which they are run."""
        levels = [*self.down_blocks, self.mid_block, *self.up_blocks]
        transformers = [transformer for level in levels for transformer in level.attentions]
        text = self.entering(text)
        return [block.attn2.keys_values(text) for one in transformers for block in one.transformer_blocks]

    def _time(self, timesteps: Tensor, added: Added | None) -> Tensor:
        """In float32 on every device: it is a row or two."""
        c = self.config
        first = c.block_out_channels[0]
        time = self.time_embedding(sinusoids(timesteps, first, c.flip_sin_to_cos, c.freq_shift))
        if c.addition_embed_type is None:
            return time
        assert added is not None and c.addition_time_embed_dim is not None
        B = added.time_ids.shape[0]
        sizes = sinusoids(added.time_ids.reshape(-1), c.addition_time_embed_dim, c.flip_sin_to_cos, c.freq_shift)
        return time + self.add_embedding(ops.concat([self.leaving(added.text_embeds), sizes.reshape(B, -1)], axis=-1))
