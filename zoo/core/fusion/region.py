"""Regions: what of the record is calculated together, in canonical form.

A region lives in a space, a shape whose last axis are the columns. Its values are full (one for each place) or rows
(one for each row, with or without the last axis of size 1). It is grown backwards from the values asked for, and ends
at what is calculated already, at values of other shapes, and at reductions of another space. Places in the list of ops
are the names of values; inputs and numbers are listed apart: two regions of equal ops run the same program.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.dtype import HALVES
from zoo.core.fusion.node import Node
from zoo.core.fusion.program import NAMES, Op
from zoo.core.prim import Kind

ALIASES = ("expand", "reshape")
# one step of work: calculated again where it is needed again, which costs less than a pass over memory
CHEAP = frozenset(
    ("neg", "abs", "add", "sub", "mul", "maximum", "minimum", "square", "relu", "cast", "where", "equal", "not_equal",
     "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_and", "logical_or", "isnan", "expand",
     "reshape")
)  # fmt: skip


class Region:
    def __init__(self, space: tuple[int, ...]):
        self.space = space
        self.kept = (*space[:-1], 1)
        self.ops: list[Op] = []
        self.inputs: list[Any] = []
        self.numbers: list[float] = []
        self.found: dict[Any, int] = {}  # node, or an array's id and how it is read -> place
        self.nodes: list[tuple[Any, int]] = []  # with an op of their own
        self.inside: dict[Any, int] = {}  # node -> how often it is read in here
        self.wanted: set[Any] = set()  # nodes that somebody outside holds under another shape
        self.cuts: list[Any] = []  # not calculated, and of no place in here

    # growing

    def add(self, node: Any) -> None:
        self._row(node) if node.row else self._full(node)

    def _op(self, name: str, row: bool, rounding: str, *operands: int) -> int:
        self.ops.append((name, row, rounding, *operands))
        return len(self.ops) - 1

    def _number(self, x: float) -> int:
        self.numbers.append(x)
        return self._op("number", False, "")

    def _input(self, array: Any, row: bool, bare: bool) -> int:
        """bare: a row value without the last axis."""
        key = (id(array), row, bare)
        if key not in self.found:
            if isinstance(array, np.generic):
                array = np.asarray(array)
            self.found[key] = self._op("leaf", row, NAMES[array.dtype])
            self.inputs.append(array[..., None] if bare and array.ndim else array)
        return self.found[key]

    def _read(self, node: Any) -> None:
        self.inside[node] = self.inside.get(node, 0) + 1

    def _cut(self, node: Any) -> int:
        self.cuts.append(node)
        return 0

    def _full(self, node: Any) -> int:
        if node in self.found:
            return self.found[node]
        args = node.args
        if node.value is not None:
            return self._input(node.value, False, False)
        if node.prim.name == "expand":
            place = self.found[node] = self._operand(args[0])
            self._alias(node, args[0])
            return place
        return self._calculated(node, [self._operand(a) for a in args], False)

    def _operand(self, a: Any) -> int:
        """An argument of a full value: full itself, a row, an input that broadcasts, or a number."""
        if type(a) is not Node:
            return self._number(float(a)) if isinstance(a, float | int) else self._input(a, False, False)
        self._read(a)
        value = a.value
        if value is not None:
            return self._input(value, False, False)
        if a.shape == self.space:
            return self._cut(a) if a.row else self._full(a)
        return self._row(a) if a.row and a.shape == self.kept and a.space == self.space else self._cut(a)

    def _row(self, node: Any) -> int:
        if node in self.found:
            return self.found[node]
        prim, args, bare = node.prim, node.args, len(node.shape) < len(self.space)
        if node.value is not None:
            return self._input(node.value, True, bare)
        if node.space != self.space:
            return self._cut(node)
        if prim.name == "reshape":
            place = self.found[node] = self._row_operand(args[0], node.shape, alias=True)
            self._alias(node, args[0])
            return place
        if prim.kind is Kind.ELEMENTWISE:
            return self._calculated(node, [self._row_operand(a, node.shape) for a in args], True)
        # a reduction
        below = self._operand(args[0])
        if prim.name != "mean":
            place = self._op(prim.name, True, "", below)
        else:
            total = self._op("sum", True, "", below)
            place = self._op("div", True, "", total, self._number(float(self.space[-1])))
        if self._rounding(node):
            place = self._op(NAMES[node.dtype], True, "", place)
        self.found[node] = place
        self.nodes.append((node, place))
        return place

    def _row_operand(self, a: Any, shape: tuple[int, ...], alias: bool = False) -> int:
        bare = len(shape) < len(self.space)
        if type(a) is not Node:
            return self._number(float(a)) if isinstance(a, float | int) else self._input(a, True, bare)
        self._read(a)
        args, value = a.args, a.value
        if value is not None:
            return self._input(value, True, len(a.shape) < len(self.space) if alias else bare)
        if not (a.shape == shape or alias):
            return self._cut(a)
        if not a.row and a.prim.kind is Kind.ELEMENTWISE and a.shape == shape and a not in self.found:
            return self._calculated(a, [self._row_operand(x, shape) for x in args], True)
        return self._row(a)

    def _calculated(self, node: Any, operands: list[int], row: bool) -> int:
        name, rounding = node.prim.name, self._rounding(node)
        if name == "cast":  # registers hold float32
            to = NAMES[node.dtype]
            place = operands[0] if to == "float32" else self._op(to, row, "", *operands)
        else:
            place = self._op(name, row, rounding, *operands)
        self.found[node] = place
        self.nodes.append((node, place))
        return place

    def _alias(self, node: Any, below: Any) -> None:
        if node.handle() is not None:
            while below.prim.name in ALIASES and below.value is None:
                below = below.args[0]
            self.wanted.add(below)

    def _rounding(self, node: Any) -> str:
        """A half-precision value that more than one reader may see is the same for all of them; within a chain, float32
        is kept."""
        return NAMES[node.dtype] if node.dtype in HALVES and (node.uses > 1 or node.handle() is not None) else ""

    # results

    def results(self, roots: list[Any], most: int) -> list[tuple[Any, int]]:
        """The nodes whose values are kept: what was asked for, what somebody holds, and what is read elsewhere too and
        would be dear to calculate again."""
        asked = [(n, p) for n, p in self.nodes if n in roots]
        others = [(n, p) for n, p in self.nodes if n not in roots and self._kept(n)]
        return (asked + others)[:most]

    def _kept(self, node: Any) -> bool:
        if node.handle() is not None or node in self.wanted:
            return True
        return node.uses > self.inside.get(node, 0) and not (node.prim.name in CHEAP and node.count <= 2)
