"""Counter-based random bits: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A block of four 32-bit words is a pure function of (seed, block number), so any backend, any thread and any resumed run
makes the same numbers without sharing state. `xp` is numpy or cupy.
"""

from __future__ import annotations

from typing import Any

WORDS = 4  # 32-bit words in a block
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in units of 2^-32
MASK = 0xFFFFFFFF


def blocks_for(n: int) -> int:
    return -(-n // WORDS)


def bits(xp: Any, seed: int, offset: int, n: int) -> Any:
    """n uint32 words of stream `seed`, starting at block `offset`."""
    block = xp.arange(blocks_for(n), dtype=xp.uint64) + xp.uint64(offset)
    low, high = block & xp.uint64(MASK), block >> xp.uint64(32)
    zero = xp.zeros_like(block)
    words = philox4x32(xp, (low, high, zero, zero), (seed & MASK, (seed >> 32) & MASK))
    return xp.stack(words, axis=-1).reshape(-1)[:n].astype(xp.uint32)


def philox4x32(xp: Any, counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """The cipher: four counter words (uint64 arrays that hold 32 bits) and two key words -> four random words."""
    u64 = xp.uint64
    mask, shift = u64(MASK), u64(32)
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(ROUNDS):
        p0, p1 = c0 * u64(MULTIPLIERS[0]), c2 * u64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ u64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ u64(k1), p0 & mask
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniform(xp: Any, seed: int, offset: int, n: int) -> Any:
    """n float32 values in [0, 1): the top 24 bits of each word, so that every value is exact."""
    return (bits(xp, seed, offset, n) >> xp.uint32(8)).astype(xp.float32) * xp.float32(2.0**-24)


def normal(xp: Any, seed: int, offset: int, n: int) -> Any:
    """n float32 values of the standard normal distribution (Box & Muller 1958), worked out in float64 and rounded
    once, so that backends with slightly different logarithms agree."""
    words = bits(xp, seed, offset, blocks_for(n) * WORDS).astype(xp.float64).reshape(-1, 2)
    radius = xp.sqrt(-2.0 * xp.log((words[:, 0] + 1.0) * 2.0**-32))
    angle = words[:, 1] * (2.0 * xp.pi * 2.0**-32)
    pairs = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:n].astype(xp.float32)
