"""Elementwise cases, made from the rows of the op table: argument count from the expression, domain, dtypes and
reference from the row. An op that is added there is tested here without another line; rows by hand say what an
expression cannot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.dtype import (
    FLOATS,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    is_float,
    uint8,
)
from zoo.core.prim import NO_GRADIENT, Kind, Prim
from zoo.core.prims import TABLE
from zoo.core.testing.case import Case, Draw
from zoo.core.testing.tol import EXACT, LIBRARY, ROUNDED, Tol, ulp

# what expressions are written in, for one Python float: independent of every array library
SCALAR: dict[str, Any] = {
    "abs": math.fabs, "sign": lambda x: float((x > 0) - (x < 0)), "exp": math.exp, "log": math.log, "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x), "sin": math.sin, "cos": math.cos, "tanh": math.tanh, "erf": math.erf,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "floor": math.floor, "round": round, "maximum": max, "minimum": min,
    "where": lambda c, a, b: a if c else b, "isnan": math.isnan, "logical_not": lambda x: not x,
    "logical_and": lambda a, b: a and b, "logical_or": lambda a, b: a or b,
    "remainder": lambda a, b: a % b, "pow": math.pow,
}  # fmt: skip
IEEE = {"abs", "sign", "sqrt", "floor", "round", "maximum", "minimum", "where", "isnan", "logical_not", "logical_and",
        "logical_or"}  # fmt: skip


def reference(prim: Prim) -> Callable[..., np.ndarray]:
    """The row's own `ref`, else its expression, for one float at a time; NaN in, NaN out, as IEEE has it."""
    assert prim.expr is not None
    names = "abc"[: prim.arity]
    one = prim.ref or eval(f"lambda {', '.join(names)}: {prim.expr.format(*names)}", SCALAR)
    keeps = prim.result == "same"

    def careful(*xs: float) -> Any:
        return math.nan if keeps and any(x != x for x in xs) else one(*xs)

    return np.vectorize(careful, otypes=[float64 if keeps else bool_])


def tolerance(prim: Prim) -> Tol:
    """One IEEE operation is correctly rounded. Functions are as good as the libraries; products and quotients of them
    add up relative errors; a sum may cancel, so its error is measured against values of order 1."""
    assert prim.expr is not None
    if prim.result == "bool":
        return EXACT
    called = re.findall(r"[a-z]\w*", prim.expr)
    operators = re.findall(r"(?<=[\s)}])[-+*/](?=[\s({\d])", prim.expr)
    if not set(called) - IEEE and len(operators) <= 1 and not (operators and called):
        return ROUNDED
    steps = 4.0 * max(len(called) + len(operators), 1)
    if len(called) == 1 and not operators:
        return LIBRARY
    if {"+", "-"} & set(operators):
        return ulp(
            steps, "4 ulp for each step of the expression, of values of order 1, since its sums may cancel", floor=1.0
        )
    return ulp(steps, "4 ulp for each step of the expression: relative errors of products add up")


def dtypes(prim: Prim) -> tuple[np.dtype, ...]:
    if prim.accepts == "bool":
        return (bool_,)
    if prim.accepts == "any":
        return (*FLOATS, int32, uint8, bool_)
    if prim.accepts == "float":
        return (*FLOATS, int32, bool_)
    return (*FLOATS, int8, int16, int32, int64, bool_)


def result(prim: Prim) -> Callable[[np.dtype], np.dtype]:
    def of(dtype: np.dtype) -> np.dtype:
        if prim.result == "bool":
            return bool_
        if prim.accepts == "float" and not is_float(dtype):
            return float32
        return int32 if dtype == bool_ else dtype

    return of


def _drawn(prim: Prim, *shapes: tuple[int, ...]) -> Callable[[Draw], tuple[Any, ...]]:
    low, high = prim.domain

    def args(r: Draw) -> tuple[Any, ...]:
        if r.dtype == bool_ and low > 0:  # a domain without 0: only True lies in it
            return tuple(np.ones(s) for s in shapes)
        if r.dtype.kind in "iu" and not high < 2**6:
            return tuple(r.f(*s, low=low, high=63) for s in shapes)
        values = (r.f(*s, low=low, high=high) for s in shapes)
        return (
            tuple(np.asarray(np.trunc(v)) for v in values) if prim.accepts == "any" else tuple(values)
        )  # comparisons need equals

    return args


def generated(prim: Prim) -> list[Case]:
    face, ref, tol, of = getattr(ops, prim.name), reference(prim), tolerance(prim), dtypes(prim)
    grad = prim.vjp is not NO_GRADIENT
    shapes: dict[int, list[tuple[int, ...]]] = {
        1: [(37,)],  # no multiple of any vector width
        2: [(5, 1, 4), (3, 1)],  # broadcast both ways
        3: [(4, 1), (3,), (4, 3)],
    }
    common: dict[str, Any] = {"fn": face, "ref": ref, "tol": tol, "result": result(prim), "dtypes": of}
    rows = [
        Case(prim.name, args=_drawn(prim, *shapes[prim.arity]), grad=grad, **common),
        Case(f"{prim.name}[empty]", args=_drawn(prim, *[(2, 0, 3)] * prim.arity), grad=False, **common),
        Case(f"{prim.name}[scalar]", args=_drawn(prim, *[()] * prim.arity), grad=grad, second=False, **common),
    ]
    if prim.arity == 2 and prim.accepts != "bool":
        whole = prim.accepts == "any" or prim.domain[0] <= 0  # 2 lies in every domain but those above 0, where 1.5 does
        number = 2 if whole else 1.5
        common["dtypes"] = tuple(d for d in of if is_float(d) or (whole and d not in (bool_, uint8)))

        def right(r: Draw) -> tuple[Any, ...]:
            return (*_drawn(prim, (7,))(r), number)

        def left(r: Draw) -> tuple[Any, ...]:
            return (number, *_drawn(prim, (7,))(r))

        rows += [
            Case(f"{prim.name}[number {side}]", args=args, grad=grad, second=False, **common)
            for side, args in (("right", right), ("left", left))
        ]
    return rows


ELEMENTWISE = [p for p in TABLE.values() if p.kind is Kind.ELEMENTWISE and p.name not in ("where", "cast")]


def _cast(to: np.dtype) -> list[Case]:
    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(np.int64 if to.kind in "iu" else bool_ if to == bool_ else float64)

    low = 0 if to == uint8 else -3
    floats = is_float(to)
    return [
        Case(f"cast[to {to.name}]", lambda x: ops.cast(x, to), lambda r: (r.f(19, low=low),), rounded, ROUNDED,
             grad=floats,
             result=to, nan=floats, second=False, smooth=to == float64, dtypes=(*FLOATS, int32)),
        Case(f"cast[bool to {to.name}]", lambda x: ops.cast(x, to), lambda r: (r.b(5),),
             lambda x: x.astype(float64 if floats else to),
             EXACT, grad=False, result=to, dtypes=(float32,)),
    ]  # fmt: skip


_mixed: dict[str, Any] = {
    "fn": ops.add,
    "ref": np.add,
    "tol": ROUNDED,
    "grad": True,
    "second": False,
    "dtypes": (float32,),
}
BY_HAND = [
    Case("cast[empty]", lambda x: ops.cast(x, float16), lambda r: (r.f(3, 0),), lambda x: x, EXACT, result=float16),
    Case("where", ops.where, lambda r: (r.b(4, 1), r.f(3), r.f(4, 3)), np.where, EXACT, dtypes=(*FLOATS, int32, bool_)),
    Case("where[number]", lambda c, x: ops.where(c, x, 0.5), lambda r: (r.b(4, 3), r.f(3)), lambda c,
         x: np.where(c, x, 0.5), EXACT),
    Case("where[number first]", lambda c, x: ops.where(c, -1, x), lambda r: (r.b(3), r.f(3)), lambda c,
         x: np.where(c, -1, x), EXACT,
         dtypes=(*FLOATS, int32)),
    Case("where[empty]", ops.where, lambda r: (r.b(0), r.f(0), r.f(1)), np.where, EXACT, grad=False),
    Case("maximum[clip]", lambda x: ops.clip(x, -1, 2), lambda r: (r.f(29),), lambda x: np.clip(x, -1, 2), EXACT,
         dtypes=(*FLOATS, int32)),
    Case("remainder[signs]", ops.remainder,
         lambda r: (r.f(4, 6, low=-9, high=9), np.array([[2.0], [-2.0], [3.0], [-3.0]])),
         np.vectorize(lambda a, b: a % b if a == a else a, otypes=[float64]),
         ulp(4, "libraries subtract a multiple of b: one rounding of a"),
         dtypes=(float32, float64, int32, int8)),
    Case("sigmoid[far]", ops.sigmoid, lambda r: (np.array([-80.0, -30, -17, 17, 30, 80]),),
         lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))), LIBRARY, second=False,
         dtypes=(float32, float64)),
    Case("erf[wide]", ops.erf, lambda r: (np.linspace(-7, 7, 141),), np.vectorize(math.erf, otypes=[float64]), LIBRARY,
         nan=False,
         dtypes=(float32, float64)),
    Case("erf[tiny]", ops.erf, lambda r: (np.logspace(-12, -1, 23),), np.vectorize(math.erf, otypes=[float64]),
         LIBRARY, nan=False,
         dtypes=(float32, float64)),
    # dtypes that meet: the higher of bool < int < float, and what holds both
    Case("add[float32 + bfloat16]", args=lambda r: (r.f(6), r.f(6, dtype=bfloat16)), result=float32, **_mixed),
    Case("add[float16 + bfloat16]", args=lambda r: (r.f(6, dtype=float16), r.f(6, dtype=bfloat16)), result=float32,
         **_mixed),
    Case("add[bfloat16 + int32]", args=lambda r: (r.f(6, dtype=bfloat16), r.i(6, below=9)), result=bfloat16, **_mixed),
    Case("mul[bfloat16 * number]", lambda x: x * 1.7, lambda r: (r.f(6),), lambda x: x * 1.7,
         ulp(1, "1.7 is rounded to float32 first"),
         dtypes=(float32, float16, bfloat16, float64)),
]  # fmt: skip

CASES: list[Case] = [case for prim in ELEMENTWISE for case in generated(prim)]
CASES += [case for to in (*FLOATS, int32, int64, uint8, bool_) for case in _cast(to)] + BY_HAND
