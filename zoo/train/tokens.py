"""Losses of models that say the next token, where rows hold different numbers of tokens that are learned: a mean over
tokens is not a mean over rows, nor over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.data.bad import Skipped
from zoo.data.loader import Loader
from zoo.nn import losses
from zoo.train.batch import on_device

IGNORED = -100
"""The target of what is seen, and not learned; transformers' number for it."""


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the learned tokens, in nats. logits (B, L, V), targets (B, L)."""
    return losses.cross_entropy(logits, targets, ignore_index=IGNORED)


def learned(targets: np.ndarray) -> int:
    """How many tokens are learned."""
    return int((targets != IGNORED).sum())


def nats_per_token(
    logits: Callable[[Any, Any], tuple[Tensor, Tensor]], model: Any, data: Any, batch: int = 4,
    skipped: Skipped | None = None,
) -> float:  # fmt: skip
    """Mean negative log-likelihood of the learned tokens of data; exp of it is the perplexity. `logits(model, batch)`
    gives those, and the targets."""
    nats = tokens = 0.0
    for rows in Loader(data, batch, shuffle=False, skipped=skipped):
        said, targets = logits(model, on_device(rows, model.device))
        known = targets != IGNORED
        each = ops.where(known, ops.cross_entropy(said, ops.where(known, targets, 0)), 0.0)
        nats += float(each.sum(axis=-1).sum())  # rows first: a sum over all would round otherwise
        tokens += float(known.astype("float32").sum())
    return nats / tokens
