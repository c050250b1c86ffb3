"""Beam search with patience (openai/whisper: BeamSearchDecoder; Kasai et al. 2022, arXiv:2204.05424).

transformers' beam search is another: it divides by length while it searches, and ends when no live text can win any
more; here texts are compared when all have ended, and a window has ended when it has found patience * size of them.
"""

from __future__ import annotations

import numpy as np

from zoo.whisper.hypothesis import Hypothesis, log_total


class BeamSearch:
    """Of each window the `size` likeliest texts are followed at once."""

    def __init__(self, windows: int, size: int, patience: float, eot: int):
        self.windows, self.size, self.eot = windows, size, eot
        self.enough = max(round(size * patience), 1)
        self.written: list[list[int]] = []
        self.logprobs = [0.0] * windows
        self.finished: list[list[Hypothesis]] = [[] for _ in range(windows)]
        self.closed: list[list[Hypothesis] | None] = [None] * windows
        """Of a window that found enough; it is computed along until all have, and nothing is added to it."""

    def step(self, logits: np.ndarray) -> list[int] | None:
        # each row's size + 1 likeliest tokens are enough: one of them may be the end
        count = min(self.size + 1, logits.shape[1])
        tokens = np.argpartition(logits, -count, axis=1)[:, -count:]
        scores = np.take_along_axis(logits, tokens, axis=1) - log_total(logits)
        each = len(logits) // self.windows
        before = self.written or [[] for _ in range(self.windows)]
        sources: list[int] = []
        written: list[list[int]] = []
        logprobs: list[float] = []
        for window, finished in enumerate(self.finished):
            candidates = [
                (self.logprobs[row] + float(score), row, int(token))
                for row in range(window * each, (window + 1) * each)
                for score, token in zip(scores[row], tokens[row], strict=True)
            ]
            saved = 0
            for logprob, row, token in sorted(candidates, key=lambda one: -one[0]):
                if token == self.eot:
                    if len(finished) < self.enough:
                        finished.append(Hypothesis(before[row], logprob))
                    continue
                sources.append(row)
                written.append([*before[row], token])
                logprobs.append(logprob)
                saved += 1
                if saved == self.size:
                    break
        self.written, self.logprobs = written, logprobs
        for window, finished in enumerate(self.finished):
            if self.closed[window] is None and len(finished) >= self.enough:
                self.closed[window] = self._found(window)
        return sources if None in self.closed else None

    def hypotheses(self) -> list[list[Hypothesis]]:
        return [self._found(window) if closed is None else closed for window, closed in enumerate(self.closed)]

    def _found(self, window: int) -> list[Hypothesis]:
        """Those that have ended; where they are fewer than the beam is wide, the likeliest of the others too."""
        rows = range(window * self.size, (window + 1) * self.size)
        live = sorted((Hypothesis(self.written[row], self.logprobs[row]) for row in rows), key=lambda h: -h.logprob)
        return self.finished[window] + live[: max(self.size - len(self.finished[window]), 0)]
