"""The cuda backend: own kernels (cu/, compiled by NVRTC when first asked for) over CuPy arrays; where there is none, or
it declines, the reference's array code over CuPy; else the op's body.

All that it knows of CUDA is its driver (driver.py). ZOO_OFF="rms_norm,add" leaves those ops to the array code;
ZOO_OFF=activations keeps float32 between layers whatever weights are stored in, as processors do; ZOO_TF32=1 lets
products of float32 round their factors, at several times the rate (kernels/gemm.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cuda.driver import CupyDriver, Driver
from zoo.core.backends.cuda.errors import explained, named
from zoo.core.backends.cuda.kernels import KERNELS
from zoo.core.backends.cuda.recorder import Recorder, Replay, reads_a_value
from zoo.core.backends.numpy import ArrayBackend, Kernel
from zoo.core.dtype import bfloat16, compute_dtype
from zoo.core.errors import ZooError


def _either(kernel: Kernel, other: Kernel | None) -> Kernel:
    """The first kernel, and where it declines the other one; without another, declining leads to the op's body."""
    if other is None:
        return kernel

    def run(b: Any, *args: Any, **attrs: Any) -> Any:
        out = kernel(b, *args, **attrs)
        return other(b, *args, **attrs) if out is NotImplemented else out

    return run


def _tf32(environ: Any) -> bool:
    setting = environ.get("ZOO_TF32") or "0"
    if setting not in ("0", "1"):
        raise ZooError(f"ZOO_TF32={setting} cannot be used", "it may be 0 or 1")
    return setting == "1"


class CudaBackend(ArrayBackend):
    """Handles are arrays of driver.xp: cupy.ndarray on one GPU."""

    recorder: Recorder | None = None

    def __init__(self, driver: Driver, name: str = "cuda"):
        super().__init__(name, driver.xp)
        self.driver = driver
        self.tf32 = _tf32(os.environ)
        self.lock = threading.RLock()  # what one thread launches while another captures would be captured too
        self.off = {n for n in os.environ.get("ZOO_OFF", "").replace(" ", "").split(",") if n}
        for op, kernel in KERNELS.items():
            if op not in self.off:
                self.kernels[op] = _either(kernel, self.kernels.get(op))

    @classmethod
    def on(cls, index: int) -> CudaBackend:
        """GPU `index` of this machine.  Raises DeviceError."""
        return cls(CupyDriver(index), named(index))

    @property
    def details(self) -> tuple[str, ...]:
        """What the program shows beside the name of the device."""
        return (self.driver.gpu, f"sm_{self.driver.arch}")

    def bind(self, prim: Any, args: Any, attrs: Any) -> Any:
        try:
            with self.lock, self.driver.current():
                if self.recorder is not None:
                    self.recorder.hold(args)
                return super().bind(prim, args, attrs)
        except ZooError:
            raise
        except Exception as e:
            raise explained(e, self.name) from e

    def from_host(self, array: np.ndarray) -> Any:
        known = np.dtype(array.dtype.type)
        if array.dtype is not known and array.dtype == known:  # a copy of it, as pickle makes: kernels compare by `is`
            array = array.view(known)
        try:
            with self.lock:
                if self.recorder is None or not self.driver.capturing:
                    return self.driver.upload(array)
                self.recorder.hold([constant := self.driver.constant(array)])
                return constant
        except Exception as e:
            raise explained(e, self.name) from e

    def to_host(self, handle: Any) -> np.ndarray:
        try:
            with self.lock:
                if self.recorder is not None:
                    raise reads_a_value()
                return self.driver.to_host(handle)
        except ZooError:
            raise
        except Exception as e:
            raise explained(e, self.name) from e

    def write(self, handle: Any, array: np.ndarray) -> None:
        try:
            with self.lock:
                self.driver.write(handle, array)
        except Exception as e:
            raise explained(e, self.name) from e

    def activations(self, weights: np.dtype) -> np.dtype:
        """That of the weights: half the bytes between kernels, and one product on tensor cores where float32 beside a
        weight in half precision takes two or three. sm_75 has no bfloat16, and would only round."""
        slow = weights == bfloat16 and self.driver.arch < 80
        return compute_dtype(weights) if slow or "activations" in self.off else weights

    @property
    def records(self) -> bool:
        return "capture" not in self.off

    def record(self, step: Callable[[], Any]) -> Replay | None:
        """Runs a step and keeps it as a graph (zoo/core/capture.py); None while another one is being recorded."""
        with self.lock:
            if self.recorder is not None:
                return None
            self.recorder = Recorder(self.driver)
            try:
                return self.recorder.record(step)
            except ZooError:
                raise
            except Exception as e:
                raise explained(e, self.name) from e
            finally:
                self.recorder = None

    def sync(self) -> None:
        try:
            self.driver.synchronize()
        except Exception as e:
            raise explained(e, self.name) from e
