"""Programs on the cuda device: a region printed as C, for the two kernels of backends/cuda/cu/fused.cu.
 Without reductions and row results, a region is one long elementwise op: a thread takes a vector of places, and row
values are calculated at each of them. Otherwise a block takes a row, in as many passes over it as there are reductions
one after the other, and one: what a later pass needs of a row it reads again, from the cache. Values are float32
throughout; a bool is 0 or 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import (
    Operand,
    broadcast_strides,
    collapsed,
    expression,
    launch_sizes,
    plan,
    printed,
    walked,
)
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import dtype
from zoo.core.fusion.program import INPUTS, NUMBERS, OUTPUTS, REDUCTIONS, ROUNDINGS, Op
from zoo.core.prims import TABLE

THREADS = 256
ROW_THREADS = (32, 512)  # of a block that takes a row: at least, at most
START = {"sum": "0", "max": "-INFINITY", "min": "INFINITY"}
FOLD = {"sum": "{0} += {1};", "max": "{0} = maximum({0}, {1});", "min": "{0} = minimum({0}, {1});"}


class Printed(NamedTuple):
    """A program, before it is known how its arguments lie in memory."""

    ops: tuple[Op, ...]
    outputs: tuple[tuple[int, str], ...]
    leaves: tuple[int, ...]
    by_rows: bool


class Nvrtc:
    """Compiles and runs programs for one cuda backend."""

    small = 1  # a launch costs more than to record an op, whatever its size

    def __init__(self, backend: Any):
        self.backend, self.array = backend, backend.xp.ndarray

    def reads(self, a: Any) -> bool:
        return isinstance(a, self.array | np.generic)

    def whole(self, columns: int) -> bool:
        return True  # one program serves rows of any length

    def compiled(self, ops: tuple[Op, ...], outputs: tuple[tuple[int, str], ...], whole: bool) -> Printed | None:
        leaves = tuple(i for i, op in enumerate(ops) if op[0] == "leaf")
        numbers = sum(op[0] == "number" for op in ops)
        if len(leaves) > INPUTS or len(outputs) > OUTPUTS or numbers > NUMBERS:
            return None
        by_rows = any(op[0] in REDUCTIONS for op in ops) or any(ops[i][1] for i, _ in outputs)
        return Printed(ops, outputs, leaves, by_rows)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.backend.xp.empty(shape, dtype)

    def run(
        self, program: Printed, inputs: list[Any], outputs: list[Any], numbers: list[float], space: tuple[int, ...]
    ) -> None:
        xp = self.backend.xp
        inputs = [xp.asarray(a) if isinstance(a, np.generic) else a for a in inputs]
        values = [np.float32(x) for x in numbers]
        with self.backend.driver.current():
            (self._rows if program.by_rows else self._places)(program, inputs, outputs, values, space)

    def _places(self, program: Printed, inputs: Any, outputs: Any, numbers: Any, space: Any) -> None:
        driver = self.backend.driver
        walk = plan(driver, inputs, outputs)
        assert walk is not None, "a record has at most seven axes"
        wide = walked(driver, math.prod(space), walk.shape, walk.strides)
        constants = _places_constants(program, len(walk.shape), walk.reads, walk.vector, wide)
        kernel = driver.kernel("fused.cu", "fused_places", **constants)
        at: Any = np.int64 if wide else np.int32
        given = [v for a, steps in zip(inputs, walk.strides, strict=True) for v in (a, *map(at, steps))]
        places = math.prod(space) // walk.vector
        kernel(launch_sizes(driver, places), (THREADS,), *map(at, walk.shape), *given, *numbers, *outputs, at(places))

    def _rows(self, program: Printed, inputs: Any, outputs: Any, numbers: Any, space: Any) -> None:
        driver, columns, rows = self.backend.driver, space[-1], math.prod(space[:-1])
        strides = [broadcast_strides(a, space) for a in inputs]
        outer, steps = collapsed(space[:-1], [s[:-1] for s in strides])
        last = [s[-1] for s in strides]
        vector = 16 // max(a.dtype.itemsize for a in (*inputs, *outputs))
        fits = columns % vector == 0 and all(
            step == 0 or (step == 1 and all(s % vector == 0 for s in before)
                          and driver.aligned(a, to=vector * a.dtype.itemsize))
            for a, step, before in zip(inputs, last, steps, strict=True)
        )  # fmt: skip
        reads = tuple("same" if step == 0 else "vector" if fits else "strided" for step in last)
        vector = vector if fits else 1
        wide = walked(driver, rows * columns, space, strides)
        constants = _rows_constants(program, len(outer), reads, vector, wide)
        kernel = driver.kernel("fused.cu", "fused_rows", **constants)
        at: Any = np.int64 if wide else np.int32
        given = [v for a, s, step in zip(inputs, steps, last, strict=True) for v in (a, *map(at, s), at(step))]
        fewest, most = ROW_THREADS
        threads = min(max(-(-columns // vector // 32) * 32, fewest), most)
        grid = (min(rows, driver.multiprocessors * 32),)
        kernel(grid, (threads,), *map(at, outer), *given, *numbers, *outputs, at(rows), at(columns))


def _operands(program: Printed, reads: tuple[str, ...]) -> Iterator[Operand]:
    for k, (i, read) in enumerate(zip(program.leaves, reads, strict=True)):
        yield Operand(f"x{k}", ctype(dtype(program.ops[i][2])), read)
    for k in range(sum(op[0] == "number" for op in program.ops)):
        yield Operand(f"c{k}", "float", "number")


def _formula(program: Printed, i: int) -> str:
    """Op i of the values v0, v1, ..."""
    name, _, rounding, *operands = program.ops[i]
    if name == "number":
        return f"c{sum(op[0] == 'number' for op in program.ops[:i])}"
    if name == "leaf":
        return f"float(x{program.leaves.index(i)})"
    names = [f"v{k}" for k in operands]
    if name in ROUNDINGS:
        return _rounded(names[0], name)
    formula = f"{names[0]} != 0" if name == "bool" else expression(TABLE[name], names)
    return _rounded(formula, rounding) if rounding else formula


def _rounded(formula: str, name: str) -> str:
    return f"widen(narrow<{ctype(dtype(name))}>({formula}))"


def _results(program: Printed) -> str:
    return "".join(f"{ctype(dtype(name))} *__restrict__ y{k}, " for k, (_, name) in enumerate(program.outputs))


@functools.lru_cache(4096)
def _places_constants(
    program: Printed, axes: int, reads: tuple[str, ...], vector: int, wide: bool
) -> dict[str, int | str]:
    constants = printed(list(_operands(program, reads)), axes, vector, wide)
    steps = [f"float v{i} = {_formula(program, i)};" for i in range(len(program.ops))]
    kinds = [ctype(dtype(name)) for _, name in program.outputs]
    steps += [f"r{k}[k] = narrow<{kinds[k]}>(v{i});" for k, (i, _) in enumerate(program.outputs)]
    return constants | {
        "OUTPUTS": _results(program),
        "RESULTS": " ".join(f"Vec<{kind}, VECTOR> r{k};" for k, kind in enumerate(kinds)),
        "STEPS": " ".join(steps),
        "STORES": " ".join(f"r{k}.store(y{k} + place * VECTOR);" for k in range(len(kinds))),
    }


@functools.lru_cache(4096)
def _rows_constants(
    program: Printed, axes: int, reads: tuple[str, ...], vector: int, wide: bool
) -> dict[str, int | str]:
    """Constants of fused_rows: ROW (addresses of this row), PASSES."""
    parameters, addresses = [], []
    for name, kind, read in _operands(program, reads):
        if read == "number":
            parameters.append(f"{kind} {name}")
            continue
        parameters += [
            f"const {kind} *__restrict__ p_{name}",
            *(f"INDEX {name}_{i}" for i in range(axes)),
            f"INDEX {name}_last",
        ]
        where = " + ".join(f"i{i} * {name}_{i}" for i in range(axes))
        addresses.append(f"const {kind} *row_{name} = p_{name} + ({where});")
    walk = ["INDEX rest = row;"]
    walk += [f"INDEX i{i} = rest % n{i}; rest /= n{i};" for i in range(axes - 1, 0, -1)] + ["INDEX i0 = rest;"]
    return {
        "INDEX": "int64_t" if wide else "int32_t",
        "VECTOR": vector,
        "SIZES": "".join(f"INDEX n{i}, " for i in range(axes)),
        "PARAMETERS": "".join(f"{p}, " for p in parameters),
        "OUTPUTS": _results(program),
        "ROW": " ".join(walk + addresses),
        "PASSES": " ".join(_passes(program, reads, vector)),
    }


def _passes(program: Printed, reads: tuple[str, ...], vector: int) -> Iterator[str]:
    ops = program.ops
    stage: list[int] = []  # how many reductions come before a value: it is known in the pass of that number
    for name, _, _, *operands in ops:
        before = max((stage[k] for k in operands), default=0) if name not in ("leaf", "number") else 0
        stage.append(before + (name in REDUCTIONS))
    for n in range(1 + max(stage)):
        for i, op in enumerate(ops):
            if op[0] == "number" and n == 0:
                yield f"float v{i} = {_formula(program, i)};"
            elif op[1] and stage[i] == n and op[0] not in REDUCTIONS:
                if op[0] == "leaf":
                    k = program.leaves.index(i)
                    yield f"float x{k} = float(widen(*row_x{k}));"
                yield f"float v{i} = {_formula(program, i)};"
        for k, (i, name) in enumerate(program.outputs):
            if ops[i][1] and stage[i] == n:
                yield f"if (threadIdx.x == 0) y{k}[row] = narrow<{ctype(dtype(name))}>(v{i});"
        folded = [i for i, op in enumerate(ops) if op[0] in REDUCTIONS and stage[i] == n + 1]
        stored = [(k, i, name) for k, (i, name) in enumerate(program.outputs) if not ops[i][1] and stage[i] == n]
        if folded or stored:
            yield from _pass(program, reads, vector, folded, stored)


def _pass(program: Printed, reads: Any, vector: int, folded: list[int], stored: list[Any]) -> Iterator[str]:
    """One pass over the columns: what these reductions and results need of each value."""
    ops, needed = program.ops, set[int]()
    stack = [ops[i][3] for i in folded] + [i for _, i, _ in stored]
    while stack:
        i = stack.pop()
        if i in needed or ops[i][1] or ops[i][0] == "number":
            continue
        needed.add(i)
        stack += ops[i][3:] if ops[i][0] != "leaf" else []
    for i in folded:
        yield f"float v{i} = {START[ops[i][0]]};"
    yield "for (INDEX column = threadIdx.x * VECTOR; column < columns; column += blockDim.x * VECTOR) {"
    inner = []
    for i in sorted(needed):
        if ops[i][0] == "leaf":
            k = program.leaves.index(i)
            kind = ctype(dtype(ops[i][2]))
            if reads[k] == "vector" and vector > 1:
                yield f"Vec<{kind}, VECTOR> w{k}; w{k}.load(row_x{k} + column);"
                inner.append(f"auto x{k} = widen(w{k}[k]);")
            else:
                yield f"auto x{k} = widen(row_x{k}[column * x{k}_last]);"
        inner.append(f"float v{i} = {_formula(program, i)};")
    for k, _, name in stored:
        yield f"Vec<{ctype(dtype(name))}, VECTOR> r{k};"
    inner += [FOLD[ops[i][0]].format(f"v{i}", f"v{ops[i][3]}") for i in folded]
    inner += [f"r{k}[k] = narrow<{ctype(dtype(name))}>(v{i});" for k, i, name in stored]
    yield '_Pragma("unroll") for (int k = 0; k < VECTOR; k++) {'
    yield from inner
    yield "}"
    for k, _, _ in stored:
        yield f"r{k}.store(y{k} + row * columns + column);"
    yield "}"
    for i in folded:
        yield f"v{i} = block_{ops[i][0]}(v{i}, scratch);"
