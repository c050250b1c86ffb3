"""Kernels as shared libraries, compiled by g++ and kept by the hash of all that went into them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from zoo.core.backends.cuda.source import FOLDER, Constant, defined, expanded
from zoo.core.errors import DeviceError, ZooError

HERE = Path(__file__).parent
# no fused multiply-add and no strict aliasing (kernels read four bytes as a register); overflow wraps
FLAGS = ["-std=c++17", "-w", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fwrapv", "-fno-strict-aliasing",
         "-ffp-contract=off", "-fno-stack-protector", "-U_FORTIFY_SOURCE"]  # fmt: skip
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^\n]*?\)\s+)?(\w+)\s*\(')


class EmulationError(ZooError):
    """A kernel does what a GPU would not, or would punish."""


@functools.cache
def compiler() -> tuple[str, str]:
    """The C++ compiler, and what it says of itself."""
    path = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if path is None:
        raise DeviceError("the emulated GPU cannot be used", "there is no C++ compiler", "Install g++, or set CXX")
    return path, subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _folder() -> Path:
    from platformdirs import user_cache_path

    folder = user_cache_path("zoo-models", appauthor=False) / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _library(text: str, what: str, *flags: str) -> Path:
    """Compiled, under a name that only this text has; two processes may do so at once."""
    path, version = compiler()
    key = hashlib.sha256("\0".join((version, *FLAGS, *flags, text)).encode()).hexdigest()[:32]
    made = _folder() / f"{key}.so"
    if not made.exists():
        partial = made.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [path, *FLAGS, *flags, "-x", "c++", "-", "-o", str(partial)], input=text, capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise EmulationError(f"{what} does not compile", "\n".join(lines[:12]))
        partial.rename(made)
    return made


@functools.cache
def runtime() -> Any:
    """The scheduler; its names are seen by the kernels' libraries."""
    library = ctypes.CDLL(
        str(_library(expanded("runtime.cpp", (HERE,)), "the emulator", "-O2")), mode=ctypes.RTLD_GLOBAL
    )
    library.emulated_guarded.restype = ctypes.c_void_p
    library.emulated_guarded.argtypes = [ctypes.c_size_t]
    library.emulated_launch.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
        ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int,
    ]  # fmt: skip
    return library


@functools.cache
def host() -> str:
    return (HERE / "host.h").read_text(encoding="utf-8")


def compiled(
    file: str, name: str, arch: int, constants: dict[str, Constant], folders: tuple[Path, ...] = (FOLDER,)
) -> tuple[Any, str]:
    """The address at which the kernel is called, and its signature (see emulated_types in host.h)."""
    runtime()
    body = expanded(file, (HERE, *folders))
    text = f"{host()}#define ARCH {arch}\n{defined(constants)}{body}"
    names = [n for n in outermost(body) if n == name or n.isidentifier()]
    if name not in names:
        names.append(name)
    text += "\n" + "".join(f"EMULATED_KERNEL({n})\n" for n in names)
    made = ctypes.CDLL(str(_library(text, f"{file}: {name}", "-O1")))
    types = getattr(made, f"emulated_types_{name}")
    types.restype = ctypes.c_char_p
    return ctypes.cast(getattr(made, f"emulated_call_{name}"), ctypes.c_void_p), types().decode()


def outermost(text: str) -> list[str]:
    """The kernels of a text that no #if leaves out."""
    depth, found = 0, []
    for line in text.splitlines():
        word = line.lstrip()
        depth += word.startswith("#if")
        depth -= word.startswith("#endif")
        if not depth and (match := KERNEL.search(line)):
            found.append(match[1])
    return found
