"""The text of a kernel, whole: its file in cu/ with what that includes, and its constants before it.

CuPy keeps compiled kernels by a hash of their text and does not look into included files: so there are none.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from zoo.core.dtype import ALL, bfloat16, bool_, float16, float32, float64

FOLDER = Path(__file__).parent / "cu"
INCLUDE = re.compile(r'^#include "([\w.]+)"\s*$', re.MULTILINE)
Constant = int | float | str

_CTYPES = {float16: "half", bfloat16: "bfloat16", float32: "float", float64: "double", bool_: "bool"}


def ctype(dtype: np.dtype) -> str:
    """What a kernel calls values of this dtype: "half", "int8_t"."""
    if dtype not in ALL:
        raise ValueError(f"no kernel knows {dtype.name}")
    return _CTYPES.get(dtype) or f"{dtype.name}_t"


@functools.cache
def expanded(file: str, folders: tuple[Path, ...] = (FOLDER,)) -> str:
    """The text of `file` with each #include "name" replaced by that file's text, the first time it comes; the folders
    are searched in their order. Lines keep their file's name and number."""
    seen: set[str] = set()

    def read(name: str) -> str:
        path = next(path for folder in folders if (path := folder / name).exists())
        text, parts, at = path.read_text(encoding="utf-8"), [f'#line 1 "{name}"\n'], 0
        for found in INCLUDE.finditer(text):
            parts.append(text[at : found.start()])
            if found[1] not in seen:
                seen.add(found[1])
                parts.append(read(found[1]))
            line = text.count("\n", 0, found.end()) + 1
            parts.append(f'#line {line} "{name}"')
            at = found.end()
        return "".join((*parts, text[at:]))

    return read(file)


def whole(file: str, arch: int, constants: dict[str, Constant]) -> str:
    """What NVRTC is given."""
    return f"#define ARCH {arch}\n{defined(constants)}{expanded(file)}"


def defined(constants: dict[str, Constant]) -> str:
    """Constants as #define lines. Floats are float32, and exact."""
    return "".join(f"#define {name} {_literal(value)}\n" for name, value in constants.items())


def _literal(value: Constant) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"a constant is an int, a float or a str, not {value!r}")
    if isinstance(value, float):
        return f"{value.hex()}f"
    return f"({value})" if isinstance(value, int) and value < 0 else str(value)
