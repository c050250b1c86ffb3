"""The cpu backend: the numpy backend with native kernels for what is hot.

Handles are numpy arrays, so views are free, and a kernel may decline what it does not do: numpy's takes over. The
kernels are C++ (csrc/), compiled once per instruction set and chosen when the library is loaded.

Environment, read once: ZOO_ISA forces an instruction set, ZOO_THREADS a number of threads (else one for each physical
core that this process may use), ZOO_OFF="matmul,conv" leaves those ops to numpy (no ops, but switched off there too:
"winograd", Winograd's algorithm for convolutions, "bf16", that a layer with bfloat16 weights rounds its input to
bfloat16, and "capture", the replay of recorded steps), ZOO_TUNE=1 measures which algorithm is fastest for each new
shape and remembers it in the user's cache, ZOO_TUNE=0 does not even follow what is remembered (kernels/tune.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from threading import Lock, get_ident
from typing import Any

import numpy as np

from zoo.core.backends.cpu import kernels
from zoo.core.backends.cpu.kernels import tune
from zoo.core.backends.cpu.pack import Packed, pack
from zoo.core.backends.cpu.recorder import Recorder, Replay
from zoo.core.backends.numpy import Kernel, NumpyBackend
from zoo.core.dtype import bfloat16, float16
from zoo.core.errors import DeviceError, OpError, ZooError
from zoo.core.mapping import file_of, let_go


def _load() -> Any:
    try:
        return import_module("zoo.core.backends.cpu._native")
    except ImportError as e:
        raise DeviceError(
            "device 'cpu' cannot be used",
            f"its native kernels were not built, or do not load ({e})",
            "Install a C++17 compiler and install zoo-models again, or use --device numpy",
        ) from None


def _either(kernel: Kernel, other: Kernel | None) -> Kernel:
    """The first kernel, and where it declines the other one; without another, declining leads to the op's body."""
    if other is None:
        return kernel

    def run(b: Any, *args: Any, **attrs: Any) -> Any:
        out = kernel(b, *args, **attrs)
        return other(b, *args, **attrs) if out is NotImplemented else out

    return run


class CpuBackend(NumpyBackend):
    """Handles are numpy arrays; a weight may also be `Packed`."""

    recorder: Recorder | None = None
    small = 4096
    """Values; numpy's adds and products of fewer take less than a native call."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.native = _load()
        self._recording = Lock()
        self._obey(os.environ)
        for name, kernel in kernels.KERNELS.items():
            if name not in self.off:
                self.kernels[name] = _either(kernel, self.kernels.get(name))

    def _obey(self, environ: Any) -> None:
        """Takes the settings of the environment.  Raises ZooError for one that this machine cannot follow."""
        isa, threads = environ.get("ZOO_ISA"), environ.get("ZOO_THREADS")
        if isa:
            try:
                self.native.set_isa(isa)
            except ValueError:
                there = ", ".join(self.native.isas())
                raise ZooError(
                    f"ZOO_ISA={isa} cannot be used",
                    f"this build and machine have: {there}",
                    "Choose one, or unset ZOO_ISA",
                ) from None
        if threads:
            if not threads.isdecimal() or not 1 <= int(threads) <= 1024:
                raise ZooError(f"ZOO_THREADS={threads} cannot be used", "it must be a number from 1 to 1024")
            self.native.set_threads(int(threads))
        tuning = environ.get("ZOO_TUNE") or None
        if tuning not in (None, "0", "1"):
            raise ZooError(f"ZOO_TUNE={tuning} cannot be used", "it may be 0 or 1")
        self.choices = tune.Choices(tuning)
        self.off = {name for name in environ.get("ZOO_OFF", "").replace(" ", "").split(",") if name}
        if unknown := self.off - kernels.KERNELS.keys() - kernels.ALGORITHMS:
            known = ", ".join([*kernels.KERNELS, *kernels.ALGORITHMS])
            raise ZooError(f"ZOO_OFF names unknown kernels: {', '.join(sorted(unknown))}", f"there are: {known}")

    @property
    def isa(self) -> str:
        return self.native.isa()

    @property
    def pairs(self) -> bool:
        """Are inputs of layers with bfloat16 weights rounded to bfloat16, and multiplied in pairs?"""
        return self.native.pairs() and "bf16" not in self.off

    @property
    def details(self) -> tuple[str, ...]:
        """What the program shows beside the name of the device."""
        n = self.native.threads()
        return (self.isa, f"{n} thread{'s' * (n != 1)}")

    def bind(self, prim: Any, args: Any, attrs: Any) -> Any:
        if self.recorder is not None and self.recorder.thread == get_ident():
            return self.recorder.bind(prim, args, attrs)
        for a in args:
            if type(a) is Packed:
                return self._bind_packed(prim, args, attrs)
        return super().bind(prim, args, attrs)

    def _bind_packed(self, prim: Any, args: Any, attrs: Any) -> Any:
        kernel = kernels.KERNELS.get(prim.name)
        if kernel is not None and prim.name not in self.off:
            out = kernel(self, *args, **attrs)
            if out is not NotImplemented:
                return out
        return super().bind(prim, [a.unpack() if type(a) is Packed else a for a in args], attrs)

    def pack(self, weight: np.ndarray, kind: str, groups: int = 1) -> Packed:
        """A weight rearranged for its kernel: `kind` "linear" (N, K), "scale" (of a rounded one) or "conv" (O, *kernel,
        C / groups).
        Raises OpError for what cannot be packed, and for a linear one in half precision that lies in a mapped file: it
        is read from there nearly as fast, and to pack it would take longer than a short answer."""
        if kind == "linear" and weight.dtype in (bfloat16, float16) and file_of(weight) is not None:
            raise OpError(
                f"it is {weight.dtype.name} in a mapped file",
                "Products read it from there.",
                what="a weight is not packed",
            )
        packed = pack(self.native, weight, "linear" if kind == "scale" else kind, groups, self.pairs)
        let_go(weight)  # a mapped checkpoint would else be in memory twice
        return packed

    @property
    def records(self) -> bool:
        return "capture" not in self.off

    in_place = True
    """Whether the optimizer's step with donate=True leaves the weights where they are, for what is captured to read."""

    def record(self, step: Callable[[], Any]) -> Replay | None:
        """Runs a step and keeps what it did (zoo/core/capture.py). One at a time is recorded."""
        if not self._recording.acquire(blocking=False):
            return None
        try:
            return Recorder(self).record(step)
        finally:
            self._recording.release()

    def to_host(self, handle: Any) -> np.ndarray:
        if self.recorder is not None and self.recorder.thread == get_ident():
            return self.recorder.to_host(handle)
        return handle.unpack() if type(handle) is Packed else super().to_host(handle)
