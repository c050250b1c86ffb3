"""An input of the model, for `zoo compare`."""

from __future__ import annotations

import numpy as np

from zoo.llama.config import LlamaConfig


def example(config: LlamaConfig) -> tuple[np.ndarray, ...]:
    """Token ids (1, 12)."""
    return (np.random.default_rng(0).integers(0, config.vocab_size, (1, 12)).astype(np.int32),)
