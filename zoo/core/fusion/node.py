"""What a Fusion device records: nodes, and the handles that tensors hold.

The record belongs to the values, as in Autodiff: a node holds the nodes and arrays it is made from, and nothing holds a
node but its handle and the nodes made from it. A node knows its handle by a weak reference: whether somebody can still
ask for its value is a fact, not a guess.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from zoo.core.prim import Prim


class Node:
    """One op that is not calculated yet, or its value.

    space, row: where it is calculated (see region.py).  uses: how many arguments of other nodes it is.  count, held: an
    upper bound of the nodes before it that are not calculated, itself included, and of the bytes that those hold on to.
    """

    __slots__ = ("args", "attrs", "count", "dtype", "handle", "held", "prim", "row", "shape", "space", "uses", "value")

    def __init__(
        self, prim: Prim, args: list[Any], attrs: Any, shape: tuple[int, ...], dtype: np.dtype,
        space: tuple[int, ...], row: bool,
    ):  # fmt: skip
        self.prim, self.args, self.attrs = prim, args, attrs
        self.shape, self.dtype = shape, dtype
        self.space, self.row = space, row
        self.value: Any = None
        self.uses, self.count, self.held = 0, 1, 0
        self.handle: Any = _nobody

    def keep(self, value: Any) -> None:
        """The value is known; what it was made from is let go. In this order, since other threads may be looking: who
        finds no arguments finds the value."""
        self.value = value
        self.args = []


def _nobody() -> None:
    return None


class Lazy:
    """The handle of a node."""

    __slots__ = ("__weakref__", "dtype", "node", "owner", "shape")

    def __init__(self, node: Node, owner: Any):
        self.node, self.owner = node, owner
        self.shape, self.dtype = node.shape, node.dtype
        node.handle = weakref.ref(self)
