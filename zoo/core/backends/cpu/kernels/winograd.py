"""Which algorithm a 3x3 convolution takes: direct, or Winograd's on tiles of 2x2 or 4x4 outputs (winograd.h).

Winograd's needs 2.25 or 4 times fewer multiplications, and 1.8 or 4 times the memory for the transformed weights, which
are made once for a packed weight, and at every call for a plain one. Which is fastest depends on the picture, so it is
chosen when the convolution is called:

1. what a measurement on this machine said, if the user's cache knows the shape (see tune.py);
2. else what is least by `cost`.

A packed weight keeps its transformed form as long as all such forms together stay within `budget`; beyond it they are
made at every call, where that is still cheaper than the direct convolution.
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


def cost(tile: int, images: int, out: tuple[int, int], channels: int, outputs: int, kept: bool) -> float:
    """Time, in operations for each pair of channels, from three measured figures: while one byte of memory is read, 7
    operations are done (11 at the roof of both, but they overlap); transforming one number costs as much as 64; making
    a form costs three times reading it."""
    places = 9 if tile == DIRECT else (tile + 2) ** 2
    across, down = (-(-n // max(tile, 1)) for n in out)
    spots = images * across * down
    lanes = -(-outputs // 16) * 16 / outputs
    products = 2 * places * max(spots, 8) * lanes
    transforms = 0 if tile == DIRECT else 64 * places * spots * (1 / channels + 1 / outputs)
    return products + transforms + 7 * 4 * places * (1 if kept else 3)


class Forms:
    """Transformed weights that are kept beside packed ones, within a budget of bytes."""

    def __init__(self, native: Any, budget: int):
        self.native, self.budget, self.kept = native, budget, 0
        self.lock = threading.Lock()
        self.made: weakref.WeakKeyDictionary[Packed, dict[int, np.ndarray]] = weakref.WeakKeyDictionary()

    @staticmethod
    def size(w: Any, tile: int, columns: int) -> int:
        return (tile + 2) ** 2 * -(-w.shape[0] // columns) * columns * w.shape[-1] * 4

    def room(self, w: Packed, tile: int) -> bool:
        """Is this form of w here, or would it fit?"""
        return tile in self.made.get(w, ()) or self.kept + self.size(w, tile, w.columns) <= self.budget

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
def cheapest(images: int, out: tuple[int, int], channels: int, outputs: int, kept: tuple[bool, bool, bool]) -> int:
    """The tile with the least `cost`; kept: for each of direct, 2 and 4, need the weights not be transformed now?"""
    prices = [cost(t, images, out, channels, outputs, k) for t, k in zip((DIRECT, *TILES), kept, strict=True)]
    return (DIRECT, *TILES)[prices.index(min(prices))]
