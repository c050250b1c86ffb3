"""What CUDA and CuPy complain of, in three lines: what happened, why, what to do."""

from __future__ import annotations

from typing import Any

from zoo.core.errors import DeviceError

LEAST_ARCH = 75
INSTALL = 'pip install "zoo-models[cuda12]" (or cuda13, by the driver), or use --device cpu'


def opened(index: int) -> Any:
    """CuPy, with GPU `index` found to be there and of use.  Raises DeviceError."""
    what = f"device {named(index)!r} cannot be used"
    try:
        import cupy
    except ImportError as e:
        raise DeviceError(what, f"CuPy is not installed ({_first_line(e)})", INSTALL) from None
    runtime = cupy.cuda.runtime
    try:
        found = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as e:
        raise DeviceError(what, *_no_gpu(runtime, e)) from None
    if index >= found:
        raise DeviceError(
            what, f"this machine has {found} GPU{'s' * (found != 1)}, numbered from 0",
            "`nvidia-smi` lists them; CUDA_VISIBLE_DEVICES hides some",
        )  # fmt: skip
    arch = int(cupy.cuda.Device(index).compute_capability)
    if arch < LEAST_ARCH:
        raise DeviceError(
            what, f"its architecture is sm_{arch}; kernels are written for sm_{LEAST_ARCH} and later",
            "Use a GPU of 2018 or later (Turing), or --device cpu",
        )  # fmt: skip
    return cupy


def named(index: int) -> str:
    return "cuda" if index == 0 else f"cuda:{index}"


def _no_gpu(runtime: Any, e: Exception) -> tuple[str, str]:
    """Why there is none, and what to do. CUDA reports a driver that is missing as one that is too old, of version 0."""
    try:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception:
        driver = needed = None
    if driver == 0:
        return "there is no NVIDIA driver on this machine", "Install it (`nvidia-smi` then works), or use --device cpu"
    if driver and needed and driver // 1000 < needed // 1000:
        return (
            f"its driver knows CUDA {_version(driver)}; CuPy is built for CUDA {_version(needed)}",
            f"Update the driver, or install the CuPy for it: pip install cupy-cuda{driver // 1000}x",
        )
    return f"CUDA finds no GPU: {_first_line(e)}", "Check `nvidia-smi`, or use --device cpu"


def explained(e: Exception, name: str) -> Exception:
    """The error of CUDA or CuPy as a DeviceError, or `e` itself where it is another one. CuPy's classes are told by
    their names: this file is read where CuPy is not."""
    kind, said = type(e).__name__, str(e)
    if kind == "OutOfMemoryError":
        return DeviceError(
            f"the memory of {name!r} is full", said.splitlines()[0],
            "Use a smaller batch, size or dtype (bf16, int8), or stop what else uses the GPU (`nvidia-smi`)",
        )  # fmt: skip
    if "Failure finding" in said:  # a wheel that is not installed; said by cuda-pathfinder, by whatever class
        return DeviceError(f"device {name!r} cannot be used", said.splitlines()[0], INSTALL)
    if kind not in ("CUDARuntimeError", "CUDADriverError", "CompileException", "NVRTCError", "CUBLASError"):
        return e
    if "StreamCapture" in said:
        return DeviceError(
            "this step cannot be captured", f"an op in it waits for the GPU: {said.splitlines()[0]}",
            "ZOO_OFF=capture runs it as it is; please report the op",
        )  # fmt: skip
    if any(word in said for word in ("NoKernelImage", "NO_BINARY_FOR_GPU", "gpu-architecture", "UNSUPPORTED_PTX")):
        return DeviceError(
            f"device {name!r} cannot be used", f"CuPy cannot make kernels for this GPU: {said.splitlines()[0]}",
            "The GPU is newer than this CuPy: update it (pip install -U cupy-cuda13x, with a driver for CUDA 13)",
        )  # fmt: skip
    if kind in ("CompileException", "NVRTCError"):
        return DeviceError(f"a kernel does not compile for {name!r}", "\n".join(said.splitlines()[:8]),
                           "This is a fault of the zoo: please report it, with the GPU's name")  # fmt: skip
    return DeviceError(f"{name!r} failed", said.splitlines()[0], "CUDA is unusable in this process now: start again")


def _version(n: int) -> str:
    return f"{n // 1000}.{n % 1000 // 10}"


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
