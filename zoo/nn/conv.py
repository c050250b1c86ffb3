"""Convolutions over channels-last activations (N, *S, C); weights are (outputs, *kernel, inputs / groups)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.core.windows import Pad
from zoo.nn import init
from zoo.nn.module import Module
from zoo.nn.param import Param

Size = int | Sequence[int]


class _Conv(Module):
    """What convolutions of any rank and direction share."""

    rank: int
    transposed = False
    packs = {"weight": "conv"}  # noqa: RUF012 - a class attribute of the base

    def __init__(
        self, inputs: int, outputs: int, kernel: Size, *, stride: Size = 1, padding: Pad = 0, dilation: Size = 1,
        groups: int = 1, bias: bool = True,
    ):  # fmt: skip
        window = (kernel,) * self.rank if isinstance(kernel, int) else tuple(kernel)
        if len(window) != self.rank:
            raise ValueError(
                f"{type(self).__name__} has {self.rank} spatial axes, its kernel {window} has {len(window)}"
            )
        if inputs % groups or outputs % groups:
            raise ValueError(f"{inputs} inputs and {outputs} outputs do not both divide into {groups} groups")
        # torch counts the fan-in of a transposed convolution on its stored weight (inputs, outputs / groups, *kernel)
        fan_in = (outputs if self.transposed else inputs) // groups * math.prod(window)
        self.weight = Param((outputs, *window, inputs // groups), init.fan_in_uniform(fan_in))
        self.bias = Param((outputs,), init.fan_in_uniform(fan_in)) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def describe(self) -> str:
        outputs, *window, inputs = self.weight.shape
        said = [f"{inputs * self.groups} -> {outputs}", f"kernel {'x'.join(map(str, window))}"]
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            if getattr(self, name) != usual:
                said.append(f"{name} {getattr(self, name)}")
        return ", ".join(said)


class _Forward(_Conv):
    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return ops.conv(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups, activation=activation, residual=residual,
        )  # fmt: skip


class Conv1d(_Forward):
    """x (N, L, inputs) -> activation(convolution + bias + residual) (N, L', outputs)."""

    rank = 1


class Conv2d(_Forward):
    """x (N, H, W, inputs) -> activation(convolution + bias + residual) (N, H', W', outputs)."""

    rank = 2


class _Transposed(_Conv):
    transposed = True
    packs = {}  # noqa: RUF012 - its kernel is read turned round

    def __init__(self, inputs: int, outputs: int, kernel: Size, *, output_padding: Size = 0, **settings: Any):
        super().__init__(inputs, outputs, kernel, **settings)
        self.output_padding = output_padding

    def __call__(self, x: Tensor) -> Tensor:
        return ops.conv_transpose(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, output_padding=self.output_padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip


class ConvTranspose1d(_Transposed):
    """x (N, L, inputs) -> (N, L', outputs), L' = stride (L-1) - 2 padding + dilation (kernel-1) + 1 + output_padding
    (Dumoulin & Visin 2016)."""

    rank = 1


class ConvTranspose2d(_Transposed):
    """As ConvTranspose1d, over height and width."""

    rank = 2
