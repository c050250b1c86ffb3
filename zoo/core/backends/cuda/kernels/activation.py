"""Activations that are composites, slopes, swiglu (cu/activation.cu)."""

from __future__ import annotations

from typing import Any

from zoo.core.backends.cuda.kernels.plan import (
    Kernels,
    alike,
    divided,
    flat,
    packed,
    rows_of,
    small,
    stored,
    vector,
    whole,
)
from zoo.core.backends.cuda.source import ctype
from zoo.core.prims.nn import ACTIVATIONS
from zoo.core.stats import count

CODES = {name: code for code, name in enumerate((None, *ACTIVATIONS))}  # as cu/activation.cuh numbers them


def _run(b: Any, name: str, inputs: tuple[Any, ...], outputs: int = 1, activation: Any = None) -> Any:
    x = inputs[0]
    made = tuple(b.xp.empty(x.shape, x.dtype) for _ in range(outputs))
    kernel = b.driver.kernel("activation.cu", name, T=ctype(x.dtype), ACTIVATION=CODES[activation])
    kernel(*flat(divided(x.size, vector(x.dtype))), *packed(b, *inputs), *made, *whole(x.size))
    count(f"cuda.{activation if name == 'activation' else name}")
    return made if outputs > 1 else made[0]


def _unary(activation: str) -> Any:
    def kernel(b: Any, x: Any) -> Any:
        return _run(b, "activation", (x,), activation=activation) if alike(x) else NotImplemented

    return kernel


def activation_grad(b: Any, x: Any, g: Any, *, activation: str) -> Any:
    return _run(b, "activation_grad", (x, g), activation=activation) if alike(x, g) else NotImplemented


def swiglu(b: Any, gate: Any, up: Any) -> Any:
    return _run(b, "swiglu", (gate, up)) if alike(gate, up) else NotImplemented


def geglu(b: Any, x: Any) -> Any:
    if not stored(x):
        return NotImplemented
    y = b.xp.empty((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
    rows, columns = rows_of(y)
    kernel = b.driver.kernel("activation.cu", "geglu", T=ctype(x.dtype), ACTIVATION=CODES["gelu"])
    kernel(*flat(rows * divided(columns, vector(x.dtype))), *packed(b, x), y, *whole(rows), *small(columns))
    count("cuda.geglu")
    return y


def swiglu_grad(b: Any, gate: Any, up: Any, g: Any) -> Any:
    return _run(b, "swiglu_grad", (gate, up, g), outputs=2) if alike(gate, up, g) else NotImplemented


KERNELS: Kernels = {
    **{name: _unary(name) for name in ("gelu", "gelu_tanh", "quick_gelu")},
    "activation_grad": activation_grad, "swiglu": swiglu, "swiglu_grad": swiglu_grad, "geglu": geglu,
}  # fmt: skip
