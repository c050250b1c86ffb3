"""From a region in canonical form to a program of the tile interpreter (csrc/tiles): expressions become steps, values
get registers. A program knows no sizes and no numbers: those come with every run, so that one program serves all.

An op of a region is a tuple (name, row, rounding, *operands), operands being places of earlier ops:
    ("leaf", row, type)                       an input
    ("number", False, "")                     a Python number; it comes with the run
    ("exp", row, "", 3)                       the expression of an elementwise op
    ("bfloat16", row, "", 3)                  rounded to what that dtype holds
    ("sum", True, "", 3)                      reduced along each row; so max, min
row: one value for each row of the space instead of one for each place. rounding: the half-precision dtype whose values
the result must have, since others than this region may see it; "" where float32 is kept.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from zoo.core.dtype import dtype
from zoo.core.prims import TABLE

Op = tuple[Any, ...]

BINARY = {ast.Add: "ADD", ast.Sub: "SUB", ast.Mult: "MUL", ast.Div: "DIV"}
COMPARE = {ast.Eq: "EQUAL", ast.NotEq: "NOT_EQUAL", ast.Lt: "LESS", ast.LtE: "LESS_EQUAL"}
TURNED = {ast.Gt: "LESS", ast.GtE: "LESS_EQUAL"}
CALLS = {
    "abs": "ABS", "sign": "SIGN", "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT", "tanh": "TANH",
    "erf": "ERF", "sigmoid": "SIGMOID", "floor": "FLOOR", "round": "ROUND", "isnan": "ISNAN", "logical_not": "NOT",
    "maximum": "MAXIMUM", "minimum": "MINIMUM", "logical_and": "AND", "logical_or": "OR", "where": "WHERE",
}  # fmt: skip
ROUNDINGS = {"bfloat16": "TO_BF16", "float16": "TO_F16"}
REDUCTIONS = {"sum": "SUM", "max": "MAX", "min": "MIN"}

# as numbered in csrc/tiles/table.h
REGISTERS, ROWS, NUMBERS, INPUTS, OUTPUTS = 16, 16, 32, 16, 8
FIRST_ROW, FIRST_NUMBER = REGISTERS, REGISTERS + ROWS
STORED = {"float32": 0, "bfloat16": 1, "float16": 2, "bool": 3, "int8": 4, "uint8": 5, "int32": 6}
NAMES = {dtype(name): name for name in STORED}  # numpy works a dtype's name out anew each time

Tree = Any  # ("code", tree, ...), an argument's place, or a number


class UnknownWord(Exception):
    """A word of an expression that the interpreter does not know."""


@functools.cache
def tree(name: str) -> Tree | None:
    """The expression of an elementwise op, or None if it has words that the interpreter does not know."""
    prim = TABLE.get(name)
    if prim is None or prim.expr is None:
        return None
    places = "abc"[: prim.arity]

    def translate(e: ast.expr) -> Tree:
        match e:
            case ast.Name(id=name) if name in places:
                return places.index(name)
            case ast.Constant(value=(int() | float()) as value):
                return float(value)
            case ast.UnaryOp(op=ast.USub()):
                return ("NEG", translate(e.operand))
            case ast.BinOp() if type(e.op) in BINARY:
                return (BINARY[type(e.op)], translate(e.left), translate(e.right))
            case ast.Compare(ops=[op]):
                a, b = translate(e.left), translate(e.comparators[0])
                return (TURNED[type(op)], b, a) if type(op) in TURNED else (COMPARE[type(op)], a, b)
            case ast.Call(func=ast.Name(id=word)) if word in CALLS:
                return (CALLS[word], *(translate(a) for a in e.args))
        raise UnknownWord

    try:
        return translate(ast.parse(prim.expr.format(*places), mode="eval").body)
    except UnknownWord:
        return None


class Value(NamedTuple):
    """What a step reads or writes: a number, or a register that is not chosen yet."""

    kind: str  # "number", "row", "tile"
    name: int


class Step(NamedTuple):
    code: str
    out: Value | int  # of STORE: the output
    args: tuple[Value | int, ...]  # of LOAD: the input


class TooLarge(Exception):
    """More registers, numbers, inputs or outputs than the interpreter has."""


class Program(NamedTuple):
    run: Callable[..., None]
    constants: list[float]  # follow the numbers of the region


class Writer:
    """Writes the steps of one program. Without `whole`, registers do not outlive a pass over the row, and what a later
    pass needs is calculated again."""

    def __init__(self, ops: tuple[Op, ...], outputs: tuple[tuple[int, str], ...], whole: bool):
        self.ops, self.outputs, self.whole = ops, outputs, whole
        self.stage: list[int] = []
        for i in range(len(ops)):
            self.stage.append(self._stage(i))
        self.numbers = [i for i, op in enumerate(ops) if op[0] == "number"]
        self.leaves = [i for i, op in enumerate(ops) if op[0] == "leaf"]
        self.constants: list[float] = []
        self.segments: list[tuple[bool, list[Step]]] = []
        self.made: dict[int, Value] = {}
        self.rows: dict[int, Value] = {}
        self.count = 0

    def _stage(self, i: int) -> int:
        """How many reductions come before this value: it is known in the pass of that number."""
        name, _, _, *operands = self.ops[i]
        if name in ("leaf", "number"):
            return 0
        return max(self.stage[k] for k in operands) + (name in REDUCTIONS)

    def write(self) -> None:
        for pass_ in range(1 + max(self.stage, default=0)):
            self.segments.append((True, []))
            for i, op in enumerate(self.ops):
                if op[1] and self.stage[i] == pass_ and op[0] not in REDUCTIONS:
                    self.rows[i] = self._emit(i, True)
            for k, (i, _) in enumerate(self.outputs):
                if self._row_output(k) and self.stage[i] == pass_:
                    self.segments[-1][1].append(Step("STORE", k, (self.rows[i],)))
            self.segments.append((False, []))
            self.spread: dict[int, Value] = {}
            if not self.whole:
                self.made = {}
            for i, op in enumerate(self.ops):
                if op[0] in REDUCTIONS and self.stage[i] == pass_ + 1:
                    self.rows[i] = self._new("row")
                    self.segments[-1][1].append(Step(REDUCTIONS[op[0]], self.rows[i], (self._full(op[3]),)))
            for k, (i, _) in enumerate(self.outputs):
                if not self._row_output(k) and self.stage[i] == pass_:
                    self.segments[-1][1].append(Step("STORE", k, (self._full(i),)))
        self.segments = [s for s in self.segments if s[1]]

    def _row_output(self, k: int) -> bool:
        return bool(self.ops[self.outputs[k][0]][1])

    def _new(self, kind: str) -> Value:
        self.count += 1
        return Value(kind, self.count)

    def _number(self, i: int) -> Value:
        return Value("number", self.numbers.index(i))

    def _constant(self, x: float) -> Value:
        if x not in self.constants:
            self.constants.append(x)
        return Value("number", len(self.numbers) + self.constants.index(x))

    def _full(self, i: int) -> Value:
        """Op i as a register of this pass."""
        if self.ops[i][0] == "number":
            return self._number(i)
        if self.ops[i][1]:
            if i not in self.spread:
                self.spread[i] = self._step("SPREAD", False, self.rows[i])
            return self.spread[i]
        if i not in self.made:
            self.made[i] = self._emit(i, False)
        return self.made[i]

    def _step(self, code: str, row: bool, *args: Value | int) -> Value:
        out = self._new("row" if row else "tile")
        self.segments[-1][1].append(Step(code, out, args))
        return out

    def _emit(self, i: int, row: bool) -> Value:
        name, _, rounding, *operands = self.ops[i]
        if name == "leaf":
            return self._step("LOAD", row, self.leaves.index(i))
        args = [self._operand(k, row) for k in operands]
        if name in ROUNDINGS:
            return self._step(ROUNDINGS[name], row, *args)

        def walk(t: Tree) -> Value:
            if isinstance(t, int):
                return args[t]
            if isinstance(t, float):
                return self._constant(t)
            return self._step(t[0], row, *[walk(part) for part in t[1:]])

        y = walk(("NOT_EQUAL", 0, 0.0) if name == "bool" else tree(name))
        return self._step(ROUNDINGS[rounding], row, y) if rounding else y

    def _operand(self, k: int, row: bool) -> Value:
        if not row:
            return self._full(k)
        return self._number(k) if self.ops[k][0] == "number" else self.rows[k]


def _allocated(segments: list[tuple[bool, list[Step]]]) -> tuple[list[tuple[Step, dict[Value, int]]], int, int]:
    """Each step with the registers of its values, and how many registers of both kinds are used. A register is free
    again after the last step that reads its value, whose result may take it; a row register not before the end of a
    segment of tiles, which runs once for each tile of the row."""
    last: dict[Value, int] = {}
    at = 0
    for row, steps in segments:
        end = at + len(steps)
        for step in steps:
            for v in (*step.args, step.out):
                if isinstance(v, Value):
                    last[v] = max(last.get(v, 0), end if v.kind == "row" and not row else at)
            at += 1
    free = {"tile": list(range(REGISTERS))[::-1], "row": list(range(FIRST_ROW, FIRST_ROW + ROWS))[::-1]}
    place: dict[Value, int] = {}
    written = []
    most = {"tile": 0, "row": FIRST_ROW}
    for at, step in enumerate(step for _, steps in segments for step in steps):
        used = {v: place[v] if v.kind != "number" else FIRST_NUMBER + v.name for v in step.args if isinstance(v, Value)}
        for v in [v for v in place if last[v] <= at]:
            free[v.kind].append(place.pop(v))
        if isinstance(step.out, Value):
            if not free[step.out.kind]:
                raise TooLarge
            used[step.out] = place[step.out] = free[step.out.kind].pop()
            most[step.out.kind] = max(most[step.out.kind], used[step.out] + 1)
        written.append((step, used))
    return written, most["tile"], most["row"] - FIRST_ROW


def compiled(native: Any, ops: tuple[Op, ...], outputs: tuple[tuple[int, str], ...], whole: bool) -> Program | None:
    """The program of a region whose results are `outputs`: (place of the op, dtype). whole: a row fits into a tile.
    None if it is too large for the interpreter."""
    writer = Writer(ops, outputs, whole)
    writer.write()
    try:
        steps, registers, rows = _allocated(writer.segments)
        if len(writer.leaves) > INPUTS or len(outputs) > OUTPUTS or len(writer.numbers + writer.constants) > NUMBERS:
            raise TooLarge
    except TooLarge:
        return None
    codes, written = native.tile_codes(), bytearray()
    sizes: list[int] = []
    for _, part in writer.segments:
        sizes.append(0)
        for _ in part:
            step, used = steps.pop(0)
            args = [used[a] if isinstance(a, Value) else a for a in step.args]
            out = used[step.out] if isinstance(step.out, Value) else step.out
            if _stores_last(step, written, codes, args, sizes):
                written[-1] = out + 1
                continue
            written += bytes([codes[step.code], out, *(args * 3)[:3], 0])
            sizes[-1] += 1
    segments, at = [], 0
    for (row, _), size in zip(writer.segments, sizes, strict=True):
        segments.append((int(row), at, at + size))
        at += size
    types = [STORED[ops[i][2]] for i in writer.leaves]
    results = [(STORED[name], int(writer.ops[i][1])) for i, name in outputs]
    by_rows = any(op[1] for op in ops)
    program = native.TileProgram(bytes(written), segments, types, results, registers, rows, by_rows, whole and by_rows)
    return Program(program.run, writer.constants)


def _stores_last(step: Step, written: bytearray, codes: dict[str, int], args: list[int], sizes: list[int]) -> bool:
    """Whether a STORE takes just what the step before it calculated: then that step writes there itself."""
    if step.code != "STORE" or not sizes[-1]:
        return False
    code, out, _, _, _, store = written[-6:]
    return code < codes["LOAD"] and out == args[0] and not store
