"""The cuda backend: the reference kernels over CuPy arrays, so that every op runs on a GPU; replaced kernel by
kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.backends.numpy import ArrayBackend
from zoo.core.errors import DeviceError


def _cupy(index: int) -> Any:
    """CuPy, with GPU `index` found to be there.  Raises DeviceError in the user's words."""
    name = "cuda" if index == 0 else f"cuda:{index}"
    try:
        import cupy
    except ImportError as e:
        raise DeviceError(
            f"device {name!r} cannot be used",
            f"CuPy is not installed ({e})",
            "pip install cupy-cuda12x, or use --device cpu",
        ) from None
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise DeviceError(
            f"device {name!r} cannot be used", f"CUDA finds no GPU: {e}", "Check `nvidia-smi`, or use --device cpu"
        ) from None
    if index >= found:
        raise DeviceError(f"device {name!r} cannot be used", f"this machine has {found} GPU(s), numbered from 0")
    return cupy


class CudaBackend(ArrayBackend):
    """Handles are cupy.ndarray on GPU `index`."""

    def __init__(self, index: int = 0):
        super().__init__("cuda" if index == 0 else f"cuda:{index}", _cupy(index))
        self.index = index

    def bind(self, prim: Any, args: Any, attrs: Any) -> Any:
        with self.xp.cuda.Device(self.index):
            return super().bind(prim, args, attrs)

    def from_host(self, array: np.ndarray) -> Any:
        with self.xp.cuda.Device(self.index):
            return self.xp.asarray(array)

    def to_host(self, handle: Any) -> np.ndarray:
        return self.xp.asnumpy(handle)

    def sync(self) -> None:
        with self.xp.cuda.Device(self.index):
            self.xp.cuda.get_current_stream().synchronize()
