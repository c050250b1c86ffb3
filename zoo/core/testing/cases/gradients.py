"""Cases of the gradients that are ops of their own, so that a backend may have one kernel for them.

The reference takes the derivative of the plain formula by a complex step: the imaginary part of f(x + i h) / h, in
which nothing cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.dtype import float32, float64
from zoo.core.prims import TABLE
from zoo.core.tensor import bind
from zoo.core.testing import ref
from zoo.core.testing.case import Case
from zoo.core.testing.tol import EXACT, GRADIENT

STEP = 1e-30


def _slopes(f: Callable[..., Any], g: np.ndarray, *args: Any) -> tuple[np.ndarray, ...]:
    """The gradient of sum(f(*args) g) in every array, one number after the other."""
    found = []
    for i, a in enumerate(args):
        if a is None:
            continue
        slope = np.empty(a.shape)
        for at in np.ndindex(a.shape):
            moved = a.astype(complex)
            moved[at] += STEP * 1j
            slope[at] = np.sum(f(*args[:i], moved, *args[i + 1 :]).imag * g) / STEP
        found.append(slope)
    return tuple(found)


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + ref.erf(x / np.sqrt(2))) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _of_argument(name: str) -> Callable[..., Any]:
    if name == "gelu":
        return lambda x, g: g * _gelu_slope(x)
    return lambda x, g: g * ref.ACTIVATIONS[name](x + STEP * 1j).imag / STEP


OF_RESULT: dict[str, Callable[..., Any]] = {
    "relu": lambda y, g: np.where(y > 0, g, 0.0),
    "sigmoid": lambda y, g: g * y * (1 - y),
    "tanh": lambda y, g: g * (1 + y) * (1 - y),
}


def _activation(name: str, want: Callable[..., Any], **rest: Any) -> list[Case]:
    def op(x: Any, g: Any) -> Any:
        return bind(TABLE["activation_grad"], x, g, activation=name)

    return [
        Case(f"activation_grad[{name}]", op, lambda r: (r.f(5, 7), r.f(5, 7)), want, GRADIENT, second=False, **rest),
        Case(f"activation_grad[{name}, empty]", op, lambda r: (r.f(0, 7), r.f(0, 7)), lambda x, g: x, EXACT,
             second=False, **rest),
    ]  # fmt: skip


def _case(label: str, args: Any, want: Any, *, grad: Any = True, result: Any = None, **settings: Any) -> Case:
    """Of the op that the label begins with. A NaN anywhere in a row or group reaches other places too: not compared."""
    prim = TABLE[label.split("[")[0]]
    return Case(label, lambda *a: bind(prim, *a, **settings), args, want, GRADIENT, grad=grad, result=result, nan=False,
                second=False, spread=False)  # fmt: skip


def _hot(logits: np.ndarray, targets: np.ndarray, g: np.ndarray) -> np.ndarray:
    def losses(x: Any) -> Any:
        return np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, targets[..., None], -1)[..., 0]

    return _slopes(losses, g, logits)[0]


def _rms(x: Any, w: Any, g: np.ndarray) -> tuple[np.ndarray, ...]:
    return _slopes(lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w, g, x, w)


def _group(groups: int) -> Callable[..., Any]:
    def norm(x: Any, w: Any, b: Any) -> Any:
        parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        centred = parts - parts.mean((1, 3), keepdims=True)
        return (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)).reshape(x.shape) * w + b

    def want(x: Any, w: Any, g: np.ndarray) -> tuple[np.ndarray, ...]:
        return _slopes(norm, g, x, np.ones(x.shape[-1]) if w is None else w, np.zeros(x.shape[-1]))

    return want


def _calculated(d: Any) -> Any:
    return float64 if d == float64 else float32


GROUPED: Any = {"result": (None, _calculated, _calculated), "eps": 1e-5}
CASES: list[Case] = [
    *[case for name in ("silu", "gelu", "gelu_tanh", "quick_gelu") for case in _activation(name, _of_argument(name))],
    *_activation("relu", OF_RESULT["relu"], grad=(1,)),
    *[case for name in ("sigmoid", "tanh") for case in _activation(name, OF_RESULT[name])],
    _case("swiglu_grad", lambda r: (r.f(3, 9), r.f(3, 9), r.f(3, 9)),
          lambda a, b, g: _slopes(lambda x, y: x / (1 + np.exp(-x)) * y, g, a, b)),
    _case("swiglu_grad[empty]", lambda r: (r.f(0, 9), r.f(0, 9), r.f(0, 9)), lambda a, b, g: (a, b)),
    _case("softmax_grad", lambda r: (r.f(4, 9, low=0, high=1), r.f(4, 9)),
          lambda y, g: y * (g - (g * y).sum(-1, keepdims=True)), axis=-1),
    _case("softmax_grad[axis 0]", lambda r: (r.f(4, 3, low=0, high=1), r.f(4, 3)),
          lambda y, g: y * (g - (g * y).sum(0, keepdims=True)), axis=0),
    _case("softmax_grad[empty]", lambda r: (r.f(0, 9), r.f(0, 9)), lambda y, g: y, axis=-1),
    _case("log_softmax_grad", lambda r: (r.f(4, 9, high=0), r.f(4, 9)),
          lambda y, g: g - np.exp(y) * g.sum(-1, keepdims=True), axis=-1),
    _case("log_softmax_grad[empty]", lambda r: (r.f(0, 9), r.f(0, 9)), lambda y, g: y, axis=-1),
    _case("cross_entropy_grad", lambda r: (r.f(6, 5), r.i(6, below=5), r.f(6)), _hot),
    _case("cross_entropy_grad[grid, int64]",
          lambda r: (r.f(2, 3, 20), r.i(2, 3, below=20, dtype=np.int64), r.f(2, 3)), _hot),
    _case("cross_entropy_grad[empty]", lambda r: (r.f(0, 5), r.i(0, below=5), r.f(0)), lambda x, t, g: x),
    _case("rms_norm_grad", lambda r: (r.f(3, 2, 20), r.f(20), r.f(3, 2, 20)), _rms, eps=1e-5),
    _case("rms_norm_grad[empty]", lambda r: (r.f(0, 8), r.f(8), r.f(0, 8)), lambda x, w, g: (x, 0 * w), eps=1e-5),
    _case("group_norm_grad", lambda r: (r.f(2, 3, 4, 6), r.f(6), r.f(2, 3, 4, 6)), _group(3), groups=3, **GROUPED),
    _case("group_norm_grad[no weight]", lambda r: (r.f(2, 3, 4), None, r.f(2, 3, 4)), _group(2), groups=2, **GROUPED),
    _case("group_norm_grad[rows]", lambda r: (r.f(4, 20), r.f(20), r.f(4, 20)), _group(1), groups=1, **GROUPED),
    _case("group_norm_grad[channels]", lambda r: (r.f(1, 9, 5), r.f(5), r.f(1, 9, 5)), _group(5), groups=5, **GROUPED),
    _case("group_norm_grad[empty]", lambda r: (r.f(0, 3, 4), r.f(4), r.f(0, 3, 4)), lambda x, w, g: (x, 0 * w, 0 * w),
          groups=2, **GROUPED),
]  # fmt: skip
