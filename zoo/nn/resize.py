"""Layers that change the spatial size of x (N, *S, C) and hold no weights: pooling and upsampling."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.core.windows import Pad
from zoo.nn.module import Module

Size = int | Sequence[int]


class _Pool(Module):
    def __init__(self, window: Size, stride: Size | None = None, padding: Pad = 0):
        self.window, self.stride, self.padding = window, stride, padding

    def describe(self) -> str:
        said = [f"window {self.window}"]
        if self.stride is not None:
            said.append(f"stride {self.stride}")
        if self.padding != 0:
            said.append(f"padding {self.padding}")
        return ", ".join(said)


class MaxPool(_Pool):
    """The maximum under each window, over as many spatial axes as x has; stride: the window, if None."""

    def __call__(self, x: Tensor) -> Tensor:
        return ops.max_pool(x, self.window, stride=self.stride, padding=self.padding)


class AvgPool(_Pool):
    """The mean under each window; padding counts as zeros."""

    def __call__(self, x: Tensor) -> Tensor:
        return ops.avg_pool(x, self.window, stride=self.stride, padding=self.padding)


def global_avg_pool(x: Tensor) -> Tensor:
    """x (N, *S, C) -> (N, C), the mean over space."""
    return ops.mean(x, axis=tuple(range(1, x.ndim - 1)))


class Upsample(Module):
    """Every pixel repeated `scale` times along each spatial axis (nearest neighbour)."""

    def __init__(self, scale: Size = 2):
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return ops.upsample(x, self.scale)

    def describe(self) -> str:
        return f"scale {self.scale}"
