"""What U-Net and VAE are built of: residual blocks, and changes of resolution (Ho et al. 2020; Rombach et al. 2022).

Names are those of diffusers' ResnetBlock2D, Downsample2D and Upsample2D. Activations are channels-last: (B, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import Conv2d, GroupNorm, Linear, Module


class ResnetBlock(Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + what the time says))); x is projected where channels change.

    time (B, time_channels), or (1, time_channels) if it is the same for all; it went through silu already, as each
    block would do that again.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float, time_channels: int | None = None):
        self.norm1 = GroupNorm(groups, inputs, eps)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = Linear(time_channels, outputs)
        self.norm2 = GroupNorm(groups, outputs, eps)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def __call__(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.norm1(x, "silu"))
        if time is not None:
            shift = self.time_emb_proj(time)
            h = h + shift.reshape(shift.shape[0], 1, 1, -1)
        h = self.norm2(h, "silu")
        return self.conv2(h, residual=x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(Module):
    """Half the height and width. The VAE's encoder pads below and at the right only."""

    def __init__(self, channels: int, one_sided: bool = False):
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=((0, 1), (0, 1)) if one_sided else 1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(Module):
    """Twice the height and width, or a row or column less: those of `size`, where halving had rounded up."""

    def __init__(self, channels: int):
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        x = ops.upsample(x, 2)
        if size is not None and tuple(size) != x.shape[1:3]:
            x = x[:, : size[0], : size[1]]
        return self.conv(x)
