"""A GPU made of a C++ compiler: the kernels of the cuda backend, from the same text, over numpy arrays.
 What it shows: values, index arithmetic, launch geometry, memory that is read or written outside of the arguments
(which lie between pages that fault) or before it was written (it is filled with NaN), and races: threads run in a
random order, so that a missing barrier gives wrong values. What it cannot show: speed, registers, what a compiler for
GPUs makes of the text, and weak memory order. Needs g++ (or CXX) and nothing of CUDA's."""

from __future__ import annotations

import functools

from zoo.core.backends.cuda import CudaBackend
from zoo.core.testing.emulator.driver import EmulatedDriver, EmulationError

__all__ = ["CudaBackend", "EmulatedDriver", "EmulationError", "emulated"]


@functools.cache
def emulated(arch: int = 90) -> CudaBackend:
    """The cuda device over an emulated GPU of this architecture."""
    return CudaBackend(EmulatedDriver(arch), "cuda:emulated" if arch == 90 else f"cuda:emulated{arch}")
