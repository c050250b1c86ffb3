"""For the tests of half precision between layers: what ran, and how far answers are apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from zoo.core.dtype import HALVES, float32
from zoo.core.prim import Ops
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import emulated

CUDA = emulated()
DTYPES = ["bfloat16", "float16"]
PRODUCTS = ("linear", "qlinear", "conv", "conv_bias_act", "matmul", "attention")


class Seen:
    """What ran: `wide`, products that were given float32, by name and the shape of their second argument; `casts`
    between floating-point dtypes, by shape; `other` elementwise ops and norms that were given float32, by shape."""

    def __init__(self) -> None:
        self.wide: Counter[str] = Counter()
        self.casts: Counter[str] = Counter()
        self.other: Counter[str] = Counter()
        self.products = 0

    def op(self, name: str, args: Any, attrs: Any) -> None:
        given = [a for a in args if hasattr(a, "dtype")]
        if name in PRODUCTS:
            self.products += 1
            if given[0].dtype == float32:
                self.wide[f"{name} {given[1].shape}"] += 1
        elif name == "cast":
            pair = {given[0].dtype, attrs["dtype"]}
            if float32 in pair and pair & HALVES:
                self.casts[f"{attrs['dtype'].name} {given[0].shape}"] += 1
        elif given and given[0].dtype == float32 and name not in ("reshape", "slice", "permute_dims", "expand"):
            self.other[f"{name} {given[0].shape}"] += 1


@contextmanager
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    found, kind = Seen(), type(CUDA)
    before = kind.bind

    def bind(self: Any, prim: Any, args: Any, attrs: Any) -> Any:
        found.op(prim.name, args, attrs)
        return before(self, prim, args, attrs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "bind", bind)
        patch.setattr(CUDA, "ops", Ops(CUDA))  # which kernels call; it keeps the `bind` that it found first
        patch.setattr(CUDA, "off", {"capture"})
        stats(reset=True)
        yield found


def placed(array: Any) -> Tensor:
    return Tensor(CUDA.from_host(np.ascontiguousarray(array)), CUDA)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs))


def no_worse(ours: np.ndarray, theirs: np.ndarray, wide: np.ndarray) -> None:
    """Ours is at most 1.5 times as far from float32 as torch's in the same dtype: both round the same values, in other
    places and other order, and of a few hundred numbers the mean differs by a third from run to run."""
    assert 0 < apart(ours, wide) < 1.5 * apart(theirs, wide), (apart(ours, wide), apart(theirs, wide))
