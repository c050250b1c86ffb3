"""What the decoder may write next: rules that set logits to -inf (openai/whisper: LogitFilter in whisper/decoding.py).

Shapes: R rows, hypotheses side by side; V entries of the vocabulary. `written` holds for each row the tokens that it
has written so far, without the prompt; all rows have written equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

NEVER = np.float32(-np.inf)


class Rule(Protocol):
    def apply(self, logits: np.ndarray, written: Sequence[Sequence[int]]) -> None:
        """Forbids tokens in `logits` (R, V), in place."""


class SuppressTokens:
    """Tokens that are never written: marks of what is not speech, and most special tokens."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = np.unique(np.asarray(tokens, np.int64))

    def apply(self, logits: np.ndarray, written: Sequence[Sequence[int]]) -> None:
        logits[:, self.tokens] = NEVER


class SuppressBlank(SuppressTokens):
    """Tokens that nothing begins with: a space, the end."""

    def apply(self, logits: np.ndarray, written: Sequence[Sequence[int]]) -> None:
        if not written[0]:
            super().apply(logits, written)


class ApplyTimestampRules:
    """Timestamps come in pairs, except before the end, and never go back; the first token is one.

    Ids from `timestamp_begin` on are timestamps; from `eot` on, tokens that are no text.
    """

    def __init__(self, timestamp_begin: int, eot: int, no_timestamps: int | None, max_initial: int | None):
        """max_initial: the first timestamp is at most so many steps of 0.02 s; None: any."""
        self.timestamp_begin, self.eot = timestamp_begin, eot
        self.no_timestamps, self.max_initial = no_timestamps, max_initial

    def apply(self, logits: np.ndarray, written: Sequence[Sequence[int]]) -> None:
        begin = self.timestamp_begin
        if self.no_timestamps is not None:
            logits[:, self.no_timestamps] = NEVER
        for row, tokens in zip(logits, written, strict=True):
            if not tokens:
                row[:begin] = NEVER
                if self.max_initial is not None:
                    row[begin + self.max_initial + 1 :] = NEVER
            else:
                self._pairs(row, tokens)
            self._likelier_than_text(row)

    def _pairs(self, row: np.ndarray, tokens: Sequence[int]) -> None:
        begin = self.timestamp_begin
        opened = False
        if tokens[-1] >= begin:
            if len(tokens) < 2 or tokens[-2] >= begin:
                row[begin:] = NEVER  # the pair is whole: text comes next
            else:
                row[: self.eot] = NEVER  # one that ends a text: another, or the end
                opened = True
        last = next((token for token in reversed(tokens) if token >= begin), None)
        if last is not None:
            # The one that begins the next text may be the same; one that ends a text is later than its beginning:
            # a segment of no length would be found again for ever.
            row[begin : last if opened else last + 1] = NEVER

    def _likelier_than_text(self, row: np.ndarray) -> None:
        """Where all timestamps together are likelier than any text token, one of them it is. Both are compared
        before they are normalised: log-softmax would take the same from both."""
        stamps, text = row[self.timestamp_begin :], row[: self.timestamp_begin]
        if not len(stamps) or (most := stamps.max()) == NEVER:
            return
        if most + np.log(np.exp(stamps - most).sum()) > text.max():
            text[:] = NEVER
