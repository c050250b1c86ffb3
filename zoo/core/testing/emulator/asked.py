"""Which kernels were asked for, with which constants: what has to compile for real GPUs too (tests/core/cuda/
test_nvrtc.py).

Kept for this process, and added to the file that ZOO_CUDA_ASKED names, a line of JSON for each.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from zoo.core.backends.cuda.source import Constant


class Asked(NamedTuple):
    file: str
    name: str
    arch: int
    constants: tuple[tuple[str, Constant], ...]


ASKED: dict[Asked, None] = {}


def note(file: str, name: str, arch: int, constants: dict[str, Constant]) -> None:
    asked = Asked(file, name, arch, tuple(constants.items()))
    if asked in ASKED:
        return
    ASKED[asked] = None
    if path := os.environ.get("ZOO_CUDA_ASKED"):
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps([file, name, arch, constants]) + "\n")


def read(path: str) -> list[Asked]:
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return list(
        dict.fromkeys(Asked(file, name, arch, tuple(constants.items())) for file, name, arch, constants in rows)
    )
