"""The reference backend: every primitive in plain array code, correct before fast. It is the oracle of the others.

The same kernels run over numpy and over CuPy: each takes the backend `b` and uses its array module `b.xp`. Half
precision is widened to float32, calculated, and rounded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.numpy import contract, elementwise, index, quant, reduce, source, view
from zoo.core.dtype import compute_dtype
from zoo.core.errors import MissingKernel
from zoo.core.prim import Ops, Prim

Kernel = Callable[..., Any]
GROUPS = (source, reduce, view, index, contract, quant)

# Infinities and NaN are values here, on every device: what numpy has to say about them in these files is not shown.
# (Asking numpy itself, by np.errstate around each kernel, costs 1.6 us, as much as a small kernel.)
warnings.filterwarnings("ignore", category=RuntimeWarning, module=__name__.replace(".", r"\."))


class ArrayBackend:
    """A leaf backend over one array module. Handles are that module's arrays."""

    name: str
    xp: Any

    def __init__(self, name: str, xp: Any):
        self.name, self.xp = name, xp
        self.kernels: dict[str, Kernel] = elementwise.kernels(xp)
        for group in GROUPS:
            self.kernels.update(group.KERNELS)
        self.ops = Ops(self)

    def __repr__(self) -> str:
        return f"device({self.name!r})"

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        kernel = self.kernels.get(prim.name)
        if kernel is not None:
            out = kernel(self, *args, **attrs)
            if out is not NotImplemented:
                return out
        if prim.lower is None:
            raise MissingKernel(f"{self.name} has no kernel for {prim.name}", "and the op has no body in other ops")
        return prim.lower(self.ops, *args, **attrs)

    def from_host(self, array: np.ndarray) -> Any:
        known = np.dtype(array.dtype.type)
        if array.dtype is not known and array.dtype == known:  # a copy of it, as pickle makes: kernels compare by `is`
            array = array.view(known)
        return self.xp.asarray(array)

    def to_host(self, handle: Any) -> np.ndarray:
        return np.asarray(handle)

    def write(self, handle: Any, array: np.ndarray) -> None:
        """Puts the numbers of an array into a handle's own memory."""
        handle[...] = self.xp.asarray(array)

    def activations(self, weights: np.dtype) -> np.dtype:
        """The dtype in which values go through a model whose weights are stored as `weights`: that in which kernels
        calculate. A processor widens weights on the way and loses nothing by float32 between layers."""
        return compute_dtype(weights)

    def sync(self) -> None:
        """Returns when everything asked for so far is computed."""

    def add_at(self, y: Any, indices: Any, updates: Any) -> None:
        """y[indices] += updates in place, where an index may occur several times."""
        self.xp.add.at(y, indices, updates)


class NumpyBackend(ArrayBackend):
    def __init__(self, name: str = "numpy"):
        super().__init__(name, np)
