"""What the cuda backend needs of CUDA: arrays, kernels, streams, graphs, memory. `CupyDriver` has it of CuPy; the tests
have another one of the same face, which runs the kernels on the processor (zoo/core/testing/emulator)."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np

from zoo.core.backends.cuda import cublas
from zoo.core.backends.cuda.errors import opened
from zoo.core.backends.cuda.source import Constant, whole
from zoo.core.errors import DeviceError

Kernel = Callable[..., None]
CHUNK = 16 << 20  # bytes of one of the two page-locked buffers through which weights go to the GPU
DIRECT = 1 << 20  # fewer bytes are copied at once
STATIC_SHARED = 48 << 10  # bytes that a block has without asking for more
NULL = np.uint64(0)
OPTIONS = ("-std=c++17",)  # CuPy adds folders of headers, of which no kernel reads any, and -ftz=true


class Driver(ABC):
    """xp: the array module. arch: 75 for sm_75. shared_limit: bytes of shared memory that one block may use. gpu: what
    its maker calls it."""

    gpu: str

    def __init__(self, xp: Any, arch: int, multiprocessors: int, shared_limit: int):
        self.xp, self.arch, self.multiprocessors, self.shared_limit = xp, arch, multiprocessors, shared_limit
        self.capturing = False  # within capture(), where nothing may wait for the GPU
        self._kernels: dict[tuple[Any, ...], Any] = {}

    def kernel(self, file: str, name: str, **constants: Constant) -> Kernel:
        """The kernel `name` of cu/`file`, compiled with these constants as #define lines before the text; ARCH is
        always one of them. Called with (grid, block, *arguments, shared=bytes): arguments are arrays (their address),
        None (a null pointer) and numpy scalars, which go by value as what they are: np.int32(n) for an `int n`."""
        key = (file, name, *constants.items())
        found = self._kernels.get(key)
        if found is None:
            found = self._kernels[key] = self._compile(file, name, constants)
        return found

    @abstractmethod
    def _compile(self, file: str, name: str, constants: dict[str, Constant]) -> Kernel: ...

    @abstractmethod
    def gemm(
        self, transpose_a: bool, transpose_b: bool, m: int, n: int, k: int, alpha: float, a: Any, lda: int,
        stride_a: int, b: Any, ldb: int, stride_b: int, beta: float, c: Any, ldc: int, stride_c: int, batch: int, *,
        tf32: bool,
    ) -> None:  # fmt: skip
        """c = alpha op(a) op(b) + beta c for each of `batch` matrices, as cublasGemmStridedBatchedEx has it: op(a) is
        m x k, op(b) k x n, op transposes where `transpose_` says so; columns lie one after the other, lda numbers
        apart, matrices stride_a numbers apart. a and b in one dtype, c in theirs or in float32; sums in float32, or
        float64 of float64."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """Where its first value lies."""

    def aligned(self, *arrays: Any, to: int = 16) -> bool:
        """Whether each of them begins on a multiple of `to` bytes: new arrays do, views may not."""
        return all(a is None or self.address(a) % to == 0 for a in arrays)

    @abstractmethod
    def current(self) -> AbstractContextManager[Any]:
        """Within it, this GPU and its stream are the ones that are used."""

    @abstractmethod
    def upload(self, array: np.ndarray) -> Any: ...

    @abstractmethod
    def constant(self, array: np.ndarray) -> Any:
        """An upload while a graph is captured: it is done now and is no part of the graph."""

    @abstractmethod
    def write(self, array: Any, values: np.ndarray) -> None:
        """Puts the host's numbers into the array's own memory."""

    @abstractmethod
    def to_host(self, array: Any) -> np.ndarray: ...

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def release(self) -> None:
        """Gives memory that no array uses back to the GPU."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes there are."""

    @abstractmethod
    def capture(self) -> AbstractContextManager[Any]:
        """What is launched within it is recorded instead, into an object whose launch() does it all at once."""

    @abstractmethod
    def arena(self) -> Any:
        """Memory that arrays made `with` it lie in, and no others: .size in bytes; .owns(array)."""


class CupyDriver(Driver):
    """GPU `index` by CuPy, with one stream for all work and one for copies to the GPU.  Raises DeviceError."""

    def __init__(self, index: int = 0):
        cupy = opened(index)
        self.index, self.device = index, cupy.cuda.Device(index)
        with self.device:
            attributes = self.device.attributes
            super().__init__(
                cupy, int(self.device.compute_capability), attributes["MultiProcessorCount"],
                attributes["MaxSharedMemoryPerBlockOptin"],
            )  # fmt: skip
            self.gpu = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
            self.stream, self.copies = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
        self._staging: list[Any] = []

    def _compile(self, file: str, name: str, constants: dict[str, Constant]) -> Kernel:
        return CupyKernel(_module(self.xp, self.index, whole(file, self.arch, constants)).get_function(name))

    def gemm(self, *args: Any, **named: Any) -> None:
        cublas.gemm(self.device.cublas_handle, *args, **named)

    def address(self, array: Any) -> int:
        return array.data.ptr

    @contextmanager
    def current(self) -> Iterator[None]:
        with self.device, self.stream:
            yield

    def upload(self, array: np.ndarray) -> Any:
        """From the host's memory, a mapped file's too: through two page-locked buffers in turn, so that one is filled
        while the other travels. Work that comes later on this device waits for it; the caller does not wait for the
        last two pieces."""
        cupy = self.xp
        with self.device, self.stream:
            if array.nbytes < DIRECT:
                return cupy.asarray(array)
            array = np.ascontiguousarray(array)
            out = cupy.empty(array.shape, array.dtype)
            began = cupy.cuda.Event()
            began.record(self.stream)  # memory that `out` took over may still be in use by what came before
            self.copies.wait_event(began)
            source, target = array.reshape(-1).view(np.uint8), out.reshape(-1).view(np.uint8)
            for at in range(0, source.size, CHUNK):
                piece = source[at : at + CHUNK]
                buffer, sent = self._buffer(at // CHUNK % 2)
                sent.synchronize()
                buffer[: piece.size] = piece
                target[at : at + piece.size].set(buffer[: piece.size], stream=self.copies)
                sent.record(self.copies)
            self.stream.wait_event(sent)
        return out

    def _buffer(self, which: int) -> tuple[np.ndarray, Any]:
        """A page-locked buffer, and the event of its latest copy."""
        while len(self._staging) < 2:
            memory = self.xp.cuda.alloc_pinned_memory(CHUNK)
            self._staging.append((np.frombuffer(memory, np.uint8, CHUNK), self.xp.cuda.Event(disable_timing=True)))
        return self._staging[which]

    def constant(self, array: np.ndarray) -> Any:
        """On the other stream, and in memory that is not the capture's."""
        with self.device, self.copies, self.xp.cuda.using_allocator(self.xp.get_default_memory_pool().malloc):
            out = self.xp.empty(array.shape, array.dtype)
            out.set(np.ascontiguousarray(array), stream=self.copies)
            self.copies.synchronize()
        return out

    def write(self, array: Any, values: np.ndarray) -> None:
        with self.device:
            array.set(np.ascontiguousarray(values, array.dtype), stream=self.stream)

    def to_host(self, array: Any) -> np.ndarray:
        with self.device:
            return self.xp.asnumpy(array, stream=self.stream)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def release(self) -> None:
        with self.device:
            self._staging.clear()
            self.xp.get_default_memory_pool().free_all_blocks()
            self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def limit(self, size: int) -> None:
        """No more than so many bytes of this GPU from now on; 0 for all of it."""
        with self.device:
            self.xp.get_default_memory_pool().set_limit(size=size)

    def memory(self) -> tuple[int, int]:
        with self.device:
            return self.xp.cuda.runtime.memGetInfo()

    @contextmanager
    def capture(self) -> Iterator[CupyGraph]:
        """Within it nothing may wait for the GPU. Relaxed, so that memory may be taken and other streams be used."""
        graph = CupyGraph(self)
        with self.current():
            self.stream.begin_capture(self.xp.cuda.runtime.streamCaptureModeRelaxed)
            self.capturing = True
            try:
                yield graph
            except BaseException:
                with suppress(Exception):  # what was captured is void, which ending it may complain of
                    self.stream.end_capture()
                raise
            finally:
                self.capturing = False
            graph.made = self.stream.end_capture()

    def arena(self) -> CupyArena:
        return CupyArena(self.xp)


class CupyArena:
    """A pool of its own: whatever others ask for, addresses in it stay what they are as long as it is."""

    def __init__(self, cupy: Any):
        self.cupy, self.pool = cupy, cupy.cuda.MemoryPool()
        self._addresses: set[int] = set()
        self._using: Any = None

    def _take(self, size: int) -> Any:
        memory = self.pool.malloc(size)
        self._addresses.add(memory.mem.ptr)
        return memory

    def __enter__(self) -> None:
        self._using = self.cupy.cuda.using_allocator(self._take)
        self._using.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._using.__exit__(*error)

    @property
    def size(self) -> int:
        return self.pool.total_bytes()

    def owns(self, array: Any) -> bool:
        return array.data.mem.ptr in self._addresses


class CupyGraph:
    def __init__(self, driver: CupyDriver):
        self.driver, self.made = driver, None

    def launch(self) -> None:
        if self.made is None:
            raise DeviceError("a CUDA graph was launched before its capture ended")
        with self.driver.current():
            self.made.launch(self.driver.stream)


class CupyKernel:
    def __init__(self, function: Any):
        self.function, self.most = function, STATIC_SHARED

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, shared: int = 0) -> None:
        if shared > self.most:
            self.function.max_dynamic_shared_size_bytes = self.most = shared
        self.function(grid, block, tuple([NULL if a is None else a for a in args]), shared_mem=shared)


@functools.cache
def _module(cupy: Any, index: int, text: str) -> Any:
    return cupy.RawModule(code=text, options=OPTIONS)
