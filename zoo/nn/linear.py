"""Fully connected layer."""

from __future__ import annotations

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.module import Module
from zoo.nn.param import Param


class Linear(Module):
    """x (..., inputs) -> x @ weight.T + bias (..., outputs); weight (outputs, inputs), bias (outputs,) or None."""

    packs = {"weight": "linear"}  # noqa: RUF012 - a class attribute of the base

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        self.weight = Param((outputs, inputs), init.fan_in_uniform(inputs))
        self.bias = Param((outputs,), init.fan_in_uniform(inputs)) if bias else None

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation=activation)

    def describe(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs} -> {outputs}"
