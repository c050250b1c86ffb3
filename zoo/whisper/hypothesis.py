"""A text that the speech may be, and which of several is kept (openai/whisper: MaximumLikelihoodRanker)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Hypothesis(NamedTuple):
    tokens: list[int]
    """Without the end."""
    logprob: float
    """Sum over its tokens, and the end if it came to one."""


def best(those: Sequence[Hypothesis], length_penalty: float | None) -> Hypothesis:
    """The likeliest for its length; the first of equals."""

    def score(one: Hypothesis) -> float:
        length = len(one.tokens)
        return one.logprob / (max(length, 1) if length_penalty is None else ((5 + length) / 6) ** length_penalty)

    return max(those, key=score)


def log_total(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the last axis: what log-softmax takes from each. (R, V) -> (R, 1)."""
    most = logits.max(axis=-1, keepdims=True)
    shares = logits - most
    return most + np.log(np.exp(shares, out=shares).sum(axis=-1, keepdims=True))
