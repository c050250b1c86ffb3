"""BatchNorm: normalisation by statistics over the batch in training, by their running averages after it."""

from __future__ import annotations

import math

from zoo.core import ops
from zoo.core.dtype import int64
from zoo.core.errors import ShapeError
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.module import Module
from zoo.nn.param import Param


class BatchNorm(Module):
    """x (..., channels) -> (x - mean) / sqrt(variance + eps) * weight + bias by channel (Ioffe & Szegedy 2015).

    In training, mean and variance are those of this batch, over all axes but the last, and the running ones follow:
    running += momentum (batch - running), the variance there with n - 1 in its denominator, as in torch; momentum None
    averages over all batches alike. Otherwise, and where the layer is frozen, the running ones are used.
    Raises ShapeError for a training batch with a single value per channel.
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        self.weight = Param((channels,), init.ones) if affine else None
        self.bias = Param((channels,), init.zeros) if affine else None
        self.running_mean: Tensor = Param((channels,), init.zeros)
        self.running_var: Tensor = Param((channels,), init.ones)
        # None in checkpoints from before torch counted: a model that reads one sets it so
        self.num_batches_tracked: Tensor | None = Param((), init.zeros, int64)
        self.eps, self.momentum = eps, momentum

    def __call__(self, x: Tensor) -> Tensor:
        if not self.training or self.frozen:
            return ops.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        n = math.prod(x.shape[:-1])
        if n < 2:
            raise ShapeError(
                f"x is {x.shape}: one value per channel has no variance", "Give larger batches, or model.eval().",
                what="BatchNorm in training cannot normalise this",
            )  # fmt: skip
        y, mean, var = ops.batch_norm_train(x, self.weight, self.bias, eps=self.eps)
        self._follow(_plain(mean), _plain(var) * (n / (n - 1)))
        return y

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked = self.num_batches_tracked + 1
        share = self.momentum
        if share is None:
            assert self.num_batches_tracked is not None, "an average over all batches needs their number"
            share = 1.0 / self.num_batches_tracked.item()
        self.running_mean = _toward(self.running_mean, mean, share)
        self.running_var = _toward(self.running_var, var, share)

    def describe(self) -> str:
        return f"eps {self.eps:g}"


def _toward(old: Tensor, new: Tensor, share: float) -> Tensor:
    return (old * (1.0 - share) + new * share).astype(old.dtype)


def _plain(x: Tensor) -> Tensor:
    """The value alone: what it was made from is not kept in the statistics."""
    while getattr(x.device, "inner", None) is not None:
        x = x.to(x.device.inner)
    return x
