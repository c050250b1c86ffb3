"""Weights rearranged once for the micro-kernel that reads them: [N/NR][K][NR], so that it streams through memory.

Packing costs about as much as a product with a few dozen rows, so it pays where the weight stays, as in a model that
runs. A packed weight stands wherever a weight does; an op that cannot use it gets the unpacked array back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from zoo.core.dtype import bfloat16, float16, float32
from zoo.core.errors import OpError


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight, (N, K) for "linear" or (O, *kernel, C / groups) for "conv", packed for the instruction set
    `isa`, whose micro-kernel has `columns` columns. Immutable; `shape` and `dtype` are those of the weight."""

    shape: tuple[int, ...]
    layout: str
    isa: str
    columns: int
    buffer: np.ndarray = field(repr=False)
    groups: int = 1
    dtype: np.dtype = float32

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def fits(self, isa: str, layout: str, groups: int = 1) -> bool:
        return self.isa == isa and self.layout == layout and self.groups == groups

    def unpack(self) -> np.ndarray:
        """The weight as it was, bit by bit."""
        outputs, depth = self.shape[0] // self.groups, prod(self.shape[1:])
        panels = self.buffer.reshape(self.groups, -1, depth, self.columns)
        rows = panels.transpose(0, 1, 3, 2).reshape(self.groups, -1, depth)[:, :outputs]
        return np.ascontiguousarray(rows).view(self.dtype).reshape(self.shape)


def pack(native: Any, weight: np.ndarray, kind: str, groups: int = 1) -> Packed:
    """Packs a weight for the instruction set in use.  Raises OpError for another dtype, shape or kind."""
    rank = weight.ndim - 2
    ranks = {"linear": (0,), "conv": (1, 2)}.get(kind, ())
    known = weight.dtype in (float32, bfloat16, float16) and rank in ranks and 0 not in weight.shape
    # the depthwise kernel reads a weight as it is; in panels it would be mostly zeros
    if not known or groups < 1 or weight.shape[0] % groups or groups == weight.shape[0] > 1:
        raise OpError(
            f"it is {weight.dtype.name} {weight.shape}, in {groups} groups",
            "(N, K) of float32, bfloat16 or float16 packs as 'linear'; (O, K, C) or (O, K, K, C) as 'conv', if it is "
            "not depthwise.",
            what=f"cannot pack a weight as {kind!r}",
        )
    weight = np.ascontiguousarray(weight)
    columns = native.tile()[1]
    panels = groups * -(-(weight.shape[0] // groups) // columns)
    stored = np.float32 if weight.dtype == float32 else np.uint16
    buffer = np.empty(panels * columns * prod(weight.shape[1:]), dtype=stored)
    if kind == "linear":
        native.pack_linear(weight.view(stored), buffer, stored is np.uint16)
    else:
        native.pack_conv(as_2d(weight.view(stored)), buffer, groups, weight=int(stored is np.uint16))
    buffer.flags.writeable = False
    return Packed(weight.shape, kind, native.isa(), columns, buffer, groups, weight.dtype)


def as_2d(array: np.ndarray) -> np.ndarray:
    """One spatial axis becomes two, the first of size 1: (N, L, C) -> (N, 1, L, C), a view."""
    return array[:, None] if array.ndim == 3 else array
