"""An op as data.

A `Prim` says everything about an op that is the same on every backend: how shapes follow (`infer`), its gradient
(`vjp`), and, for what can be written in simpler ops, its body (`lower`). A backend adds a kernel or does not; an op
that has a body runs everywhere, and its kernel can never lose the gradient, since the body is the default one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Meta(NamedTuple):
    """What is known of a value before it is computed. Stands in for a saved array whose values a gradient does not
    need."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Kind(enum.Enum):
    SOURCE = "source"  # makes values out of attributes
    ELEMENTWISE = "elementwise"  # broadcasts; has an `expr`
    REDUCE = "reduce"
    VIEW = "view"  # moves values, computes nothing; may alias its input
    INDEX = "index"
    CONTRACT = "contract"
    QUANT = "quant"
    COMPOSITE = "composite"  # has a `lower`


class NoGradient:
    """The `vjp` of an op whose result is discrete or piecewise constant: its value enters as a constant."""

    def __repr__(self) -> str:
        return "NO_GRADIENT"


NO_GRADIENT = NoGradient()


@dataclass(frozen=True, eq=False)
class Prim:
    """One row of the op table.

    infer(*args, **attrs) -> Meta or tuple of Meta. `args` have .shape and .dtype, or are Python numbers or None.
        Raises every ShapeError and DtypeError of the op.
    vjp(o, g, *args, y, **attrs) -> one cotangent per argument (alone if there is one argument), in ops `o` of the
        backend below. An entry may be None (no gradient), or a function without arguments, called only when that
        gradient is needed. May return NotImplemented: then `lower` is differentiated.
    lower(o, *args, **attrs): the op's body in ops `o`.
    expr: an elementwise op as one expression over {0}, {1}, ..., in the functions that every backend's prelude has.
        Valid in Python and in C; from it come the numpy kernel, the CUDA kernel and the fused programs.
    keep: what `vjp` reads values of: "x" all arguments, a digit one of them, "y" the result; or a function from the
        attributes to that. Of what is not kept, only shape and dtype are handed over, as a `Meta`, and the memory is
        free.
    accepts: dtypes of an elementwise op: "any", "number", "float" (integers become float32) or "bool".
    domain: where tests draw its arguments from.  ref: the same function for one float, from an independent source.
    """

    name: str
    kind: Kind
    infer: Callable[..., Any]
    vjp: Callable[..., Any] | NoGradient | None = None
    lower: Callable[..., Any] | None = None
    expr: str | None = None
    keep: str | Callable[[Mapping[str, Any]], str] = "xy"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    accepts: str = "number"
    result: str = "same"
    domain: tuple[float, float] = (-3.0, 3.0)
    ref: Callable[..., float] | None = None

    def __repr__(self) -> str:
        return f"Prim({self.name})"

    @property
    def arity(self) -> int:
        """Number of arguments of an elementwise op, counted in its expression."""
        return len(set(re.findall(r"\{(\d)\}", self.expr or "")))


class Ops:
    """The ops over the raw values of one backend: `Ops(backend).exp(x)`. In this dress `lower` and `vjp` rules are
    written. Shapes are not checked again and dtypes are not promoted here: rules cast where they mix."""

    def __init__(self, backend: Any):
        self.backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from zoo.core.prims import TABLE

        if name not in TABLE:
            raise AttributeError(name)
        prim, bind = TABLE[name], self.backend.bind
        defaults = prim.attrs

        if defaults:

            def op(*args: Any, **attrs: Any) -> Any:
                return bind(prim, args, {**defaults, **attrs})
        else:

            def op(*args: Any, **attrs: Any) -> Any:
                return bind(prim, args, attrs)

        op.__name__ = name
        self.__dict__[name] = op  # looked up once
        return op


def composite(
    infer: Callable[..., Any],
    vjp: Callable[..., Any] | NoGradient | None = None,
    keep: str | Callable[[Mapping[str, Any]], str] = "xy",
) -> Callable[[Callable[..., Any]], Prim]:
    """Makes a Prim of a function written in ops: its name, its body, its keyword defaults."""

    def make(lower: Callable[..., Any]) -> Prim:
        return Prim(
            name=lower.__name__,
            kind=Kind.COMPOSITE,
            infer=infer,
            vjp=vjp,
            lower=lower,
            keep=keep,
            attrs=dict(lower.__kwdefaults__ or {}),
        )

    return make
