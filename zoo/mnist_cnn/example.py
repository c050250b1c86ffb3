"""An input of the model, for `zoo compare`."""

from __future__ import annotations

import numpy as np

from zoo.mnist_cnn.config import MnistConfig


def example(config: MnistConfig) -> tuple[np.ndarray, ...]:
    """A picture (1, 28, 28) of noise between 0 and 1."""
    return (np.random.default_rng(0).random((1, 28, 28)).astype(np.float32),)
