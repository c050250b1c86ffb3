"""Weights rearranged once for the micro-kernel that reads them, so that it streams through memory: [N/NR][K][NR]; int8
as [N/NR][K/4][NR][4], + 128; int4 as [N/NR][K/32][4][NR][4] (csrc/quant/table.h); bfloat16, where the processor
multiplies it in pairs, as [N/NR][K/2][NR][2].

Packing costs about as much as a product with a few dozen rows, so it pays where the weight stays, as in a model that
runs. A packed weight stands wherever a weight does; an op that cannot use it gets the unpacked array back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from zoo.core.dtype import bfloat16, float16, float32, int8, uint8
from zoo.core.errors import OpError

uint16 = np.dtype(np.uint16)


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight, (N, K) for "linear" or (O, *kernel, C / groups) for "conv" (of integers: "int8", "int4"), packed for
    the instruction set `isa`, whose micro-kernel has `columns` columns; of bfloat16 maybe in pairs, which a float32
    buffer holds. Immutable; `shape` and `dtype` are those of the weight."""

    shape: tuple[int, ...]
    layout: str
    isa: str
    columns: int
    buffer: np.ndarray = field(repr=False)
    groups: int = 1
    dtype: np.dtype = float32
    pairs: bool = False

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def fits(self, isa: str, layout: str, groups: int = 1) -> bool:
        return self.isa == isa and self.layout == layout and self.groups == groups

    def unpack(self) -> np.ndarray:
        """The weight as it was, bit by bit."""
        outputs, depth = self.shape[0] // self.groups, prod(self.shape[1:])
        panels = self.buffer
        if self.layout == "int8":
            quads = panels.reshape(-1, -(-depth // 4), self.columns, 4).transpose(0, 2, 1, 3) ^ 0x80
            return quads.reshape(-1, quads.shape[2] * 4)[:outputs, :depth].copy().view(int8).reshape(self.shape)
        if self.layout == "int4":
            chunks = panels.reshape(-1, depth // 16, 4, self.columns, 4).transpose(0, 3, 1, 2, 4)
            codes = np.stack([chunks & 15, chunks >> 4], axis=3).reshape(-1, depth * 2)[:outputs]
            return codes[:, 0::2] | codes[:, 1::2] << 4
        steps = depth // 2 if self.pairs else depth
        rows = panels.reshape(self.groups, -1, steps, self.columns).transpose(0, 1, 3, 2)
        rows = rows.reshape(self.groups, -1, steps)[:, :outputs]
        return np.ascontiguousarray(rows).view(self.dtype).reshape(self.shape)


# what a buffer is made of, and how many inputs lie side by side in it, by dtype of the weight
FLOATS: dict[Any, Any] = {float32: (float32, 1), bfloat16: (uint16, 1), float16: (uint16, 1)}
STORED = {"linear": {**FLOATS, int8: (uint8, 4), uint8: (uint8, 16)}, "conv": {**FLOATS, int8: (uint8, 4)}}


def pack(native: Any, weight: np.ndarray, kind: str, groups: int = 1, pairs: bool = False) -> Packed:
    """Packs a weight for the instruction set in use; pairs: of bfloat16 whose last axis is even, as pairs.  Raises
    OpError for another dtype, shape or kind."""
    ranks = {"linear": (2,), "conv": (3, 4)}.get(kind, ())
    stored, unit = STORED.get(kind, {}).get(weight.dtype, (None, 1))
    known = stored is not None and weight.ndim in ranks and 0 not in weight.shape
    # the depthwise kernel reads a weight as it is; in panels it would be mostly zeros
    in_groups = kind == "conv" and weight.dtype != int8
    fits = groups == 1 or (in_groups and 1 < groups < weight.shape[0] and weight.shape[0] % groups == 0)
    if not known or not fits or (unit == 16 and weight.shape[1] % unit):
        raise OpError(
            f"it is {weight.dtype.name} {weight.shape}, in {groups} groups",
            "float32, bfloat16 and float16 pack as 'linear' (N, K) or 'conv' (O, K, C) or (O, K, K, C), if it is not "
            "depthwise; int8 so too, in one group; pairs of int4 (uint8, N, K / 2 in 16s) as 'linear'.",
            what=f"cannot pack a weight as {kind!r}",
        )
    shape, dtype = weight.shape, weight.dtype
    weight = np.ascontiguousarray(weight)
    pairs = pairs and dtype == bfloat16 and shape[-1] % 2 == 0
    if pairs:
        weight, stored = np.require(weight.view(float32), requirements="A"), float32
    columns = native.tile()[1]
    panels, depth = groups * -(-(weight.shape[0] // groups) // columns), prod(weight.shape[1:])
    buffer = aligned(panels * columns * (-(-depth // unit) * unit), stored)
    layout = {int8: "int8", uint8: "int4"}.get(weight.dtype, kind)
    if layout == "int8":
        native.pack_int8(weight.reshape(weight.shape[0], depth), buffer)
    elif layout == "int4":
        native.pack_int4(weight, buffer)
    elif layout == "linear":
        native.pack_linear(weight.view(stored), buffer, int(stored == uint16))
    else:
        native.pack_conv(as_2d(weight.view(stored)), buffer, groups, weight=int(stored == uint16))
    buffer.flags.writeable = False
    return Packed(shape, layout, native.isa(), columns, buffer, groups, dtype, pairs)


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a cache line: numpy's start 16 bytes after one, and then every vector is in two."""
    memory = np.empty(size * dtype.itemsize + 64, uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)


def as_2d(array: np.ndarray) -> np.ndarray:
    """One spatial axis becomes two, the first of size 1: (N, L, C) -> (N, 1, L, C), a view."""
    return array[:, None] if array.ndim == 3 else array
