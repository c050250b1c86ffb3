"""An input of the model, for `zoo compare`."""

from __future__ import annotations

import numpy as np

from zoo.bert.config import BertConfig


def example(config: BertConfig) -> tuple[np.ndarray, ...]:
    """Token ids (1, 12); none is special: RoBERTa's positions depend on where padding is."""
    rng = np.random.default_rng(0)
    return (rng.integers(config.vocab_size // 2, config.vocab_size, (1, 12)).astype(np.int32),)
