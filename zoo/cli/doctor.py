"""`zoo doctor`: what this installation can use, and what it lacks."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from zoo import port as ports
from zoo.cli.console import columns, print_json, size
from zoo.cli.list import tree_size
from zoo.core.errors import DeviceError, ZooError
from zoo.core.stats import available_memory


def doctor(as_json: bool) -> None:
    """Prints versions, devices with the reason where one is missing, memory, weights directories and ports."""
    facts = [*_versions(), *_devices(), *_machine(), *_fits(), *_weights(), *_ports()]
    if as_json:
        print_json(dict(facts))
    else:
        print(columns(facts))


def _versions() -> list[tuple[str, str]]:
    import numpy

    import zoo

    return [
        ("zoo", f"{zoo.__version__} in {Path(zoo.__file__).parent}"),
        ("python", f"{platform.python_version()} in {sys.prefix}"),
        ("numpy", numpy.__version__),
        ("huggingface_hub", metadata.version("huggingface_hub")),
    ]


def _devices() -> list[tuple[str, str]]:
    from zoo.core.device import device

    found = [("default device", device().name)]
    for name in ("numpy", "cpu", "cuda"):
        try:
            found.append((name, ", ".join(["ready", *getattr(device(name), "details", ())])))
        except DeviceError as error:
            found.append((name, " ".join(part for part in ("not here:", error.why, error.fix) if part)))
    found.append(("cupy", _cupy()))
    found.append(("NVIDIA driver", _driver()))
    with contextlib.suppress(DeviceError):
        free, whole = device("cuda").driver.memory()
        found.append(("memory of the GPU", f"{size(whole)}, {size(free)} free"))
    return found


def _cupy() -> str:
    """CuPy's version, and that of the compiler of kernels, which comes in a wheel of its own."""
    if importlib.util.find_spec("cupy") is None:
        return "not installed (only the cuda device needs it: extras cuda12, cuda13)"
    try:
        import cupy

        version = cupy.__version__
    except ImportError as error:
        return f"does not load: {error}".splitlines()[0]
    try:
        return f"{version}, NVRTC {'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}"
    except Exception as error:  # the libraries' own classes, several
        return f"{version}, without NVRTC ({str(error).splitlines()[0]}): install the extra cuda12 or cuda13"


def _driver() -> str:
    """The CUDA version that the driver supports and the number of GPUs, asked of the driver itself."""
    library = ctypes.util.find_library("cuda") or ctypes.util.find_library("nvcuda")
    try:
        cuda = ctypes.CDLL(library or "libcuda.so.1")
    except OSError:
        return "not installed"
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "installed, but it finds no GPU"
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, {count.value} GPU(s)"


def _machine() -> list[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [("machine", f"{platform.system()} {platform.machine()}, {cores} cores")]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        memory = size(os.sysconf("SC_PHYS_PAGES") * page)
        free = f", {size(os.sysconf('SC_AVPHYS_PAGES') * page)} free" if "SC_AVPHYS_PAGES" in os.sysconf_names else ""
        facts.append(("memory", memory + free))
    return facts


def _fits() -> list[tuple[str, str]]:
    """How large a model the free memory holds, by how its weights are stored: a fifth is left for what it computes."""
    free = available_memory()
    if free is None:
        return []
    bits = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4.5}  # int4 has a scale of 16 bits for 32 weights
    largest = ", ".join(f"{0.8 * free * 8 / n / 1e9:.1f} in {kind}" for kind, n in bits.items())
    return [("what fits", f"billions of weights: {largest}")]


def _weights() -> list[tuple[str, str]]:
    from zoo.hub import refs

    home = refs.weights_dir()
    facts = [("token of the Hub", "found" if _has_token() else "none (only gated repositories need one)")]
    facts += [("weights go to", str(home) if home.is_dir() else f"{home} (made when needed)")]
    for number, directory in enumerate(refs.search_path(), 1):
        names = sorted(name for name, path in refs.available().items() if path.parent == directory)
        facts.append(
            (f"weights in ({number})", f"{directory}: {', '.join(names) or 'none'} ({size(tree_size(directory))})")
        )
    return facts


def _has_token() -> bool:
    import huggingface_hub

    return bool(huggingface_hub.get_token())


def _ports() -> list[tuple[str, str]]:
    facts = []
    for name in ports.names():
        try:
            facts.append((f"model {name}", ports.get(name).task))
        except ZooError as error:
            facts.append((f"model {name}", f"{error.what}: {error.why}"))
    return facts
