"""The devices of this machine by name, and devices that watch how ops run on another one."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.errors import DeviceError
from zoo.core.fusion import Fusion
from zoo.core.prim import Kind, Ops, Prim


@functools.cache
def device_names() -> tuple[list[str], dict[str, str]]:
    """Devices to test on this machine ("cpu:avx2" forces an instruction set, "fusion" is Fusion(cpu)), and why others
    cannot be."""
    usable: list[str] = []
    missing: dict[str, str] = {}
    for kind in ("numpy", "cpu", "cuda"):
        try:
            device = device_of(kind)
        except DeviceError as e:
            missing[kind] = str(e)
        else:
            usable += [*(f"cpu:{isa}" for isa in device.native.isas()), "fusion"] if kind == "cpu" else [kind]
    return usable, missing


def native_ops() -> set[str]:
    """The ops for which the cpu device has kernels of its own."""
    from zoo.core.backends.cpu.kernels import KERNELS

    return set(KERNELS)


def cuda_ops() -> set[str]:
    """The ops for which the cuda device has kernels of its own."""
    from zoo.core.backends.cuda.kernels import KERNELS

    return set(KERNELS)


@contextmanager
def opened(name: str) -> Iterator[Any]:
    kind, _, isa = name.partition(":")
    if name == "fusion":
        with recording_all() as fusion:
            yield fusion
        return
    if name.startswith("cuda:emulated"):
        from zoo.core.testing.emulator import emulated

        yield emulated(int(name.removeprefix("cuda:emulated") or 90))
        return
    if kind != "cpu":
        yield device_of(name)
        return
    device = device_of("cpu")
    before = device.native.isa()
    device.native.set_isa(isa)
    try:
        yield device
    finally:
        device.native.set_isa(before)


@contextmanager
def recording_all(inner: Any = "cpu") -> Iterator[Fusion]:
    """Fusion(inner), recording ops however few numbers they have."""
    fusion = Fusion(inner)
    before = fusion.small
    fusion.small = 0
    try:
        yield fusion
    finally:
        fusion.small = before


class Checked:
    """`base`, with every op that passes checked: the result has the shape and dtype that `infer` says, elementwise
    arguments agree in dtype (rules and bodies promise it), no argument is written to. bodies: a composite runs its
    body, never a kernel, so that what the body is made of passes here too. `seen` counts the ops."""

    def __init__(self, base: Any, bodies: bool = False):
        self.base, self.bodies = base, bodies
        self.name = f"checked({base.name})"
        self.ops = Ops(self)
        self.seen: Counter[str] = Counter()

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        self.seen[prim.name] += 1
        call = f"{prim.name}({', '.join(_shown(a) for a in args)}, {attrs})"
        metas = prim.infer(*args, **attrs)
        if prim.kind is Kind.ELEMENTWISE:
            dtypes = {a.dtype for a in args[prim.name == "where" :] if hasattr(a, "dtype")}
            assert len(dtypes) == 1, f"{call}: dtypes differ"
        before = [self.base.to_host(a).tobytes() if hasattr(a, "dtype") else None for a in args]
        if self.bodies and prim.lower is not None:
            out = prim.lower(self.ops, *args, **attrs)
        else:
            out = self.base.bind(prim, args, attrs)
        assert (type(out) is tuple) == (type(metas) is tuple), f"{call}: one result or several?"
        pairs = zip(out, metas, strict=True) if type(out) is tuple else ((out, metas),)
        for y, meta in pairs:
            assert tuple(y.shape) == meta.shape, f"{call} is of shape {tuple(y.shape)}, infer says {meta.shape}"
            assert y.dtype == meta.dtype, f"{call} is {y.dtype.name}, infer says {meta.dtype.name}"
        if not attrs.get("donate"):
            for i, (a, bytes_before) in enumerate(zip(args, before, strict=True)):
                assert bytes_before is None or self.base.to_host(a).tobytes() == bytes_before, (
                    f"{call} wrote to argument {i}"
                )
        return out

    def from_host(self, array: np.ndarray) -> Any:
        return self.base.from_host(array)

    def to_host(self, handle: Any) -> np.ndarray:
        return self.base.to_host(handle)

    def activations(self, weights: np.dtype) -> np.dtype:
        return self.base.activations(weights)

    def sync(self) -> None:
        self.base.sync()


class WithoutRules:
    """An Autodiff device on which composites have no gradient rule of their own: their bodies are differentiated."""

    def __init__(self, autodiff: Any):
        self.autodiff, self.name = autodiff, f"without_rules({autodiff.name})"
        self.replaced: Counter[str] = Counter()

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        if prim.lower is not None and callable(prim.vjp):
            self.replaced[prim.name] += 1
            prim = dataclasses.replace(prim, vjp=None)
        return self.autodiff.bind(prim, args, attrs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.autodiff, name)


def _shown(a: Any) -> str:
    return f"{a.dtype.name}{tuple(a.shape)}" if hasattr(a, "dtype") else repr(a)
