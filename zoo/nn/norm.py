"""Normalisation that depends on the sample alone: LayerNorm, RMSNorm, GroupNorm."""

from __future__ import annotations

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.module import Module
from zoo.nn.param import Param


class LayerNorm(Module):
    """x (..., width) -> (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True, bias: bool = True):
        self.weight = Param((width,), init.ones) if affine else None
        self.bias = Param((width,), init.zeros) if affine and bias else None
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def describe(self) -> str:
        return f"eps {self.eps:g}"


class RMSNorm(Module):
    """x (..., width) -> x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-5):
        self.weight = Param((width,), init.ones)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps)

    def describe(self) -> str:
        return f"eps {self.eps:g}"


class GroupNorm(Module):
    """x (N, *S, channels): each of `groups` groups of channels of each sample standardised over space and group
    (Wu & He 2018)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, affine: bool = True):
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.weight = Param((channels,), init.ones) if affine else None
        self.bias = Param((channels,), init.zeros) if affine else None
        self.groups, self.eps = groups, eps

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        return ops.group_norm(x, self.weight, self.bias, self.groups, eps=self.eps, activation=activation)

    def describe(self) -> str:
        return f"{self.groups} groups, eps {self.eps:g}"
