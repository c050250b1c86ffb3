"""Tolerances. Each belongs to an op and carries its reason; no test body holds a number.

Two measures. `ulp`: per value, in units in the last place, for what is computed value by value. `nmse`: the squared
error of the whole result over its squared size, for sums of many terms, where cancellation makes single values
arbitrarily hard. Half precision is stored, not calculated in: a result that was rounded once is within half a unit of
its own precision, beyond the float32 error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from zoo.core.dtype import HALVES, bfloat16, compute_dtype, float16, float32, float64


def spacing(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The unit in the last place of `dtype` at each |x|."""
    info = ml_dtypes.finfo(dtype)
    exponent = np.frexp(np.maximum(np.abs(x), float(info.smallest_normal)))[1] - 1
    return np.ldexp(1.0, exponent - info.nmant)


# float64 is there for gradient checks: the zoo's own series (erf) and sums of squares reach 16 ulp in it, which is
# enough for them
DOUBLE = 4


@dataclass(frozen=True)
class Tol:
    """units: error allowed per value, in ulp of the dtype of calculation (0: exactly rounded).
    halves: on top of it, in ulp of a half-precision result.
    floor: values smaller than this are measured as if they were this large.
    squared: instead of all that, the nmse allowed by dtype.
    """

    why: str
    units: float = 0.0
    halves: float = 0.5
    floor: float = 0.0
    squared: dict[np.dtype, float] | None = None

    def for_equal_terms(self) -> Tol:
        """Where a sum has equal terms, their rounding errors add up instead of averaging out: ten times as far."""
        if self.squared is None:
            return self
        return replace(self, squared={d: limit * 100 for d, limit in self.squared.items()})

    def error(self, got: np.ndarray, want: np.ndarray, narrowest: np.dtype | None = None) -> str:
        """What is wrong with `got` against `want` (float64, or exact); "" if nothing is. narrowest: that of what
        `got` was made from, which may be narrower than its own."""
        if got.shape != want.shape:
            return f"shape {got.shape}, {want.shape} was expected"
        if not (np.issubdtype(want.dtype, np.floating) and got.dtype in (*HALVES, float32, float64)):
            wrong = got != want
            return _worst(got, want, wrong) if wrong.any() else ""
        dtype = got.dtype
        with np.errstate(over="ignore"):
            special = ~np.isfinite(want.astype(dtype).astype(float64))
        got64 = got.astype(float64)
        rounded = want.astype(dtype).astype(float64)
        wrong = special & ~((got64 == rounded) | (np.isnan(got64) & np.isnan(rounded)))
        wrong |= ~special & ~np.isfinite(got64)
        if wrong.any():
            return _worst(got64, want, wrong)
        usual = ~special
        off = np.abs(np.where(usual, got64, 0) - np.where(usual, want, 0))
        if self.squared is not None:
            size = float(np.sum(np.maximum(np.abs(np.where(usual, want, 0.0)), self.floor) ** 2))
            nmse = float(np.sum(off**2)) / size if size else float(np.sum(off**2))
            limit = max(self.squared[dtype], self.squared[narrowest or dtype])
            if nmse <= limit:
                return ""
            return f"nmse {nmse:.3g} is over {limit:.3g} ({self.why}); {_worst(got64, want, off == off.max())}"
        size_of = np.maximum(np.abs(np.where(usual, want, 0.0)), self.floor)
        allowed = self.units * (DOUBLE if dtype == float64 else 1) * spacing(size_of, compute_dtype(dtype))
        if dtype in HALVES:
            allowed = allowed + self.halves * spacing(size_of, dtype)
        elif self.units == 0:  # correctly rounded: the float64 reference, rounded, is the one right answer
            off = np.abs(np.where(usual, got64, 0) - np.where(usual, rounded, 0))
        wrong = off > allowed * (1 + 1e-9)
        return f"{_worst(got64, want, wrong)} ({self.why})" if wrong.any() else ""


def _worst(got: np.ndarray, want: np.ndarray, wrong: np.ndarray) -> str:
    at = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    count = f"{int(wrong.sum())} of {wrong.size} values are wrong"
    return f"{count}, the first at {at}: {got[at]}, {want[at]} was expected"


def ulp(units: float, why: str, *, halves: float = 0.5, floor: float = 0.0) -> Tol:
    return Tol(why, units, halves, floor)


def nmse(f32: float, f16: float, bf16: float, f64: float, why: str, floor: float = 0.0) -> Tol:
    return Tol(why, floor=floor, squared={float32: f32, float16: f16, bfloat16: bf16, float64: f64})


EXACT = Tol("values are moved, not calculated")
ROUNDED = Tol("one IEEE operation, correctly rounded")
LIBRARY = ulp(4, "array libraries and GPUs compute transcendental functions to 1-2 ulp; 4 leaves them room")

# Rounding once to m explicit bits leaves a mean squared error of 4^-m / 12 on values of mean square 2.3 (mantissas
# evenly spread): 3e-8 of the result for float16 (m = 10), 2e-6 for bfloat16 (m = 7). The limits are 7 times that: few
# values, unevenly spread. A sum of K terms in float32 is off by up to K * 2^-24, usually sqrt(K) * 2^-24; K is below
# 1000 here, so 4e-12 at worst, 4e-15 typically.
# Where weights are bfloat16, a layer may round x to it too: twice the 2e-6, and within the same limit.
CONTRACTION = nmse(1e-12, 2.5e-7, 1.5e-5, 1e-28, "a sum of products in float32, rounded once")
ACTIVATED = nmse(
    1e-12, 2.5e-7, 1.5e-5, 1e-28, "a sum of products, and an activation whose tail cancels below 0.1", floor=0.1
)
# Winograd's F(4x4, 3x3) loses three to four bits, which is allowed where it is faster (Lavin & Gray 2016, section 5)
CONVOLUTION = nmse(1e-10, 2.5e-7, 1.5e-5, 1e-28, "a sum of products in float32; Winograd transforms cost up to 4 bits")
SUM = nmse(1e-12, 2.5e-7, 1.5e-5, 1e-28, "a sum in float32, rounded once; its order is the backend's")
# 8-bit x: 0.8 % relative L2 of the result (nmse 7e-5) for normally distributed numbers, more where one number of a row
# is far larger than the others
QUANTISED = nmse(
    5e-4, 5e-4, 5e-4, 5e-4, "a kernel may quantise x to 8 bits by row: error 1/254 of the row's largest value"
)
# Each gradient is a chain of two or three ops like the forward one; in half precision each of them rounds once more.
# Rules such as y (1 - y) cancel where the slope is nearly 0: below 1/100 of what flows in, errors count as of 1/100.
GRADIENT = nmse(1e-11, 2.5e-6, 1.5e-4, 1e-22, "a chain of ops, each rounded to the dtype of the values", floor=0.01)
