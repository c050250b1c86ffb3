"""Guessing the next tokens cheaply, so that the model looks at several in one pass (Leviathan et al. 2023).

A pass over a few tokens reads the weights once, as a pass over one does, and takes little longer. `generate` chooses
every token from the model's own logits, by its own draw: a guess is only ever confirmed. So text is as it would be
without guesses, sampled or not: where guesses are certain (not drawn), the paper's speculative sampling is just this.
A pass over several rows may add in another order than a pass over one, and differ in the last bits of its logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.core.errors import ZooError
from zoo.llama.cache import Cache
from zoo.llama.generate import common, generate
from zoo.llama.model import Llama
from zoo.llama.tokenizer import Tokenizer

LONGEST = 3
"""Tokens that `Lookup` looks for at most: the longer, the surer, and the rarer."""
GUESSES = 5
"""Tokens that a draft model guesses at a time."""


class Proposer:
    """Something that guesses. `offered` and `right` count its guesses."""

    def __init__(self) -> None:
        self.offered = self.right = 0

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """Tokens that may come next, at most `most`."""
        guesses = self._guess(text, most)
        self.offered += len(guesses)
        return guesses

    def _guess(self, text: Sequence[int], most: int) -> list[int]:
        raise NotImplementedError


class Lookup(Proposer):
    """What came after the text's last tokens when they stood there before (prompt lookup, Saxena 2023): good where an
    answer repeats much of its prompt."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def _guess(self, text: Sequence[int], most: int) -> list[int]:
        ids = np.asarray(text)
        for size in range(min(LONGEST, len(ids) - 1), 0, -1):
            starts = np.arange(len(ids) - size)
            for j in range(size):
                starts = starts[ids[starts + j] == ids[len(ids) - size + j]]
            if len(starts):
                at = int(starts[-1]) + size  # the latest
                return [int(i) for i in ids[at : at + min(self.count, most)]]
        return []


class Draft(Proposer):
    """What a smaller model with the same vocabulary would write."""

    def __init__(self, model: Llama, vocabulary: int, count: int = GUESSES):
        """`vocabulary` is that of the model which decides: tokens beyond it are no guesses."""
        super().__init__()
        self.model, self.vocabulary, self.count = model, vocabulary, count
        self.cache = Cache(model.config, dtype=model.activations, device=model.device)

    def _guess(self, text: Sequence[int], most: int) -> list[int]:
        most = min(most, self.count, self.model.config.max_position_embeddings - len(text))
        if most < 1:
            return []
        guesses = list(generate(self.model, text, max_tokens=most, cache=self.cache))
        return guesses[: common(guesses, [min(i, self.vocabulary - 1) for i in guesses])]


def check_vocabulary(ours: Tokenizer, draft: Tokenizer, name: str) -> None:
    """Raises ZooError if a token id does not mean the same text to both models."""
    if ours.vocabulary() != draft.vocabulary():
        raise ZooError(
            f"{name} cannot be the draft model",
            "its tokenizer is another one, so that its token ids mean other text",
            "Use a smaller model of the same family.",
        )
