"""Attention and its gradients (cu/attention*.cu). Shapes, dtypes and the architecture decide which kernel runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cuda.kernels.elementwise import contiguous
from zoo.core.backends.cuda.kernels.gemm import batched, on_tensor_cores
from zoo.core.backends.cuda.source import ctype
from zoo.core.dtype import bfloat16, float16, float32, int32
from zoo.core.stats import count

STORED = frozenset((float32, float16, bfloat16))
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 160, 256)  # heads are compiled for: the next one that holds D and Dv
FEW = 16  # rows (queries times heads of a group) up to which keys are split among blocks
SHARE = 64  # keys that are worth a block of their own
BLOCKS = 4  # for each multiprocessor, so that enough of the memory is asked for


def attention(b: Any, q: Any, k: Any, v: Any, bias: Any, lengths: Any = None, *, causal: bool,
              scale: float | None) -> Any:  # fmt: skip
    width = _width(q, v)
    if q.dtype not in STORED or 0 in q.shape or 0 in k.shape or 0 in v.shape:
        return NotImplemented
    if width is None:
        plain = bias is None and lengths is None and not causal and q.shape[2] == k.shape[2]
        narrow = q.dtype == k.dtype == v.dtype and on_tensor_cores(b, q.dtype)
        return _wide(b, q, k, v, _scale(scale, q.shape[3])) if plain and narrow else NotImplemented
    if k.dtype != v.dtype or k.dtype not in STORED:
        k, v = b.ops.cast(k, dtype=float32), b.ops.cast(v, dtype=float32)
    (B, L, H, D), (S, heads), Dv = q.shape, k.shape[1:3], v.shape[3]
    y = b.xp.empty((B, L, H, Dv), q.dtype)
    if lengths is not None:
        lengths = contiguous(b, b.ops.cast(lengths, dtype=int32))
    args = (*_heads(b, q), *_heads(b, k), *_heads(b, v), *_bias(b, bias, (B, H, L, S)), lengths, y, *_sizes(q, k, v),
            np.int32(causal), _scale(scale, D))  # fmt: skip
    rows = L * H // heads
    if rows <= FEW:
        _decode(b, args, y, k.dtype, width, rows, B * heads, S)
    elif q.dtype == k.dtype and on_tensor_cores(b, q.dtype):
        keys = mma_keys(width, b.driver.arch)
        kernel = b.driver.kernel("attention_mma.cu", "attention_mma", T=ctype(q.dtype), DIM=width, KEYS=keys)
        tiles = (64 if width > 160 else 0) + max(2 * keys, 0 if width > 160 else 64)
        kernel((_blocks(rows, 64) * heads * B,), (128,), *args, shared=tiles * (width + 8) * 2)
        count("cuda.attention_mma")
    else:
        tile = forward_tile(width)
        constants = {"TQ": ctype(q.dtype), "T": ctype(k.dtype), "DIM": width, "ROWS": tile[0], "KEYS": tile[1]}
        kernel = b.driver.kernel("attention.cu", "attention_tiles", **constants)
        shared = 4 * (sum(tile) * (width + 4) + tile[0] * (tile[1] + 4))
        kernel((_blocks(rows, tile[0]) * heads * B,), (256,), *args, shared=shared)
        count("cuda.attention_tiles")
    return y


def _decode(b: Any, args: tuple[Any, ...], y: Any, stored: Any, width: int, rows: int, key_heads: int, S: int) -> None:
    """Keys in equal parts, as many as keep the GPU busy; then, if there are several, their sums as one."""
    together = next(n for n in (1, 2, 4, 8) if n >= min(rows, 8))
    blocks = key_heads * _blocks(rows, together)
    parts = max(1, min(_blocks(S, SHARE), _blocks(BLOCKS * b.driver.multiprocessors, blocks)))
    constants = {"TQ": ctype(y.dtype), "T": ctype(stored), "DIM": width, "ROWS": together}
    Dv = y.shape[3]
    sums = b.xp.empty((key_heads * rows, parts, Dv + 2), float32) if parts > 1 else None
    kernel = b.driver.kernel("attention_decode.cu", "attention_decode", **constants)
    kernel((blocks * parts,), (128,), *args, sums, np.int32(parts))
    if sums is not None:
        L, H = y.shape[1:3]
        sizes = [np.int32(n) for n in (L, H, rows // L, Dv, parts)]
        b.driver.kernel("attention_decode.cu", "attention_join", **constants)((len(sums),), (64,), sums, y, *sizes)
    count("cuda.attention_decode")


def _wide(b: Any, q: Any, k: Any, v: Any, scale: np.float32) -> Any:
    """Heads too wide for the kernels, in half precision: two products on tensor cores, with the scores in float32
    between them, which the body would have in float32 all through."""
    (B, L, H, _), S, Dv = q.shape, k.shape[1], v.shape[3]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores, y = b.xp.empty((B, H, L, S), float32), b.xp.empty((B, H, L, Dv), q.dtype)
    batched(b, q, k.swapaxes(2, 3), scores, alpha=float(scale))
    batched(b, b.ops.cast(b.ops.softmax(scores, axis=-1), dtype=q.dtype), v, y)
    count("cuda.attention_wide")
    return contiguous(b, y.transpose(0, 2, 1, 3))


def attention_grad(b: Any, g: Any, q: Any, k: Any, v: Any, bias: Any, *, causal: bool,
                   scale: float | None) -> Any:  # fmt: skip
    width = _width(q, v)
    if width is None or any(x.dtype not in STORED or 0 in x.shape for x in (q, k, v)):
        return NotImplemented
    wanted = [x.dtype for x in (q, k, v)]
    stored = wanted[0] if len({x.dtype for x in (g, q, k, v)}) == 1 else float32
    constants: dict[str, int | str] = {"T": ctype(stored), "DIM": width}
    tile, shared = backward_tile(width)
    wide, mma_shared = backward_mma_tile(width)
    if on_tensor_cores(b, stored) and width <= 128 and max(mma_shared) <= b.driver.shared_limit:
        file, threads, rows_of, keys_of, name = "attention_grad_mma.cu", 128, 64, 64, "cuda.attention_grad_mma"
        constants["TILE"], (for_rows, for_keys) = wide, mma_shared
    elif shared <= b.driver.shared_limit:
        file, threads, (rows_of, keys_of), name = "attention_grad.cu", 256, tile, "cuda.attention_grad"
        constants |= {"ROWS": rows_of, "KEYS": keys_of}
        for_rows = for_keys = shared
    else:
        return NotImplemented
    g, q, k, v = (b.ops.cast(x, dtype=stored) for x in (g, q, k, v))
    (B, L, H, D), (S, heads) = q.shape, k.shape[1:3]
    rows = L * H // heads
    dq, dk, dv = (b.xp.empty(x.shape, stored) for x in (q, k, v))
    of_rows = b.xp.empty((B * heads, rows, 2), float32)
    arrays = (*_heads(b, g), *_heads(b, q), *_heads(b, k), *_heads(b, v), *_bias(b, bias, (B, H, L, S)))
    settings = (*_sizes(q, k, v), np.int32(causal), _scale(scale, D))
    kernel = b.driver.kernel(file, "attention_grad_rows", **constants)
    kernel((_blocks(rows, rows_of) * heads * B,), (threads,), *arrays, dq, of_rows, *settings, shared=for_rows)
    kernel = b.driver.kernel(file, "attention_grad_keys", **constants)
    kernel((_blocks(S, keys_of) * heads * B,), (threads,), *arrays, dk, dv, of_rows, *settings, shared=for_keys)
    count(name)
    return tuple(b.ops.cast(d, dtype=dtype) for d, dtype in zip((dq, dk, dv), wanted, strict=True))


# the tiles, whose arithmetic stands in the kernels' files


def forward_tile(width: int) -> tuple[int, int]:
    """Rows and keys of attention.cu."""
    return (64, 64) if width <= 64 else (64, 32) if width <= 128 else (32, 32) if width <= 160 else (32, 16)


def backward_tile(width: int) -> tuple[tuple[int, int], int]:
    """Rows and keys of attention_grad.cu, and the shared memory they take."""
    rows, keys = (32, 32) if width <= 64 else (32, 16) if width <= 128 else (16, 16)
    return (rows, keys), 4 * (2 * (rows + keys) * (width + 4) + 2 * keys * (rows + 4))


def backward_mma_tile(width: int) -> tuple[int, tuple[int, int]]:
    """TILE of attention_grad_mma.cu, and the shared memory that its kernels take."""
    tile = 64 if width <= 64 else 32
    return tile, (4 * tile * (width + 8) * 2, (128 + 4 * tile) * (width + 8) * 2)


def mma_keys(width: int, arch: int) -> int:
    return 64 if width <= 128 else 32 if width <= 160 or arch >= 80 else 16


def _width(q: Any, v: Any) -> int | None:
    return next((w for w in WIDTHS if w >= max(q.shape[3], v.shape[3])), None)


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _scale(scale: float | None, D: int) -> np.float32:
    return np.float32(1 / math.sqrt(D) if scale is None else scale)


def _heads(b: Any, x: Any) -> tuple[Any, ...]:
    """The array, read in place however its first three axes lie, and their strides in numbers."""
    size = x.dtype.itemsize
    if x.strides[3] != size:
        x = contiguous(b, x)
    return x, *(np.int64(s // size) for s in x.strides[:3])


def _bias(b: Any, bias: Any, scores: tuple[int, ...]) -> tuple[Any, ...]:
    """In float32, and its strides along the axes of the scores (B, H, L, S): 0 where it is the same."""
    if bias is None:
        return None, *(np.int64(0),) * 4
    bias = b.xp.broadcast_to(b.ops.cast(bias, dtype=float32), scores)
    return bias, *(np.int64(s // 4) for s in bias.strides)


def _sizes(q: Any, k: Any, v: Any) -> tuple[np.int32, ...]:
    """L, S, H, G, D, Dv."""
    (L, H, D), (S, heads) = q.shape[1:], k.shape[1:3]
    return tuple(np.int32(n) for n in (L, S, H, H // heads, D, v.shape[3]))


KERNELS: dict[str, Callable[..., Any]] = {"attention": attention, "attention_grad": attention_grad}
