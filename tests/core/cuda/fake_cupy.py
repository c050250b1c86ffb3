"""A stand-in for CuPy: numpy's arrays, and what the zoo asks of CUDA answered as a machine with so many GPUs would. Its
kernels run on the emulated GPU, from the constants that stand before the text it is given."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from zoo.core.testing.emulator import EmulatedDriver

DEFINE = re.compile(r"^#define (\w+) (.*)$")


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class Device:
    entered: ClassVar[list[int]] = []
    compute_capability = "90"
    attributes: ClassVar[dict[str, int]] = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 232448}

    def __init__(self, index: int):
        self.index = index

    def __enter__(self) -> None:
        Device.entered.append(self.index)

    def __exit__(self, *error: Any) -> None:
        pass


class Stream(nullcontext):
    def __init__(self, non_blocking: bool = False):
        super().__init__()
        self.said: list[str] = []

    captured: ClassVar[list[Any] | None] = None

    def wait_event(self, event: Any) -> None:
        self.said.append("wait")

    def synchronize(self) -> None:
        if Stream.captured is not None and self.said and self.said[-1].startswith("begin"):
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: not permitted when the stream is capturing")
        self.said.append("synchronize")

    def begin_capture(self, mode: str) -> None:
        self.said.append(f"begin {mode}")
        Stream.captured = []

    def end_capture(self) -> Graph:
        self.said.append("end")
        launches, Stream.captured = Stream.captured, None
        return Graph(launches)


class Graph:
    def __init__(self, launches: Any):
        self.launches = launches

    def launch(self, stream: Stream) -> None:
        stream.said.append(f"launch of {len(self.launches)}")
        for run in self.launches:
            run()


class MemoryPool:
    def __init__(self) -> None:
        self.taken: list[np.ndarray] = []

    def malloc(self, size: int) -> Any:
        """From the first that nobody holds, if it is large enough."""
        for memory in self.taken:
            if memory.size >= size and sys.getrefcount(memory) <= 3:
                return SimpleNamespace(mem=SimpleNamespace(ptr=memory.ctypes.data), array=memory)
        self.taken.append(np.empty(max(size, 1), np.uint8))
        return SimpleNamespace(mem=SimpleNamespace(ptr=self.taken[-1].ctypes.data), array=self.taken[-1])

    def total_bytes(self) -> int:
        return sum(memory.size for memory in self.taken)


class Allocation:
    """What using_allocator does, for `empty`."""

    used: ClassVar[Any] = None

    def __init__(self, allocator: Any):
        self.allocator = allocator

    def __enter__(self) -> None:
        self.before, Allocation.used = Allocation.used, self.allocator

    def __exit__(self, *error: Any) -> None:
        Allocation.used = self.before


def empty(shape: Any, dtype: Any) -> Any:
    if Allocation.used is None:
        return np.empty(shape, dtype).view(Array)
    memory = Allocation.used(int(np.prod(shape)) * np.dtype(dtype).itemsize).array
    return np.ndarray(shape, dtype, memory).view(Array)


class Event:
    def __init__(self, disable_timing: bool = False):
        pass

    def record(self, stream: Stream) -> None:
        stream.said.append("record")

    def synchronize(self) -> None:
        pass


class Array(np.ndarray):
    @property
    def data(self) -> Any:
        owner = self
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return SimpleNamespace(ptr=self.ctypes.data, mem=SimpleNamespace(ptr=owner.ctypes.data))

    def set(self, values: np.ndarray, stream: Any = None) -> None:
        self[...] = values


class RawModule:
    made: ClassVar[list[str]] = []

    def __init__(self, code: str, options: tuple[str, ...]):
        RawModule.made.append(code)
        head, _, body = code.partition("#line ")
        constants = dict(m.groups() for line in head.splitlines() if (m := DEFINE.match(line)))
        self.arch, self.constants = int(constants.pop("ARCH")), constants
        self.file = body.split('"')[1]

    def get_function(self, name: str) -> Any:
        kernel = EmulatedDriver(self.arch).kernel(self.file, name, **self.constants)

        def function(grid: Any, block: Any, args: tuple[Any, ...], shared_mem: int = 0) -> None:
            plain = [a.view(np.ndarray) if isinstance(a, Array) else a for a in args]
            run = partial(kernel, grid, block, *plain, shared=shared_mem)
            if Stream.captured is not None:
                Stream.captured.append(run)
            else:
                run()

        return function


def install(gpus: Any = 2, driver: int = 12090, runtime: int = 12090) -> ModuleType:
    """As `cupy` in sys.modules. gpus: how many; or the exception that asking for them raises."""

    def count() -> int:
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    fake = ModuleType("cupy")
    fake.__dict__.update({k: v for k, v in vars(np).items() if not k.startswith("__")})
    fake.empty = empty  # type: ignore[attr-defined]
    fake.get_default_memory_pool = lambda: SimpleNamespace(malloc=None)  # type: ignore[attr-defined]
    fake.asarray = lambda array: np.array(array).view(Array)  # type: ignore[attr-defined]
    fake.asnumpy = lambda array, stream=None: np.asarray(array)  # type: ignore[attr-defined]
    fake.RawModule = RawModule  # type: ignore[attr-defined]
    fake.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        runtime=SimpleNamespace(
            getDeviceCount=count, CUDARuntimeError=CUDARuntimeError, driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: runtime, memGetInfo=lambda: (1 << 30, 1 << 34),
            getDeviceProperties=lambda index: {"name": b"Fake GPU"}, streamCaptureModeRelaxed="relaxed",
        ),
        Device=Device, Stream=Stream, Event=Event, alloc_pinned_memory=bytearray, MemoryPool=MemoryPool,
        using_allocator=Allocation,
    )  # fmt: skip
    special = ModuleType("cupyx.scipy.special")
    special.erf = np.vectorize(__import__("math").erf, otypes=[np.float32])  # type: ignore[attr-defined]
    for name in ("cupyx", "cupyx.scipy"):
        sys.modules[name] = ModuleType(name)
    sys.modules["cupyx.scipy.special"] = special
    sys.modules["cupy"] = fake
    return fake
