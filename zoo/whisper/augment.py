"""SpecAugment (Park et al. 2019): stretches of time and bands of frequency that are not heard, so that no single moment
or pitch is relied on. The numbers have the names of transformers' WhisperConfig; what is masked becomes 0, the middle
of the features' range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SpecAugment:
    mask_time_prob: float = 0.0
    """The share of frames that is masked, were masks never to overlap."""
    mask_time_length: int = 10
    """Frames of a mask; 10 are 0.1 s."""
    mask_feature_prob: float = 0.0
    """The same of the mel bands."""
    mask_feature_length: int = 10

    def __call__(self, features: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
        """features (T, n_mels), of which the first `frames` are sound -> the same with masks, in place."""
        for start in starts(frames, self.mask_time_prob, self.mask_time_length, rng):
            features[start : start + self.mask_time_length] = 0
        for start in starts(features.shape[1], self.mask_feature_prob, self.mask_feature_length, rng):
            features[:, start : start + self.mask_feature_length] = 0
        return features


def starts(size: int, prob: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Where masks of `length` begin among `size` places: prob * size / length of them on average, none over the end."""
    if length > size:
        return np.zeros(0, int)
    count = min(int(prob * size / length + rng.random()), size - length + 1)
    return rng.choice(size - length + 1, count, replace=False)
