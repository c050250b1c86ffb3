"""A step on the cpu device, recorded as it runs once, and replayed without Python: see zoo/core/capture.py.

While a step is recorded, `Recorder` stands where the backend stands: ops come to it, and kernels take it for the
backend. It sorts ops into three kinds:

native   the kernel does nothing but call native functions (NATIVE): the calls are kept by the library itself
         (csrc/recording.h), and replaying one takes 20 ns
again    any other kernel is run again by Python, and its result copied into the first one's memory
views    and whatever is made of attributes alone are worked out once

Results lie in an arena that nobody else is given. An array's memory goes to the next of its size as soon as Python
frees it while recording; the replay makes the same calls in the same order, so nothing is overwritten too early.
A native call that reads memory which no recorded op wrote (a copy that a kernel makes for itself) would read old
numbers in a replay: such an op is run again by Python.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu import kernels, memory
from zoo.core.backends.cpu.pack import Packed
from zoo.core.errors import ZooError
from zoo.core.prim import Kind, Ops, Prim

NATIVE = frozenset((
    "linear", "matmul", "qlinear", "qlinears", "qmatmul", "conv", "conv_bias_act", "qconv", "window_max", "window_sum",
    "window_max_grad", "attention", "rope", "update_rows", "rms_norm", "layer_norm", "swiglu", "cast", "softmax",
    "log_softmax", "cross_entropy", "cross_entropy_grad", "dropout", "sum", "add", "sub", "mul", "div", "maximum",
    "minimum", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh", "exp", "activation_grad",
))  # fmt: skip
"""Ops whose cpu kernels, where they do not decline, only call native functions and look at arrays in other shapes."""


NOBODY = 0  # no thread has this number


def origin(array: np.ndarray) -> Any:
    """What owns the memory that an array lies in."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


class Replay:
    """What was recorded. `result`: what the step returned, whose arrays each replay writes anew."""

    def __init__(self, calls: Any, parts: list[tuple[int, int] | Callable[[], None]], held: Any, result: Any):
        self.calls, self.parts, self.held, self.result = calls, parts, held, result

    def __call__(self) -> bool:
        """Replays. False if an op met numbers that its recorded call cannot handle: then the step must run as it is."""
        replay = self.calls.replay
        for part in self.parts:
            if type(part) is tuple:
                if not replay(*part):
                    return False
            else:
                part()  # type: ignore[operator]
        return True


class Recorder:
    """Stands for the backend in the thread that records."""

    small = 0  # a native call of a recording costs less than one of numpy, however few the numbers are

    def __init__(self, backend: Any):
        self.backend, self.calls, self.arena = backend, backend.native.Recording(), backend.native.Arena()
        self.native = _Watched(self)
        self.ops = Ops(self)
        self.thread = threading.get_ident()
        self.held: dict[int, Any] = {}
        """Memory that is not of the arena, by id: inputs, weights, results of ops that Python runs again."""
        self.parts: list[tuple[int, int] | Callable[[], None]] = []
        self.recorded = 0
        """Native calls that `parts` has."""
        self.depth = 0
        self.strange = False
        """Whether a kernel read memory of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def record(self, step: Callable[[], Any]) -> Replay:
        """Runs the step, and keeps what it did."""
        self.backend.recorder = memory.recorder = self
        self.calls.start()
        try:
            result = step()
        finally:
            self.calls.stop()
            self.backend.recorder = memory.recorder = None
        self._close()
        return Replay(self.calls, self.parts, self.held, result)

    # the backend protocol

    def bind(self, prim: Prim, args: Any, attrs: Any) -> Any:
        arrays: list[Any] = [a.buffer if type(a) is Packed else a for a in args if isinstance(a, np.ndarray | Packed)]
        if self.depth == 0:
            self._hold(arrays)
        elif not all(map(self.known, arrays)):
            self.strange = True
        self.depth += 1
        try:
            if prim.name in NATIVE and prim.name in kernels.KERNELS and prim.name not in self.off:
                out = self._native(prim, args, attrs)
                if out is not NotImplemented:
                    return out
            if prim.name not in self.backend.kernels and prim.lower is not None:
                self.depth -= 1  # its body is ops like any others
                try:
                    return prim.lower(self.ops, *args, **attrs)
                finally:
                    self.depth += 1
            return self._again(prim, args, attrs, arrays)
        finally:
            self.depth -= 1

    def from_host(self, array: np.ndarray) -> Any:
        return self.backend.from_host(array)

    def to_host(self, handle: Any) -> np.ndarray:
        raise ZooError(
            "this step cannot be captured",
            "it reads a value in the middle, which would be that of its first run ever after",
            "Return the value, and read it outside.",
        )

    # the three kinds

    def _native(self, prim: Prim, args: Any, attrs: Any) -> Any:
        """Runs the native kernel. NotImplemented, and nothing recorded, where it declines or reads its own memory."""
        first, parts, recorded, before = len(self.calls), len(self.parts), self.recorded, self.strange
        self.strange = False
        out = kernels.KERNELS[prim.name](self, *args, **attrs)
        if out is NotImplemented or self.strange:
            out = NotImplemented
            self.calls.cut(first)
            del self.parts[parts:]
            self.recorded = recorded
        self.strange = before
        return out

    def _again(self, prim: Prim, args: Any, attrs: Any, arrays: list[Any]) -> Any:
        """Runs an op outside the recording, and keeps how to run it again."""
        self.calls.stop()
        self.thread = NOBODY
        try:
            out = self.backend.bind(prim, args, attrs)
        finally:
            self.thread = threading.get_ident()
            self.calls.start()
        out = tuple(map(np.asarray, out)) if type(out) is tuple else np.asarray(out)  # numpy gives scalars for 0 axes
        results = out if type(out) is tuple else (out,)
        sources = {id(origin(a)) for a in arrays}
        fresh = [y for y in results if id(origin(y)) not in sources]
        self._hold(list(results))
        if not arrays or (prim.kind is Kind.VIEW and not fresh):
            return out
        self._close()
        bind, places = self.backend.bind, results if fresh else []

        def again() -> None:
            made = bind(prim, args, attrs)
            for place, y in zip(places, made if type(made) is tuple else (made,), strict=False):
                np.copyto(place, y)

        self.parts.append(again)
        return out

    def _close(self) -> None:
        """Native calls up to here come before what follows."""
        if len(self.calls) > self.recorded:
            self.parts.append((self.recorded, len(self.calls)))
            self.recorded = len(self.calls)

    # memory

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        return np.ndarray(shape, dtype, self.backend.native.Memory(max(size, 1), self.arena))

    def known(self, array: np.ndarray) -> bool:
        """Whether a replay finds in it what belongs there."""
        owner = origin(array)
        return id(owner) in self.held or getattr(owner, "arena", None) is self.arena

    def _hold(self, arrays: list[Any]) -> None:
        for array in arrays:
            owner = origin(array)
            if getattr(owner, "arena", None) is not self.arena:
                self.held[id(owner)] = owner


class _Watched:
    """The native module, as kernels see it while they are recorded."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        function, recorder = getattr(self._recorder.backend.native, name), self._recorder

        def watched(*args: Any, **named: Any) -> Any:
            if not all(recorder.known(array) for array in _arrays((*args, *named.values()))):
                recorder.strange = True
            return function(*args, **named)

        return watched if callable(function) else function


def _arrays(values: Any) -> list[np.ndarray]:
    found = []
    for value in values:
        if isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _arrays(value)
    return found
