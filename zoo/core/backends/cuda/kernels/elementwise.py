"""Elementwise ops, casts and strided copies: the expression of the op table, printed as C for cu/elementwise.cu.
 A launch is described by its axes after collapsing (neighbours that lie one after the other in every argument become
one) and by what each argument does along the last one: "vector" (values side by side, read by 16 bytes), "same" (one
value for all: a broadcast), or "strided". The text of a kernel depends on the op, on dtypes, on the number of axes and
on these words; sizes, strides and numbers are arguments, so that one kernel serves all shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import HALVES, bool_, float16, float64, is_float
from zoo.core.prim import Kind, Prim
from zoo.core.prims import TABLE
from zoo.core.stats import count

THREADS = 256
MAX_AXES = 8
WAVES = 16  # blocks for each multiprocessor at most; then threads take several places in turn
FUNCTION = re.compile(r"\b([a-z_]+)\(")


@functools.lru_cache(4096)
def _function_names(expr: str) -> str:
    return FUNCTION.sub(r"op::\1(", expr)


def expression(prim: Prim, names: Sequence[str]) -> str:
    """The op's formula in C, over values called `names`: its functions are those of namespace op in
    cu/functions.cuh."""
    assert prim.expr is not None
    return _function_names(prim.expr).format(*names)


class Plan(NamedTuple):
    """How arrays are walked through together: shape without axes of size 1, neighbours joined; strides of each array,
    in values; how each is read along the last axis; how many values at once."""

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    reads: tuple[str, ...]
    vector: int


def broadcast_strides(array: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """In values, 0 where the array is stretched."""
    missing = len(shape) - len(array.shape)
    steps = [s // array.dtype.itemsize if n != 1 else 0 for n, s in zip(array.shape, array.strides, strict=True)]
    return (*[0] * missing, *steps)


def collapsed(
    shape: tuple[int, ...], strides: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The same walk over fewer axes: those of size 1 go, and an axis joins the one before it where for every array the
    step of that one is this one's step times its size."""
    axes: list[tuple[int, list[int]]] = []
    for i, n in enumerate(shape):
        if n == 1:
            continue
        steps = [s[i] for s in strides]
        if axes and all(before == step * n for before, step in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * n, steps)
        else:
            axes.append((n, steps))
    if not axes:
        axes = [(1, [0] * len(strides))]
    return tuple(n for n, _ in axes), tuple(tuple(a[1][k] for a in axes) for k in range(len(strides)))


def plan(driver: Any, arrays: Sequence[Any], outs: Sequence[Any]) -> Plan | None:
    """None if there are too many axes. `outs` are of one shape, contiguous and new."""
    full = outs[0].shape
    shape, strides = collapsed(full, [broadcast_strides(a, full) for a in (*arrays, outs[0])])
    if len(shape) > MAX_AXES:
        return None
    strides, last = strides[:-1], [s[-1] for s in strides[:-1]]
    vector = 16 // max(a.dtype.itemsize for a in (*arrays, *outs))
    fits = shape[-1] % vector == 0 and all(
        step == 0 or (step == 1 and all(s % vector == 0 for s in all_steps[:-1])
                      and driver.aligned(a, to=vector * a.dtype.itemsize))
        for step, all_steps, a in zip(last, strides, arrays, strict=True)
    )  # fmt: skip
    reads = tuple("same" if step == 0 else "vector" if fits else "strided" for step in last)
    return Plan(shape, strides, reads, vector if fits and vector > 1 else 1)


class Operand(NamedTuple):
    """name; ctype it is stored as; how it is read, or "number": one value that comes with the launch."""

    name: str
    ctype: str
    read: str


def printed(operands: Sequence[Operand], axes: int, vector: int, wide_index: bool) -> dict[str, int | str]:
    """The constants of cu/elementwise.cu that read `operands` (a, b, ... with x_a stored) into values a, b, ..."""
    parameters, offsets, loads, values = [], [], [], []
    for name, kind, read in operands:
        if read == "number":
            parameters.append(f"{kind} {name}")
            continue
        parameters.append(f"const {kind} *__restrict__ p_{name}")
        parameters += [f"INDEX {name}_{i}" for i in range(axes)]
        where = " + ".join(f"i{i} * {name}_{i}" for i in range(axes))
        offsets.append(f"const {kind} *at_{name} = p_{name} + ({where});")
        if read == "vector" and vector > 1:
            loads.append(f"Vec<{kind}, VECTOR> v_{name}; v_{name}.load(at_{name});")
            values.append(f"auto {name} = widen(v_{name}[k]);")
        else:
            loads.append(f"auto one_{name} = widen(*at_{name});")
            values.append(f"auto {name} = one_{name};")
    walk = ["INDEX rest = place * VECTOR;"]
    walk += [f"INDEX i{i} = rest % n{i}; rest /= n{i};" for i in range(axes - 1, 0, -1)] + ["INDEX i0 = rest;"]
    return {
        "INDEX": "int64_t" if wide_index else "int32_t",
        "VECTOR": vector,
        "SIZES": "".join(f"INDEX n{i}, " for i in range(axes)),
        "PARAMETERS": "".join(f"{p}, " for p in parameters),
        "PLACES": " ".join(walk + offsets),
        "LOADS": " ".join(loads),
        "VALUES": " ".join(values),
    }


def launch_sizes(driver: Any, places: int) -> tuple[int]:
    return (max(1, min(-(-places // THREADS), driver.multiprocessors * WAVES)),)


def run(b: Any, formula: str, args: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> Any:
    """out = formula(a, b, ...), of arrays (whose shapes broadcast to `shape`) and numpy scalars. NotImplemented for
    more than eight axes that do not collapse."""
    driver = b.driver
    out = b.xp.empty(shape, dtype)
    arrays = [a for a in args if not isinstance(a, np.generic)]
    walk = plan(driver, arrays, (out,))
    if walk is None:
        return NotImplemented
    if not out.size:
        return out
    wide = walked(driver, out.size, walk.shape, walk.strides)
    at: Any = np.int64 if wide else np.int32
    operands: list[Operand] = []
    values: list[Any] = []
    strided = iter(zip(walk.strides, walk.reads, strict=True))
    for name, a in zip("abc", args, strict=False):
        if isinstance(a, np.generic):
            operands.append(Operand(name, ctype(a.dtype), "number"))
            values.append(a)
        else:
            steps, read = next(strided)
            operands.append(Operand(name, ctype(a.dtype), read))
            values += [a, *map(at, steps)]
    constants = _constants(tuple(operands), len(walk.shape), walk.vector, wide, formula, ctype(dtype))
    kernel = driver.kernel("elementwise.cu", "elementwise", **constants)
    places = out.size // walk.vector
    kernel(launch_sizes(driver, places), (THREADS,), *map(at, walk.shape), *values, out, at(places))
    return out


@functools.lru_cache(4096)
def _constants(
    operands: tuple[Operand, ...], axes: int, vector: int, wide: bool, formula: str, out: str
) -> dict[str, int | str]:
    return printed(operands, axes, vector, wide) | {"OUT": out, "FORMULA": formula}


def walked(driver: Any, size: int, shape: Sequence[int], strides: Sequence[Sequence[int]]) -> bool:
    """Whether 31 bits are too few for some offset on this walk, or for the place behind the last one to which a thread
    steps (launch_sizes: all threads together)."""
    spans = [sum(abs(s) * (n - 1) for s, n in zip(steps, shape, strict=True)) for steps in strides]
    return max([size + driver.multiprocessors * WAVES * THREADS, *spans]) > 2**31


def number(value: Any, dtype: Any) -> Any:
    """A Python number as the kernel calculates with it beside values of `dtype`; None if numpy would take a wider
    type."""
    if is_float(dtype):
        return (np.float64 if dtype == float64 else np.float32)(value)
    if dtype == bool_:
        return np.bool_(value) if isinstance(value, bool) else None
    if isinstance(value, float) or not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        return None
    return dtype.type(value)


def kernel_of(prim: Prim) -> Callable[..., Any]:
    formula = expression(prim, "abc"[: prim.arity])
    name = f"cuda.{prim.name}"

    def kernel(b: Any, *args: Any) -> Any:
        first = next(a.dtype for a in args[prim.name == "where" :] if hasattr(a, "shape"))
        given = [a if hasattr(a, "shape") else number(a, first) for a in args]
        if any(a is None for a in given):
            return NotImplemented
        if first == bool_ and prim.accepts == "number" and prim.name != "where":
            return NotImplemented  # numpy has rules of its own for arithmetic with truth
        shape = np.broadcast_shapes(*(a.shape for a in given if not isinstance(a, np.generic)))
        out = run(b, formula, given, shape, bool_ if prim.result == "bool" else first)
        if out is not NotImplemented:
            count(name)
        return out

    return kernel


def cast(b: Any, x: Any, *, dtype: Any) -> Any:
    if x.dtype == dtype:
        return x
    if x.dtype == float64 and dtype == float16:
        return NotImplemented  # by way of float32 it would be rounded twice
    out = run(b, "a", (x,), x.shape, dtype)
    if out is not NotImplemented:
        count("cuda.cast")
    return out


def contiguous(b: Any, x: Any) -> Any:
    """x itself, or its values one after the other in new memory."""
    if x.flags.c_contiguous:
        return x
    out = run(b, "a", (x,), x.shape, x.dtype)
    if out is NotImplemented:
        return b.xp.ascontiguousarray(x)
    count("cuda.contiguous")
    return out


def reshape(b: Any, x: Any, *, shape: Any) -> Any:
    """A view where one can be, or a copy."""
    if not x.flags.c_contiguous and x.size and _moves(x, shape):
        x = contiguous(b, x)
    return x.reshape(shape)


def _moves(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether a view of this shape cannot be: the axes of x that collapse are not those of `shape`."""
    kept, _ = collapsed(x.shape, [broadcast_strides(x, x.shape)])
    sizes, at = [n for n in shape if n != 1], 0
    for n in kept:
        whole = 1
        while whole < n and at < len(sizes):
            whole *= sizes[at]
            at += 1
        if whole != n:
            return True
    return at != len(sizes)


def full(b: Any, *, shape: Any, value: Any, dtype: Any) -> Any:
    given = number(value, dtype)
    if given is None:
        return NotImplemented
    out = run(b, "a", (given,), tuple(shape), dtype)
    if out is not NotImplemented:
        count("cuda.full")
    return out


def iota(b: Any, *, shape: Any, axis: int, dtype: Any) -> Any:
    """The numbers once; the other axes are a view of them."""
    if not shape:
        return full(b, shape=(), value=0, dtype=dtype)
    n = shape[axis]
    if dtype == bool_ or dtype in HALVES:
        return NotImplemented
    line = run(b, "place * VECTOR + k", (), (n,), dtype)
    along = [1] * len(shape)
    along[axis] = n
    return b.xp.broadcast_to(line.reshape(along), shape)


KERNELS: dict[str, Callable[..., Any]] = {
    **{p.name: kernel_of(p) for p in TABLE.values() if p.kind is Kind.ELEMENTWISE and p.expr},
    "cast": cast,
    "reshape": reshape,
    "full": full,
    "iota": iota,
}
