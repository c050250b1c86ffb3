"""Which epoch is the best: by what was measured on validation data, so that a resumed run judges as one that never
stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LARGER_IS_BETTER = ("accuracy", "top1", "top5")


def given_up(history: Sequence[Any], patience: int) -> bool:
    """Whether the last `patience` epochs were none of them better than the best before (0: never)."""
    found = best(history)
    return patience > 0 and found is not None and history[-1].epoch - found.epoch >= patience


def best(history: Sequence[Any]) -> Any:
    """Of a Learner's history, the epoch with the least validation loss (or, without one, the best of the metric that
    is named first); the earliest of equals. None if nothing was validated."""
    found, most = None, -math.inf
    for epoch in history:
        if epoch.metrics:
            name = "loss" if "loss" in epoch.metrics else next(iter(epoch.metrics))
            score = epoch.metrics[name] * (1 if name in LARGER_IS_BETTER else -1)
            if score > most:  # which a metric that is not a number never is
                found, most = epoch, score
    return found
