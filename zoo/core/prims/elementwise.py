"""Elementwise ops: one row each. Value, gradient, dtypes and tests all follow from the row; a face in `ops.py` names
it.

    ew(name, expression, gradient, ...)

The expression is the kernel of every backend (numpy evaluates it, CUDA compiles it). The gradient gets `o` (ops below),
g (cotangent), the arguments, and y (result). `ref` is an independent implementation for one float, for the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from zoo.core.dtype import is_float
from zoo.core.errors import DtypeError
from zoo.core.prim import NO_GRADIENT, Kind, Meta, NoGradient, Prim
from zoo.core.prims import infer


def ew(
    name: str,
    expr: str,
    vjp: Callable[..., Any] | NoGradient,
    *,
    keep: str = "xy",
    accepts: str = "number",
    result: str = "same",
    domain: tuple[float, float] = (-3.0, 3.0),
    ref: Callable[..., float] | None = None,
) -> Prim:
    return Prim(
        name, Kind.ELEMENTWISE, infer.elementwise(result), vjp, expr=expr, keep=keep, accepts=accepts, result=result,
        domain=domain, ref=ref,
    )  # fmt: skip


def _round_half_even(x: float) -> float:
    return float(round(x))


TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)
LN2 = math.log(2.0)

UNARY = [
    ew("neg", "-{0}", lambda o, g, x, y: o.neg(g), keep="", ref=lambda x: -x),
    ew("abs", "abs({0})", lambda o, g, x, y: o.mul(g, o.sign(x)), keep="x", ref=math.fabs),
    ew("sign", "sign({0})", NO_GRADIENT, ref=lambda x: float((x > 0) - (x < 0))),
    ew("exp", "exp({0})", lambda o, g, x, y: o.mul(g, y), keep="y", accepts="float", ref=math.exp),
    ew("log", "log({0})", lambda o, g, x, y: o.div(g, x), keep="x", accepts="float", domain=(0.05, 5), ref=math.log),
    ew("sqrt", "sqrt({0})", lambda o, g, x, y: o.div(o.mul(g, 0.5), y), keep="y", accepts="float", domain=(0.05, 5),
       ref=math.sqrt),
    ew("rsqrt", "rsqrt({0})", lambda o, g, x, y: o.mul(o.mul(g, -0.5), o.mul(y, o.mul(y, y))), keep="y",
       accepts="float", domain=(0.05, 5), ref=lambda x: 1 / math.sqrt(x)),
    ew("sin", "sin({0})", lambda o, g, x, y: o.mul(g, o.cos(x)), keep="x", accepts="float", ref=math.sin),
    ew("cos", "cos({0})", lambda o, g, x, y: o.neg(o.mul(g, o.sin(x))), keep="x", accepts="float", ref=math.cos),
    ew("tanh", "tanh({0})", lambda o, g, x, y: o.activation_grad(y, g, activation="tanh"), keep="y",
       accepts="float", ref=math.tanh),
    ew("erf", "erf({0})", lambda o, g, x, y: o.mul(g, o.mul(o.exp(o.neg(o.mul(x, x))), TWO_OVER_SQRT_PI)), keep="x",
       accepts="float", ref=math.erf),
    ew("sigmoid", "sigmoid({0})", lambda o, g, x, y: o.activation_grad(y, g, activation="sigmoid"), keep="y",
       accepts="float", domain=(-12, 12), ref=lambda x: 1 / (1 + math.exp(-x))),
    ew("floor", "floor({0})", NO_GRADIENT, ref=lambda x: float(math.floor(x))),
    ew("round", "round({0})", NO_GRADIENT, ref=_round_half_even),
    ew("logical_not", "logical_not({0})", NO_GRADIENT, accepts="bool", result="bool"),
    # conveniences that would otherwise be two or three passes over memory
    ew("square", "{0} * {0}", lambda o, g, x, y: o.mul(o.mul(g, 2.0), x), keep="x", ref=lambda x: x * x),
    ew("relu", "maximum({0}, 0)", lambda o, g, x, y: o.activation_grad(y, g, activation="relu"), keep="y",
       ref=lambda x: max(x, 0.0)),
    ew("silu", "{0} * sigmoid({0})", lambda o, g, x, y: o.activation_grad(x, g, activation="silu"), keep="x",
       accepts="float", ref=lambda x: x / (1 + math.exp(-x))),
    ew("isnan", "isnan({0})", NO_GRADIENT, accepts="float", result="bool"),
]  # fmt: skip

BINARY = [
    ew("add", "{0} + {1}", lambda o, g, a, b, y: (g, g), keep="", ref=lambda a, b: a + b),
    ew("sub", "{0} - {1}", lambda o, g, a, b, y: (g, lambda: o.neg(g)), keep="", ref=lambda a, b: a - b),
    ew("mul", "{0} * {1}", lambda o, g, a, b, y: (lambda: o.mul(g, b), lambda: o.mul(g, a)), keep="x",
       ref=lambda a, b: a * b),
    ew("div", "{0} / {1}", lambda o, g, a, b, y: (lambda: o.div(g, b), lambda: o.neg(o.mul(g, o.div(y, b)))),
       accepts="float", domain=(0.3, 3), ref=lambda a, b: a / b),
    ew("remainder", "remainder({0}, {1})", lambda o, g, a, b, y: (g, lambda: o.neg(o.mul(g, o.floor(o.div(a, b))))),
       keep="x", domain=(0.3, 3), ref=lambda a, b: a % b),
    ew("pow", "pow({0}, {1})", lambda o, g, a, b, y: _pow_slopes(o, g, a, b, y), accepts="float", domain=(0.3, 3),
       ref=math.pow),
    ew("maximum", "maximum({0}, {1})", lambda o, g, a, b, y: _choose(o, g, o.less_equal(b, a)), keep="x", ref=max),
    ew("minimum", "minimum({0}, {1})", lambda o, g, a, b, y: _choose(o, g, o.less_equal(a, b)), keep="x", ref=min),
    ew("equal", "{0} == {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("not_equal", "{0} != {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("less", "{0} < {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("less_equal", "{0} <= {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("greater", "{0} > {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("greater_equal", "{0} >= {1}", NO_GRADIENT, accepts="any", result="bool"),
    ew("logical_and", "logical_and({0}, {1})", NO_GRADIENT, accepts="bool", result="bool"),
    ew("logical_or", "logical_or({0}, {1})", NO_GRADIENT, accepts="bool", result="bool"),
]  # fmt: skip


def _choose(o: Any, g: Any, first: Any) -> tuple[Any, Any]:
    """Gradient of maximum and minimum; where both are equal it goes to the first."""
    return lambda: o.where(first, g, 0.0), lambda: o.where(first, 0.0, g)


def _pow_slopes(o: Any, g: Any, a: Any, b: Any, y: Any) -> tuple[Any, Any]:
    """b a^(b-1) and y log(a), where a or b may be a Python number."""
    if not hasattr(b, "shape"):
        return lambda: o.mul(g, o.mul(o.pow(a, b - 1), b)), None
    if not hasattr(a, "shape"):
        return None, lambda: o.mul(g, o.mul(y, math.log(a)))
    return lambda: o.mul(g, o.mul(b, o.pow(a, o.sub(b, 1.0)))), lambda: o.mul(g, o.mul(y, o.log(a)))


def _where_infer(condition: Any, a: Any, b: Any) -> Meta:
    if not hasattr(condition, "dtype"):
        raise DtypeError(
            f"the condition is {condition!r}; it must be a bool tensor", "Use Python's own if for one value."
        )
    if condition.dtype.name != "bool":
        raise DtypeError(
            f"the condition is {condition.dtype.name}; it must be bool", "Compare first: where(x > 0, a, b)."
        )
    values = [v for v in (a, b) if hasattr(v, "dtype")]
    if not values:
        raise DtypeError("both branches are Python numbers", "Make one of them a tensor of the dtype that is wanted.")
    infer.same_dtype(*values)
    return Meta(infer.broadcast([tuple(condition.shape), *(tuple(v.shape) for v in values)]), values[0].dtype)


WHERE = Prim(
    "where", Kind.ELEMENTWISE, _where_infer, expr="where({0}, {1}, {2})", keep="0",
    vjp=lambda o, g, c, a, b, y: (None, lambda: o.where(c, g, 0.0), lambda: o.where(c, 0.0, g)),
)  # fmt: skip

CAST = Prim(
    "cast", Kind.ELEMENTWISE, lambda x, *, dtype: Meta(tuple(x.shape), dtype), keep="",
    vjp=lambda o, g, x, y, dtype: o.cast(g, dtype=x.dtype) if is_float(dtype) else None,
)  # fmt: skip
