"""A case: one op in one setting, with drawn arguments and what must come out."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.core.dtype import FLOATS, float32, float64, is_float
from zoo.core.testing.tol import GRADIENT, Tol


class Draw:
    """Draws arguments. Those of `f` are float64 here and take the dtype under test in the op; all others stay as they
    are."""

    def __init__(self, name: str, dtype: np.dtype):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.dtype = dtype

    def f(self, *shape: int, low: float = -3.0, high: float = 3.0, dtype: Any = None) -> np.ndarray:
        """Values in [low, high); whole numbers if the dtype under test is one of integers. `dtype`: whatever is
        tested, this."""
        values = self.rng.uniform(low, high, shape)
        if dtype is not None:
            return values.astype(dtype)
        if self.dtype.kind == "b":
            return np.asarray(values > (low + high) / 2, float64)
        if self.dtype.kind in "iu":
            least = max(np.ceil(low), 0) if self.dtype.kind == "u" else np.ceil(low)
            return np.asarray(self.rng.integers(int(least), int(np.floor(high)) + 1, shape), float64)
        return np.asarray(values)

    def distinct(self, *shape: int) -> np.ndarray:
        """Values 1/4 apart (whole numbers for integers), in random order: which one is largest is clear in every
        dtype."""
        n = int(np.prod(shape))
        return (self.rng.permutation(n).reshape(shape) - n // 2) / (1.0 if self.dtype.kind in "iu" else 4.0)

    def i(self, *shape: int, below: int, dtype: Any = np.int32) -> np.ndarray:
        return np.asarray(self.rng.integers(0, below, shape), dtype)

    def b(self, *shape: int) -> np.ndarray:
        return self.rng.random(shape) < 0.5


def widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.astype(float64) if isinstance(a, np.ndarray) and is_float(a.dtype) else a for a in args)


@dataclass(frozen=True)
class Case:
    """name: the op, then the setting in brackets.
    fn(*tensors): calls the op's face. An argument that is a number, a tuple or None stays what it is.
    args(draw): arrays, numbers, None.   ref(*arrays): the result in float64 (or exact integers), or a tuple of results.
    grad: whether each float argument drawn by `f` has a gradient; or the places of those that have.
    result: dtype of the results where it is not the dtype under test, one for all or one for each.
    nan: whether a NaN in an argument comes out where `ref` has one; or the places of those arguments where it does.
    spread: False where a row of equal values is ill-conditioned, so that expanded arguments say nothing.
    second: whether second derivatives are checked.  smooth: False where the result moves in steps, which finite
        differences cannot follow.
    gradient: tolerance of gradients in the dtype under test; in float64 they are compared with finite differences.
    """

    name: str
    fn: Callable[..., Any]
    args: Callable[[Draw], tuple[Any, ...]]
    ref: Callable[..., Any]
    tol: Tol
    grad: bool | tuple[int, ...] = True
    dtypes: tuple[np.dtype, ...] = FLOATS
    result: Any = None
    nan: bool | tuple[int, ...] = True
    second: bool = True
    smooth: bool = True
    spread: bool = True
    gradient: Tol = GRADIENT
    source: bool = False  # has no tensor among its arguments: is told the device

    def __str__(self) -> str:
        return self.name

    @property
    def op(self) -> str:
        return self.name.split("[")[0]

    @property
    def main_dtype(self) -> np.dtype:
        """The dtype for properties that one dtype shows."""
        return float32 if float32 in self.dtypes else self.dtypes[0]

    @property
    def differentiable(self) -> bool:
        return self.grad is not False

    @property
    def measurable(self) -> bool:
        """Whether finite differences in float64 can be taken."""
        return self.differentiable and self.smooth and float64 in self.dtypes

    def draw(self, dtype: np.dtype) -> tuple[Any, ...]:
        """The arguments in the dtype under test."""
        drawn = self.args(Draw(self.name, dtype))
        return tuple(a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == float64 else a for a in drawn)

    def variables(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        """Places of the arguments in which gradients are checked."""
        if isinstance(self.grad, tuple):
            return self.grad
        return tuple(i for i, a in enumerate(args) if self.grad and isinstance(a, np.ndarray) and is_float(a.dtype))

    def expected(self, args: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """What must come out of these arguments (of whatever dtype they are): the reference in float64."""
        with np.errstate(all="ignore"):
            out = self.ref(*widened(args))
        return tuple(np.asarray(y) for y in out) if type(out) is tuple else (np.asarray(out),)

    def result_dtypes(self, dtype: np.dtype, count: int) -> tuple[np.dtype, ...]:
        wanted = self.result if isinstance(self.result, tuple) else (self.result,) * count
        return tuple(
            dtype if r is None else np.dtype(r(dtype) if callable(r) and not isinstance(r, type) else r) for r in wanted
        )
