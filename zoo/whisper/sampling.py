"""The likeliest token, or one drawn by temperature (openai/whisper: GreedyDecoder)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.core.random import Generator
from zoo.whisper.hypothesis import Hypothesis, log_total


class Sampling:
    """`count` hypotheses of each window, each by itself. Temperature 0 takes the likeliest token."""

    def __init__(self, places: Sequence[int], count: int, temperature: float, eot: int, seed: int):
        """places: a number for each window, which chooses what is drawn for it."""
        self.places, self.count, self.temperature, self.eot, self.seed = list(places), count, temperature, eot, seed
        self.written: list[list[int]] = []
        self.logprobs = [0.0] * (len(self.places) * count)
        self.ended = [False] * len(self.logprobs)

    def step(self, logits: np.ndarray) -> list[int] | None:
        rows = range(len(self.logprobs))
        sources = list(rows) if self.written else [row // self.count for row in rows]
        self.written = self.written or [[] for _ in rows]
        totals = log_total(logits)[:, 0]
        for row, source in enumerate(sources):
            scores = logits[source]
            token = self.eot if self.ended[row] else self._choose(scores, row)
            if not self.ended[row]:
                self.logprobs[row] += float(scores[token] - totals[source])
            self.written[row].append(token)
            self.ended[row] = token == self.eot
        return None if all(self.ended) else sources

    def hypotheses(self) -> list[list[Hypothesis]]:
        texts = [row[: row.index(self.eot)] if self.eot in row else row for row in self.written]
        found = [Hypothesis(list(text), logprob) for text, logprob in zip(texts, self.logprobs, strict=True)]
        return [found[at : at + self.count] for at in range(0, len(found), self.count)]

    def _choose(self, scores: np.ndarray, row: int) -> int:
        if self.temperature == 0:
            return int(scores.argmax())
        scaled = (scores - scores.max()) / np.float32(self.temperature)
        total = np.cumsum(np.exp(scaled), dtype=np.float64)
        return int(np.searchsorted(total, self._draw(row) * total[-1], side="right"))

    def _draw(self, row: int) -> float:
        """In [0, 1): of the seed, the window, the temperature, the hypothesis and the position, and nothing else."""
        window, hypothesis = divmod(row, self.count)
        block = self.places[window]
        for digit in (round(100 * self.temperature), hypothesis, len(self.written[row])):
            block = block << 10 | digit % 1024
        return float(Generator(self.seed, block).uniform((), device="numpy").numpy())
