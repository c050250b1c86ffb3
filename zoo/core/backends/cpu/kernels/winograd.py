"""Which algorithm a 3x3 convolution takes: direct, or Winograd's on tiles of 2x2 or 4x4 outputs (winograd.h).

Winograd's needs 2.25 or 4 times fewer multiplications, and 1.8 or 4 times the memory for the transformed weights, which
are made once for a packed weight, and at every call for a plain one. Which is fastest depends on the picture, so it is
chosen when the convolution is called:

1. what a measurement on this machine said, if the user's cache knows the shape (see tune.py);
2. else what is least by `cost`.

A packed weight keeps its transformed form where a picture has few tiles (FEW), as long as all such forms together stay
within `budget`. Elsewhere the form is made at every call, which adds little to so many products: whole, or where that
would be large by parts that stay in the cache, for tiles of 4 (FUSED).
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import lru_cache
from typing import Any

import numpy as np

from zoo.core.backends.cpu.pack import Packed
from zoo.core.stats import count

DIRECT, TILES = 0, (2, 4)  # outputs along one side of a tile
MADE, KEPT, FUSED = 0, 1, 2  # where a form comes from
LARGE = 48 << 20
"""Bytes of a form that is never made as a whole: it would be written to memory and read from there. Smaller ones stay
in L3 or are worth their memory: 1.2 to 1.4 times as fast as fused at 512 channels, 4 times for a picture of 7 x 7."""
FEW = 256
"""Tiles from which on a form is not kept: to make it is 4 % of the products, and 1 % for a picture of 128 x 128."""


def cost(tile: int, images: int, out: tuple[int, int], channels: int, outputs: int, kept: int) -> float:
    """Time, in operations for each pair of channels, from three measured figures: while one byte of memory is read, 7
    operations are done (11 at the roof of both, but they overlap); transforming one number costs as much as 64; making
    a form costs three times reading it; a fused one is read as 9 places, and transformed in the cache."""
    places = 9 if tile == DIRECT else (tile + 2) ** 2
    spots = tiles(images, out, max(tile, 1))
    lanes = -(-outputs // 16) * 16 / outputs
    products = 2 * places * max(spots, 8) * lanes
    transforms = 0 if tile == DIRECT else 64 * places * spots * (1 / channels + 1 / outputs)
    return products + transforms + 7 * 4 * places * (3, 1, 0.5)[kept]


class Forms:
    """Transformed weights that are kept beside packed ones, within a budget of bytes."""

    def __init__(self, native: Any, budget: int):
        self.native, self.budget, self.kept = native, budget, 0
        self.lock = threading.Lock()
        self.made: weakref.WeakKeyDictionary[Packed, dict[int, np.ndarray]] = weakref.WeakKeyDictionary()

    @staticmethod
    def size(w: Any, tile: int, columns: int) -> int:
        return (tile + 2) ** 2 * -(-w.shape[0] // columns) * columns * w.shape[-1] * 4

    def kept_as(self, w: Packed, tile: int, spots: int) -> int:
        """Where this form of w comes from, for a picture of so many tiles."""
        if large(w):
            return FUSED if tile == TILES[-1] else MADE
        room = tile in self.made.get(w, ()) or self.kept + self.size(w, tile, w.columns) <= self.budget
        return KEPT if room and spots < FEW else MADE

    def get(self, w: Packed, tile: int) -> np.ndarray | None:
        """This form of w, made if need be; None if there is no room."""
        with self.lock:
            forms = self.made.setdefault(w, {})
            if tile not in forms:
                size = self.size(w, tile, w.columns)
                if self.kept + size > self.budget:
                    return None
                form = self.make(w, tile)
                if not forms:
                    weakref.finalize(w, self._gone, forms)
                forms[tile] = form
                self.kept += size
                count("cpu.winograd_weight")
            return forms[tile]

    def make(self, w: Packed, tile: int) -> np.ndarray:
        """A new form of w, which is not kept."""
        form = np.empty(self.size(w, tile, w.columns) // 4, np.float32)
        self.native.pack_conv(w.unpack().astype(np.float32, copy=False), form, winograd=tile)
        return form

    def _gone(self, forms: dict[int, np.ndarray]) -> None:
        self.kept -= sum(form.nbytes for form in forms.values())


def large(w: Packed) -> bool:
    """Too large to be made as a whole?"""
    return Forms.size(w, TILES[-1], w.columns) > LARGE


def tiles(images: int, out: tuple[int, int], tile: int) -> int:
    return images * -(-out[0] // tile) * -(-out[1] // tile)


def default_budget() -> int:
    """A quarter of the machine's memory, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        return 2 << 30


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
def cheapest(images: int, out: tuple[int, int], channels: int, outputs: int, kept: tuple[int, int, int]) -> int:
    """The tile with the least `cost`; kept: for each of direct, 2 and 4, where the weights come from."""
    prices = [cost(t, images, out, channels, outputs, k) for t, k in zip((DIRECT, *TILES), kept, strict=True)]
    return (DIRECT, *TILES)[prices.index(min(prices))]
