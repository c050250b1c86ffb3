"""NVRTC from its wheel, without CuPy and without a driver: a text, compiled to machine code for an architecture."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple


@functools.cache
def library() -> Any:
    """NVRTC of the wheel nvidia-cuda-nvrtc (12 or 13), or of the system; None if there is none."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in found.submodule_search_locations or []] if found else []
    names = [str(p) for f in folders for p in sorted(f.glob("*/lib/libnvrtc.so.1[0-9]"))]
    if system := ctypes.util.find_library("nvrtc"):
        names.append(system)
    return ctypes.CDLL(names[0]) if names else None


@functools.cache
def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


class Compiled(NamedTuple):
    log: str
    size: int  # of the machine code; 0 if there is none
    registers: int
    spilled: int  # bytes that went to memory for want of registers


def compiled(text: str, arch: int) -> Compiled:
    lib, program = library(), ctypes.c_void_p()
    given = (b"-std=c++17", b"-ftz=true", f"-arch=sm_{arch}".encode(), b"--ptxas-options=-v")
    assert lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    try:
        wrong = lib.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        size = ctypes.c_size_t()
        lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(max(size.value, 1))
        lib.nvrtcGetProgramLog(program, log)
        size.value = 0
        if not wrong:
            lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode(errors="replace")
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)), default=0)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return Compiled(said, size.value, registers, spilled)
