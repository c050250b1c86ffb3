"""A GPU made of a C++ compiler: the kernels of the cuda backend, from the same text, over numpy arrays.
 What it shows: values, index arithmetic, launch geometry, memory that is read or written outside of the arguments
(which lie between pages that fault) or before it was written (it is filled with NaN), and races: threads run in a
random order, so that a missing barrier gives wrong values. What it cannot show: speed, registers, what a compiler for
GPUs makes of the text, and weak memory order. Needs g++ (or CXX) and nothing of CUDA's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from zoo.core.backends.cuda import CudaBackend
from zoo.core.testing.emulator.driver import EmulatedDriver, EmulationError

__all__ = ["CudaBackend", "EmulatedBackend", "EmulatedDriver", "EmulationError", "emulated"]


class EmulatedBackend(CudaBackend):
    """Array code is work of a GPU's stream too: while a graph is captured it is kept among the launches, to be done
    when they are."""

    def bind(self, prim: Any, args: Any, attrs: Any) -> Any:
        graph = self.driver.recording  # type: ignore[attr-defined]
        if graph is None:
            return super().bind(prim, args, attrs)
        before, kept = len(graph.launches), args[0].copy() if attrs.get("donate") else None
        out = super().bind(prim, args, attrs)
        if len(graph.launches) > before:
            return out
        given = [a for a in args if isinstance(a, np.ndarray)]
        results = [np.asarray(y) for y in (out if type(out) is tuple else (out,))]
        if kept is not None:
            args[0][...] = kept  # nothing is done yet
        elif not given or any(np.may_share_memory(y, a) for y in results for a in given):
            return out  # made of attributes alone, or a view

        def again() -> None:
            made = self.bind(prim, args, attrs)
            for place, y in zip(results, made if type(made) is tuple else (made,), strict=True):
                if place is not y:
                    np.copyto(place, y)

        graph.launches.append(again)
        return tuple(results) if type(out) is tuple else results[0]


@functools.cache
def emulated(arch: int = 90) -> EmulatedBackend:
    """The cuda device over an emulated GPU of this architecture."""
    return EmulatedBackend(EmulatedDriver(arch), "cuda:emulated" if arch == 90 else f"cuda:emulated{arch}")
