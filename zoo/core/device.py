"""Devices by name. A device is a backend object; there is one object per name, so devices compare by identity."""

from __future__ import annotations

import difflib
import functools
from typing import Any

from zoo.core.errors import DeviceError

NAMES = ("numpy", "cpu", "cuda")


@functools.cache
def _numpy() -> Any:
    from zoo.core.backends.numpy import NumpyBackend

    return NumpyBackend()


@functools.cache
def _cpu() -> Any:
    from zoo.core.backends.cpu import CpuBackend

    return CpuBackend()


@functools.cache
def _cuda(index: int) -> Any:
    from zoo.core.backends.cuda import CudaBackend

    return CudaBackend.on(index)


def device(name: Any = None) -> Any:
    """The device called `name`: "numpy", "cpu", "cuda" or "cuda:1"; a device passes through. Without a name, the
    default: cpu where its native kernels were built, else numpy.

    Raises DeviceError if there is no such device, or it cannot be used here.
    """
    if name is None:
        return default()
    if not isinstance(name, str):
        return name
    kind, _, index = name.partition(":")
    if kind == "cuda" and (not index or index.isdecimal()):
        return _cuda(int(index or 0))
    if index or kind not in NAMES:
        near = difflib.get_close_matches(kind, NAMES, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise DeviceError(f"unknown device {name!r}", f"{hint}Devices: numpy, cpu, cuda, cuda:N")
    return _numpy() if kind == "numpy" else _cpu()


@functools.cache
def default() -> Any:
    try:
        return _cpu()
    except DeviceError:
        return _numpy()


def root(device: Any) -> Any:
    """The device below all decorators."""
    while getattr(device, "inner", None) is not None:
        device = device.inner
    return device
