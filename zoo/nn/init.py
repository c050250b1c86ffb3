"""How parameters are filled before training. An initialiser is a function (rng, shape, device) -> float32 tensor.

`Param(shape, init)` holds one; `Module.init(rng)` calls it. The defaults of the layers are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from zoo.core import ops
from zoo.core.random import Generator
from zoo.core.tensor import Tensor

Init = Callable[[Generator, tuple[int, ...], Any], Tensor]


def constant(value: float) -> Init:
    def fill(rng: Generator, shape: tuple[int, ...], device: Any) -> Tensor:
        return ops.full(shape, value, device=device)

    return fill


zeros = constant(0.0)
ones = constant(1.0)


def uniform(bound: float) -> Init:
    """Uniform in [-bound, bound)."""

    def draw(rng: Generator, shape: tuple[int, ...], device: Any) -> Tensor:
        return rng.uniform(shape, low=-bound, high=bound, device=device)

    return draw


def normal(std: float = 1.0, mean: float = 0.0) -> Init:
    def draw(rng: Generator, shape: tuple[int, ...], device: Any) -> Tensor:
        return rng.normal(shape, mean=mean, std=std, device=device)

    return draw


def kaiming_uniform(fan_in: int, a: float = 0.0) -> Init:
    """Uniform with variance 2 / ((1 + a^2) fan_in), which keeps the variance of activations through layers of leaky
    ReLU with slope a (He et al. 2015, eq. 15)."""
    return uniform(math.sqrt(6.0 / ((1.0 + a * a) * max(fan_in, 1))))


def kaiming_normal(fan: int, a: float = 0.0) -> Init:
    """Normal with variance 2 / ((1 + a^2) fan) (He et al. 2015). ResNets take fan_out."""
    return normal(math.sqrt(2.0 / ((1.0 + a * a) * max(fan, 1))))


def xavier_uniform(fan_in: int, fan_out: int, gain: float = 1.0) -> Init:
    """Uniform with variance 2 gain^2 / (fan_in + fan_out) (Glorot & Bengio 2010, eq. 16)."""
    return uniform(gain * math.sqrt(6.0 / (fan_in + fan_out)))


def fan_in_uniform(fan_in: int) -> Init:
    """Uniform within 1 / sqrt(fan_in), that is a = sqrt(5) above: torch's default for the weights and biases of linear
    and convolution layers."""
    return kaiming_uniform(fan_in, a=math.sqrt(5.0))
