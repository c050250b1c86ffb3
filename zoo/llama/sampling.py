"""The next token from logits: numpy on one row, after transformers' logits processors and in their order:
bias, repetition, presence and frequency penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Every setting's default changes nothing; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 0
    """Only the k likeliest; 0: all."""
    top_p: float = 1.0
    """Only the likeliest whose probabilities add up to top_p (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Only those at least min_p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Of tokens that occurred: positive logits are divided by it, negative multiplied (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """The same for each time that it was."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> added to its logit."""

    def __post_init__(self) -> None:
        for name, good, what in (
            ("temperature", self.temperature >= 0, "at least 0; 0 takes the likeliest token"),
            ("top_k", self.top_k >= 0, "at least 0; 0 allows all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 changes nothing"),
        ):
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be {what}")

    def choose(self, logits: np.ndarray, prompt: Sequence[int], generated: Sequence[int], draw: float) -> int:
        """A token id. logits (V,) float32; draw: a uniform number in [0, 1), not used where temperature is 0."""
        scores = self._penalised(logits.astype(np.float32), prompt, generated)
        if self.temperature == 0:
            return int(scores.argmax())
        order, probabilities = self._kept(scores / np.float32(self.temperature))
        total = np.cumsum(probabilities, dtype=np.float64)
        return int(order[min(int(np.searchsorted(total, draw * total[-1], side="right")), len(order) - 1)])

    def _penalised(self, scores: np.ndarray, prompt: Sequence[int], generated: Sequence[int]) -> np.ndarray:
        for token, value in self.logit_bias.items():
            scores[token] += value
        if self.repetition_penalty != 1:
            seen = np.unique(np.array([*prompt, *generated], dtype=np.int64))
            old, by = scores[seen], np.float32(self.repetition_penalty)
            scores[seen] = np.where(old > 0, old / by, old * by)
        if (self.presence_penalty or self.frequency_penalty) and len(generated):
            seen, counts = np.unique(np.array(generated, dtype=np.int64), return_counts=True)
            scores[seen] -= np.float32(self.presence_penalty) + np.float32(self.frequency_penalty) * counts
        return scores

    def _kept(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids that may be drawn, likeliest first, and their probabilities (not summing to 1)."""
        if 0 < self.top_k < len(scores):
            kept = np.argpartition(-scores, self.top_k - 1)[: self.top_k]
        else:
            kept = np.arange(len(scores))
        order = kept[np.argsort(-scores[kept], kind="stable")]
        probabilities = np.exp(scores[order] - scores[order[0]])
        if self.top_p < 1:
            likelier = np.cumsum(probabilities) - probabilities  # 0 for the first, which is always kept
            count = int((likelier < self.top_p * probabilities.sum()).sum())
            order, probabilities = order[:count], probabilities[:count]
        if self.min_p > 0:
            count = int((probabilities >= self.min_p * probabilities[0]).sum())
            order, probabilities = order[:count], probabilities[:count]
        return order, probabilities
