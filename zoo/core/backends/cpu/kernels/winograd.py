"""Which algorithm a 3x3 convolution at stride 1 takes: the direct one, or Winograd's on tiles of 4x4 outputs.

Winograd's (csrc/conv/winograd.h) needs 4 times fewer multiplications, and 36 transformed weights for each 9, which are
made at every call: kept, they would take 4 times the memory, and as long to read as to make. Which algorithm is faster
depends on the picture, so it is chosen when the convolution is called:

1. what a measurement on this machine said, if the user's cache knows the shape (see tune.py);
2. else what is least by `cost`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

SIDE = 4
"""Outputs along one side of a tile."""


def cost(winograd: bool, images: int, out: tuple[int, int], channels: int, outputs: int, packed: bool) -> float:
    """Time, in operations for each pair of channels, from measured figures: while one byte of memory is read, 7
    operations are done (11 at the roof of both, but they overlap); transforming one number of a picture costs as much
    as 64, the 36 weights of a pair as 500; a plain weight is read, written packed, and read again."""
    spots = images * -(-out[0] // SIDE) * -(-out[1] // SIDE) if winograd else images * out[0] * out[1]
    lanes = -(-outputs // 16) * 16 / outputs
    weights = 7 * 4 * 9 * (1 if packed else 3)
    if not winograd:
        return 2 * 9 * max(spots, 8) * lanes + weights
    return 2 * 36 * max(spots, 8) * lanes + 64 * 36 * spots * (1 / channels + 1 / outputs) + weights + 500


def fits(x: np.ndarray, w: Any, stride: Any, dilation: Any, groups: int) -> bool:
    """May this convolution be done by Winograd's algorithm?"""
    return (
        x.ndim == 4
        and w.shape[1:3] == (3, 3)
        and groups == 1
        and stride == dilation == (1, 1)
        and (x.strides[3] == 4 or x.shape[3] == 1)
    )


@lru_cache(maxsize=4096)
def cheaper(images: int, out: tuple[int, int], channels: int, outputs: int, packed: bool, pairs: bool = False) -> bool:
    """Is Winograd's algorithm, by `cost`? The direct one takes half its time with weights in pairs of bfloat16."""
    shape = (images, out, channels, outputs, packed)
    return cost(True, *shape) < cost(False, *shape) / (2 if pairs else 1)
