"""An input of the model, for `zoo compare`."""

from __future__ import annotations

import numpy as np

from zoo.whisper.config import WhisperConfig


def example(config: WhisperConfig) -> tuple[np.ndarray, ...]:
    """Features of a window (1, frames, mel bands), as loud as speech's; and token ids (1, 7)."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, 2 * config.max_source_positions, config.num_mel_bins)).astype(np.float32)
    return features, rng.integers(0, config.vocab_size, (1, 7)).astype(np.int32)
