"""An input of the model, for `zoo compare`."""

from __future__ import annotations

import numpy as np

from zoo.resnet.config import ResNetConfig


def example(config: ResNetConfig) -> tuple[np.ndarray, ...]:
    """A picture (1, 64, 64, channels) of noise; half as large where the stem keeps its size."""
    side = 32 if config.small_stem else 64
    return (np.random.default_rng(0).standard_normal((1, side, side, config.num_channels)).astype(np.float32),)
