"""Losses. Each gives a scalar, the mean over all entries, unless reduction is "sum" or "none"."""

from __future__ import annotations

from collections.abc import Callable

from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor


def _reduced(loss: Tensor, reduction: str, count: Tensor | None = None) -> Tensor:
    """`count`: of how many entries the mean is, where not all count."""
    if reduction == "mean":
        return loss.mean() if count is None else loss.sum() / count
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ZooError(f"unknown reduction {reduction!r}", "", 'Known: "mean", "sum", "none".')


def _by_class(loss: Callable[[Tensor], Tensor], targets: Tensor, ignore_index: int | None, reduction: str) -> Tensor:
    """loss(targets), with entries whose target is `ignore_index` left out."""
    if ignore_index is None:
        return _reduced(loss(targets), reduction)
    counts = targets != ignore_index
    kept = ops.where(counts, loss(ops.where(counts, targets, 0)), 0.0)
    return _reduced(kept, reduction, counts.sum().astype(float32))


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, ignore_index: int | None = None,
                  reduction: str = "mean") -> Tensor:  # fmt: skip
    """-log softmax(logits)[target].  logits (..., C), targets integers (...).

    label_smoothing s: the target distribution is (1 - s) at the target plus s / C everywhere (Szegedy et al. 2016).
    ignore_index: targets of this value count nothing, in the mean neither; NaN if none counts. In float32.
    """

    def loss(t: Tensor) -> Tensor:
        plain = ops.cross_entropy(logits, t)
        if label_smoothing == 0:
            return plain
        uniform = -ops.mean(ops.log_softmax(logits.astype(plain.dtype)), axis=-1)
        return plain * (1.0 - label_smoothing) + uniform * label_smoothing

    return _by_class(loss, targets, ignore_index, reduction)


def nll_loss(
    log_probabilities: Tensor, targets: Tensor, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    """-log_probabilities[target].  log_probabilities (..., C), as log_softmax gives them; targets integers (...)."""

    def loss(t: Tensor) -> Tensor:
        return -ops.squeeze(ops.gather(log_probabilities, ops.expand_dims(t, -1), axis=-1), -1)

    return _by_class(loss, targets, ignore_index, reduction)


def mse(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """(x - target)^2; equal shapes."""
    return _reduced(ops.square(_same(x, target)), reduction)


def l1(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """|x - target|; equal shapes."""
    return _reduced(ops.abs(_same(x, target)), reduction)


def bce_with_logits(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), for targets t in [0, 1] of the same shape; without overflow, as
    max(x, 0) - x t + log(1 + exp(-|x|))."""
    _same(logits, targets)
    tail = ops.log(ops.exp(-ops.abs(logits)) + 1.0)
    return _reduced(ops.relu(logits) - logits * targets + tail, reduction)


def kl_div(log_q: Tensor, log_p: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(p || q) of distributions along the last axis, given as log-probabilities (..., C): sum of p (log p - log q) ->
    (...). `mean` is over distributions: torch's "batchmean" for (N, C)."""
    return _reduced(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1), reduction)


def _same(x: Tensor, target: Tensor) -> Tensor:
    """x - target. Raises ZooError where broadcasting would pair every prediction with every target."""
    if x.shape != target.shape:
        raise ZooError(
            "the predictions and targets of a loss have different shapes",
            f"{x.shape} and {target.shape}",
            "Reshape one of them.",
        )
    return x - target
