"""Arrays that are views of mapped files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def file_of(array: Any) -> mmap.mmap | None:
    """The mapped file that this array is a view of, if it is one."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None


def let_go(array: Any) -> None:
    """The pages of a mapped file behind this array need not stay in memory: it was read, and what was made of it is
    kept instead. The array stays valid: whoever reads it again reads the file again. Nothing for any other array."""
    base = file_of(array)
    if base is None or not hasattr(mmap, "MADV_DONTNEED") or not array.nbytes:
        return
    first, last = np.lib.array_utils.byte_bounds(array)
    offset = first - np.frombuffer(base, np.uint8).ctypes.data
    forget(base, offset, last - first)


def forget(file: mmap.mmap, offset: int, nbytes: int) -> None:
    """Lets go of the pages that lie wholly in a part of a mapped file."""
    if hasattr(mmap, "MADV_DONTNEED") and nbytes:
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (offset + nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            file.madvise(mmap.MADV_DONTNEED, start, length)
