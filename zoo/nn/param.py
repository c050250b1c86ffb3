"""A parameter that has no values yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import float32
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.nn import init as initial
from zoo.nn.init import Init


class Param(Tensor):
    """Stands for a tensor of this shape and dtype until `Module.init` or `Module.load` puts one in its place, so that a
    model built from a config takes no memory. Its values, and every op that is given it, raise a ZooError."""

    __slots__ = ("_dtype", "_shape", "init")

    def __init__(self, shape: Sequence[int], init: Init = initial.zeros, dtype: Any = float32):
        self._shape, self._dtype, self.init = tuple(shape), dtype_of(dtype), init

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return int(np.prod(self._shape, dtype=np.int64))

    @property
    def handle(self) -> Any:
        raise ZooError(
            "this model has no weights yet",
            f"it was used before its parameters, here one of shape {self._shape}, were filled",
            "Fill them first: model.init(rng) for new weights, model.load(...) or zoo.load(REF) for trained ones.",
        )

    device = handle

    def __repr__(self) -> str:
        return f"Param({self._shape}, {self._dtype.name}, no values yet)"
