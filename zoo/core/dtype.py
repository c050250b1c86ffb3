"""Dtypes. A dtype is a numpy dtype, so that one name means one thing in the zoo, in numpy and in CuPy.

bfloat16 comes from ml_dtypes and is a storage type, as float16 is: kernels compute and accumulate in float32 and round
once at the end. numpy itself would saturate a bfloat16 sum at 256 and refuse einsum.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from zoo.core.errors import DtypeError

float64 = np.dtype(np.float64)
float32 = np.dtype(np.float32)
float16 = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
int64 = np.dtype(np.int64)
int32 = np.dtype(np.int32)
int16 = np.dtype(np.int16)
int8 = np.dtype(np.int8)
uint8 = np.dtype(np.uint8)
uint32 = np.dtype(np.uint32)
bool_ = np.dtype(np.bool_)

FLOATS = (float16, bfloat16, float32, float64)
HALVES = frozenset((float16, bfloat16))
INTS = (uint8, int8, int16, int32, uint32, int64)
ALL = (bool_, *INTS, *FLOATS)

_FLOATS = frozenset(FLOATS)
_NARROW = frozenset((bool_, uint8, int8, int16))
_SHORT = {"f32": float32, "f16": float16, "bf16": bfloat16, "f64": float64, "bool": bool_}
_NAMES = {d.name: d for d in ALL} | _SHORT


def dtype(name: str | np.dtype | type) -> np.dtype:
    """The dtype called `name` ("float32", "f32", numpy's own types too).  Raises DtypeError for one the zoo has not."""
    found = _NAMES.get(name) if isinstance(name, str) else np.dtype(name)
    if found is None or found not in ALL:  # numpy would take None for float64
        raise DtypeError("", "Known: " + ", ".join(d.name for d in ALL), what=f"unknown dtype {name!r}")
    return found


def is_float(d: np.dtype) -> bool:
    return d in _FLOATS


def compute_dtype(d: np.dtype) -> np.dtype:
    """The dtype in which kernels calculate on values stored as `d`."""
    return float32 if d in HALVES else d


def sum_dtype(d: np.dtype) -> np.dtype:
    """The dtype of a sum of values stored as `d`: integers narrower than int32 would wrap: they take it."""
    return int32 if d in _NARROW else d


def _category(d: np.dtype) -> int:
    return 2 if d in _FLOATS else 0 if d == bool_ else 1


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The common dtype of two operands: the higher of bool < int < float; within one category, the one that holds both
    (float16 with bfloat16: float32)."""
    if a == b:
        return a
    ca, cb = _category(a), _category(b)
    if ca != cb:
        return a if ca > cb else b
    if ca == 2:
        if a in HALVES and b in HALVES:
            return float32
        return a if a.itemsize > b.itemsize else b
    return np.promote_types(a, b)
