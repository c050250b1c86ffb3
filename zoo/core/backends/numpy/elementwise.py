"""Elementwise kernels, made from the expressions of the op table, and the functions those expressions use."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from zoo.core.dtype import HALVES, bool_, float32
from zoo.core.prim import Kind, Prim
from zoo.core.prims import TABLE


def erf_function(xp: Any) -> Callable[[Any], Any]:
    """erf to 1.2e-15 (float64), as numpy has none. For |x| < 2 the Maclaurin-like series of Abramowitz & Stegun 7.1.6,
    whose terms are all positive so that nothing cancels; beyond, 1 - erfc by the continued fraction 7.1.14, which
    converges fast there.
    """
    if xp.__name__ == "cupy":
        return importlib.import_module("cupyx.scipy.special").erf

    def erf(x: Any) -> Any:
        # 36 series terms reach 4e-17 at |x| = 2; 40 levels of the fraction reach 2e-16 there. Work in float64
        # throughout.
        a = xp.minimum(xp.abs(xp.asarray(x, dtype=xp.float64)), 6.0)  # erf(6) = 1 - 2e-17
        near, far = xp.minimum(a, 2.0), xp.maximum(a, 2.0)
        term = near
        series = near
        for n in range(1, 37):
            term = term * (2.0 * near * near) / (2 * n + 1)
            series = series + term
        series = series * xp.exp(-near * near) * (2.0 / math.sqrt(math.pi))
        fraction = far
        for n in range(40, 0, -1):
            fraction = far + (n / 2.0) / fraction
        tail = 1.0 - xp.exp(-far * far) / (fraction * math.sqrt(math.pi))
        y = xp.where(a < 2.0, series, tail)
        y = xp.copysign(y, x)
        return xp.where(xp.isnan(x), xp.nan, y).astype(xp.result_type(x))

    return erf


def prelude(xp: Any) -> dict[str, Any]:
    """The functions that expressions may use. A CUDA prelude has the same names."""

    def sigmoid(x: Any) -> Any:
        e = xp.exp(-xp.abs(x))  # in (0, 1]: neither branch overflows nor cancels
        return xp.where(x >= 0, 1, e) / (1 + e)

    def rsqrt(x: Any) -> Any:
        return 1 / xp.sqrt(x)

    def whole(rounding: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Integers are whole already; array libraries would make floats of them."""
        return lambda x: x if x.dtype.kind in "iu" else rounding(x)

    same = ("abs", "sign", "exp", "log", "sqrt", "sin", "cos", "tanh", "maximum", "minimum", "where", "isnan",
            "logical_not", "logical_and", "logical_or", "remainder")  # fmt: skip
    functions = {name: getattr(xp, name) for name in same} | {"__name__": __name__}
    return functions | {"erf": erf_function(xp), "sigmoid": sigmoid, "rsqrt": rsqrt, "pow": xp.power,
                        "round": whole(xp.rint), "floor": whole(xp.floor)}  # fmt: skip


def from_expression(prim: Prim, functions: dict[str, Any]) -> Callable[..., Any]:
    """The kernel of an elementwise op: its expression over arrays and Python numbers, half precision by way of
    float32."""
    assert prim.expr is not None
    names = "abc"[: prim.arity]
    formula = eval(f"lambda {', '.join(names)}: {prim.expr.format(*names)}", functions)
    keeps_dtype = prim.result == "same"

    def kernel(b: Any, *args: Any) -> Any:
        half = None
        for a in args:
            d = getattr(a, "dtype", None)
            if d in HALVES:
                half = d
        if half is None:
            return formula(*args)
        y = formula(*(a.astype(float32) if getattr(a, "dtype", bool_) != bool_ else a for a in args))
        return y.astype(half) if keeps_dtype else y

    return kernel


def cast(b: Any, x: Any, *, dtype: Any) -> Any:
    return x if x.dtype == dtype else x.astype(dtype)


def kernels(xp: Any) -> dict[str, Callable[..., Any]]:
    functions = prelude(xp)
    made = {p.name: from_expression(p, functions) for p in TABLE.values() if p.kind is Kind.ELEMENTWISE and p.expr}
    return made | {"cast": cast}
