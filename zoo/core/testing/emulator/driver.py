"""The driver of the emulated GPU: what zoo/core/backends/cuda/driver.py does over CuPy, over numpy and g++."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from zoo.core.backends.cuda.driver import Driver
from zoo.core.backends.cuda.source import FOLDER, Constant
from zoo.core.dtype import bfloat16
from zoo.core.testing.emulator import cublas
from zoo.core.testing.emulator.asked import note
from zoo.core.testing.emulator.compiler import EmulationError, compiled, runtime

PAGE = 4096
# bytes of shared memory that one block may use: CUDA C++ Programming Guide, table of compute capabilities
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
CODES = {np.dtype(c): c for c in "?bBhHiIqQfd"} | {np.dtype(np.float16): "e", bfloat16: "E"}
RAW = "vsBHIQ"  # pointers to these may point at anything: bytes, words, vectors


class _Arrays(ModuleType):
    """numpy with one difference: new memory is full of NaN, so that what no kernel wrote shows."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        setattr(self, name, found)
        return found

    @staticmethod
    def empty(shape: Any, dtype: Any = np.float32) -> np.ndarray:
        made = np.empty(shape, dtype)
        made.reshape(-1).view(np.uint8).fill(0xFF if made.dtype != np.bool_ else 1)
        return made

    @classmethod
    def empty_like(cls, array: np.ndarray) -> np.ndarray:
        return cls.empty(array.shape, array.dtype)


class EmulatedDriver(Driver):
    """seed: of the order in which threads run; another seed, another order."""

    def __init__(self, arch: int = 90, seed: int = 1, folders: tuple[Path, ...] = (FOLDER,)):
        super().__init__(_Arrays("numpy"), arch, multiprocessors=4, shared_limit=SHARED[arch])
        self.gpu, self.seed, self.folders = "emulated GPU", seed, folders
        self.recording: EmulatedGraph | None = None

    def _compile(self, file: str, name: str, constants: dict[str, Constant]) -> EmulatedKernel:
        if self.folders == (FOLDER,):
            note(file, name, self.arch, constants)
        return EmulatedKernel(self, file, name, constants)

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def gemm(self, *args: Any, **named: Any) -> None:
        product = partial(cublas.gemm, self.arch, *args, **named)
        if self.recording is not None:
            self.recording.launches.append(product)
        else:
            product()

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def upload(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    def constant(self, array: np.ndarray) -> np.ndarray:
        return self.upload(array)

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        array[...] = values

    def arena(self) -> EmulatedArena:
        return EmulatedArena()

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array)

    def synchronize(self) -> None:
        pass

    def release(self) -> None:
        pass

    def memory(self) -> tuple[int, int]:
        return 1 << 34, 1 << 34

    @contextmanager
    def capture(self) -> Iterator[EmulatedGraph]:
        """Launches are recorded and not run, as on a GPU."""
        self.recording = graph = EmulatedGraph()
        self.capturing = True
        try:
            yield graph
        finally:
            self.recording, self.capturing = None, False


class EmulatedGraph:
    """Launches with the arrays they were given: a replay reads and writes the same memory."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    def launch(self) -> None:
        for run in self.launches:
            run()


class EmulatedArena(nullcontext):
    """The graph holds all arrays: none of their memory is given to others."""

    size = 0

    def owns(self, array: Any) -> bool:
        return False


class _Memory:
    """Blocks between pages that fault, kept for the next launch."""

    def __init__(self) -> None:
        self.free: dict[int, list[int]] = {}

    def take(self, pages: int) -> int:
        kept = self.free.setdefault(pages, [])
        return kept.pop() if kept else runtime().emulated_guarded(pages)

    def give_back(self, pages: int, at: int) -> None:
        self.free[pages].append(at)


MEMORY, LOCK = _Memory(), threading.Lock()


class _Region:
    """A copy of some arguments' memory, its end at a page that faults; what is left before and after is filled, and
    looked at afterwards."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high
        self.writes = False

    def holds(self, array: np.ndarray) -> bool:
        return self.low <= array.ctypes.data <= self.high

    def enter(self) -> None:
        size = self.high - self.low
        self.pages = (size + 16 + 64 + PAGE - 1) // PAGE
        self.block = MEMORY.take(self.pages)
        end = self.block + self.pages * PAGE
        self.at = end - size - (end - size - self.low) % 16
        self.head, self.tail = self.at - self.block, end - self.at - size
        ctypes.memset(self.block, 0xFF, self.head)
        ctypes.memmove(self.at, self.low, size)
        ctypes.memset(self.at + size, 0xFF, self.tail)

    def leave(self) -> str:
        """Copies back; says what was written beyond the ends."""
        size = self.high - self.low
        if self.writes:
            ctypes.memmove(self.low, self.at, size)
        before, after = ctypes.string_at(self.block, self.head), ctypes.string_at(self.at + size, self.tail)
        MEMORY.give_back(self.pages, self.block)
        if before.count(0xFF) != len(before):
            return "before the start"
        return "beyond the end" if after.count(0xFF) != len(after) else ""


class EmulatedKernel:
    def __init__(self, driver: EmulatedDriver, file: str, name: str, constants: dict[str, Constant]):
        self.driver, self.file, self.name, self.constants = driver, file, name, constants
        self.call, types = compiled(file, name, driver.arch, constants, driver.folders)
        self.kinds, self.codes = types[: len(types) // 2], types[len(types) // 2 :]

    def __repr__(self) -> str:
        return f"{self.file}: {self.name}({', '.join(f'{k}={v}' for k, v in self.constants.items())})"

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, shared: int = 0) -> None:
        call = (self._three(grid, (2**31 - 1, 65535, 65535), "grid"), self._three(block, (1024, 1024, 64), "block"),
                self._checked(args), shared)  # fmt: skip
        threads = int(np.prod(call[1]))
        if threads > 1024:
            self._wrong(f"a block of {threads} threads; 1024 is the most")
        if shared > self.driver.shared_limit:
            self._wrong(f"{shared} bytes of shared memory; a block has {self.driver.shared_limit}")
        if self.driver.recording is not None:
            self.driver.recording.launches.append(partial(self.run, *call))
        else:
            self.run(*call)

    def _wrong(self, why: str, fix: str = "") -> None:
        raise EmulationError(f"kernel {self!r} went wrong", why, fix)

    def _three(self, sizes: tuple[int, ...], most: tuple[int, ...], what: str) -> tuple[int, ...]:
        if not 1 <= len(sizes) <= 3 or any(not 1 <= n <= m for n, m in zip(sizes, most, strict=False)):
            self._wrong(f"a {what} of {sizes}; its sizes are 1 to {most}")
        return (*(int(n) for n in sizes), 1, 1)[:3]

    def _checked(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) != len(self.codes):
            self._wrong(f"{len(args)} arguments were given; it takes {len(self.codes)}")
        for i, (a, kind, code) in enumerate(zip(args, self.kinds, self.codes, strict=True)):
            if kind == " ":
                if not isinstance(a, np.generic) or CODES.get(a.dtype) != code:
                    given = a.dtype.name if hasattr(a, "dtype") else type(a).__name__
                    self._wrong(f"argument {i} is {given}; a numpy scalar with the code {code!r} was expected")
            elif a is not None:
                if not isinstance(a, np.ndarray):
                    self._wrong(f"argument {i} is {a!r}; an array or None was expected")
                if code not in RAW and CODES.get(a.dtype) != code:
                    self._wrong(f"argument {i} is an array of {a.dtype.name}; the kernel takes the code {code!r}")
        return args

    def _regions(self, args: tuple[Any, ...]) -> list[_Region]:
        """The memory of the arguments; what overlaps is one."""
        found: list[_Region] = []
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray):
                low, high = np.lib.array_utils.byte_bounds(a) if a.size else (a.ctypes.data, a.ctypes.data)
                region = _Region(low, high)
                region.writes = self.kinds[i] == "*"
                for other in [r for r in found if low < r.high and r.low < high]:
                    found.remove(other)
                    region.low, region.high = min(region.low, other.low), max(region.high, other.high)
                    region.writes |= other.writes
                found.append(region)
        return found

    def run(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int) -> None:
        with LOCK:
            regions = self._regions(args)
            for region in regions:
                region.enter()
            values = (ctypes.c_uint64 * max(len(args), 1))()
            bounds = (ctypes.c_void_p * (2 * len(args) + 2))()
            for i, a in enumerate(args):
                if isinstance(a, np.ndarray):
                    r = next(r for r in regions if r.holds(a) and (a.ctypes.data < r.high or not a.size))
                    values[i] = r.at + a.ctypes.data - r.low
                    bounds[2 * i], bounds[2 * i + 1] = r.at, r.block + r.pages * PAGE
                elif a is not None:
                    ctypes.memmove(ctypes.byref(values, 8 * i), a.tobytes(), a.dtype.itemsize)
            here = ctypes.addressof(values)
            places = (ctypes.c_void_p * max(len(args), 1))(*(here + 8 * i for i in range(len(args))))
            text = ctypes.create_string_buffer(1024)
            wrong = runtime().emulated_launch(
                self.call, places, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared,
                self.driver.shared_limit, self.driver.seed, bounds, len(args), text, 1024,
            )  # fmt: skip
            beyond = [(r, said) for r in regions if (said := r.leave())]
        if wrong:
            what, _, where = text.value.decode().partition("\n")
            self._wrong(what, where)
        for region, said in beyond:
            i = next(i for i, a in enumerate(args) if isinstance(a, np.ndarray) and region.holds(a))
            self._wrong(f"it wrote {said} of argument {i}")
