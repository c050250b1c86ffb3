"""Attention's native kernels against the op's own body in float64, with every instruction set that this machine has.

Inputs lie between NaN in memory and results between guards, so that who reads or writes too far is seen.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import zoo
from zoo.core.backends.numpy import NumpyBackend
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()
# Rounding of q, k, v and the result (u = 2^-8, 2^-11) is the reference's too, except the last; float32: scores below 10
# in size are wrong by a few u of that, weights by as much relative to themselves, and values are below 5.
BOUND = {"float32": 5e-6, "bfloat16": 5 * 2.0**-8, "float16": 5 * 2.0**-11}


def normal(rng, *shape, dtype="float32"):
    """Normal numbers with NaN on both sides in memory."""
    memory = np.full(math.prod(shape) + 34, np.nan, np.float32)
    memory[17:-17] = rng.normal(size=math.prod(shape))
    return memory.astype(zoo.dtype(dtype))[17:-17].reshape(shape)


def qkv(rng, B, L, S, H, Hkv, D, Dv=None, dtype="float32"):
    shapes = (B, L, H, D), (B, S, Hkv, D), (B, S, Hkv, Dv or D)
    return [normal(rng, *shape, dtype=dtype) for shape in shapes]


def attention(backend, q, k, v, bias=None, causal=False, scale=None):
    return backend.bind(TABLE["attention"], (q, k, v, bias), {"causal": causal, "scale": scale})


def in_float64(q, k, v, bias=None, **settings):
    args = [None if x is None else np.asarray(x, np.float64) for x in (q, k, v, bias)]
    return attention(REFERENCE, *args, **settings)


def check(cpu, q, k, v, bias=None, **settings):
    before = stats().get("cpu.attention", 0)
    found = attention(cpu, q, k, v, bias, **settings)
    assert stats()["cpu.attention"] == before + 1
    expected = in_float64(q, k, v, bias, **settings)
    assert found.dtype == q.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    error = np.abs(found.astype(np.float64) - expected)
    assert not (error > BOUND[q.dtype.name]).any(), f"{np.nanmax(error):.3g}"
    return found


# one key, one tile, tiles and tails, one part of keys and several; few queries (decoding) and many
SIZES = [(1, 1), (1, 19), (2, 300), (3, 5), (15, 33), (30, 70), (70, 1030), (9, 513)]


@pytest.mark.parametrize("L, S", SIZES)
@pytest.mark.parametrize(
    "H, Hkv, D, Dv", [(2, 2, 64, 64), (6, 2, 40, 40), (5, 1, 33, 7), (2, 1, 1, 130), (3, 3, 80, 80)]
)
def test_shapes(cpu, rng, L, S, H, Hkv, D, Dv):
    q, k, v = qkv(rng, 2, L, S, H, Hkv, D, Dv)
    for causal in (False, True):
        check(cpu, q, k, v, causal=causal)


@pytest.mark.parametrize("D", [32, 96, 128, 160, 256])
@pytest.mark.parametrize("L", [1, 40])
def test_head_sizes_of_published_models(cpu, rng, D, L):
    check(cpu, *qkv(rng, 1, L, 90, 4, 2, D), causal=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("L", [1, 3, 60])
def test_half_precision(cpu, rng, L, dtype):
    q, k, v = qkv(rng, 2, L, 300, 8, 2, 40, dtype=dtype)
    found = check(cpu, q, k, v, causal=True)
    # the same numbers in float32 give the same sums, rounded once; pairs of bfloat16 have rounded weights
    wide = attention(cpu, *(x.astype(np.float32) for x in (q, k, v)), causal=True)
    if not (dtype == "bfloat16" and cpu.pairs and L > 1):
        np.testing.assert_array_equal(found, wide.astype(q.dtype))
    check(cpu, q.astype(np.float32), k, v)  # a cache in half precision
    check(cpu, q, k.astype(np.float32), v)


@pytest.mark.parametrize("L", [1, 5, 40])
def test_bias_of_every_broadcast_shape(cpu, rng, L):
    q, k, v = qkv(rng, 2, L, 37, 4, 2, 16)
    for shape in [(2, 4, L, 37), (1, 1, L, 37), (2, 1, 1, 37), (4, 1, 37), (4, L, 1), (37,), (1,), ()]:
        bias = normal(rng, *shape)
        check(cpu, q, k, v, bias)
        check(cpu, q, k, v, bias.astype(zoo.bfloat16), causal=True)
    check(cpu, q, k, v, normal(rng, 2, 4, 37, L).swapaxes(2, 3))
    check(cpu, q, k, v, normal(rng, 2, 4, L, 74)[..., ::-2], causal=True)


@pytest.mark.parametrize("L", [1, 6, 50])
def test_masks_and_queries_that_see_nothing(cpu, rng, L):
    q, k, v = qkv(rng, 2, L, 600, 4, 2, 24)
    bias = np.where(rng.random((2, 1, L, 600)) < 0.4, -np.inf, 0).astype(np.float32)
    bias[1, :, -1] = -np.inf
    bias[0, ..., :520] = -np.inf  # the first parts of the keys are hidden
    for causal in (False, True):
        found = check(cpu, q, k, v, bias, causal=causal)
        assert (found[1, -1] == 0).all()


@pytest.mark.parametrize("L, S", [(50, 3), (6, 2), (700, 600), (20, 13)])
def test_causal_with_more_queries_than_keys(cpu, rng, L, S):
    found = check(cpu, *qkv(rng, 1, L, S, 2, 1, 20), causal=True)
    assert (found[:, : L - S] == 0).all()


@pytest.mark.parametrize("L", [1, 2, 33])
def test_views_are_read_in_place(cpu, rng, L):
    cache = [normal(rng, 2, 200, 2, 40) for _ in range(2)]  # (B, capacity, H_kv, D)
    q = normal(rng, 2, L, 4, 40)
    check(cpu, q, *(c[:, :77] for c in cache), causal=True)
    check(cpu, q, *(c[:, 150:20:-1] for c in cache))
    fused = normal(rng, 2, L, 12, 40)  # q, k and v of one projection
    check(cpu, fused[:, :, :4], fused[:, :, 4:8], fused[:, :, 8:], causal=True)
    heads_first = [normal(rng, 2, 2, 90, 40).transpose(0, 2, 1, 3) for _ in range(2)]
    check(cpu, q, *heads_first)
    check(cpu, q, *(np.broadcast_to(c[:1, :50, :1], (2, 50, 4, 40)) for c in cache))
    check(cpu, q[..., ::2], *(c[..., 39::-2] for c in cache))  # numbers of a head apart: copied
    raw = np.zeros(2 * 9 * 4 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(2, 9, 4, 8)
    raw[:] = rng.normal(size=raw.shape)
    assert not raw.flags.aligned
    check(cpu, raw, raw, raw)


@pytest.mark.parametrize("L, D, Dv", [(1, 40, 40), (3, 7, 5), (40, 40, 40), (20, 7, 5), (30, 64, 33)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_is_written_outside_the_result(cpu, rng, L, D, Dv, dtype):
    q, k, v = qkv(rng, 2, L, 50, 4, 2, D, Dv, dtype=dtype)
    code, bits = (0, np.float32) if dtype == "float32" else (2, np.uint16)
    size = 2 * L * 4 * Dv
    memory = np.full(size + 66, 77, bits)
    out = memory[33:-33].reshape(2, L, 4, Dv)
    native.attention(q.view(bits), k.view(bits), v.view(bits), out, None, True, 0.3, code, code)
    assert (memory[:33] == 77).all() and (memory[-33:] == 77).all()
    expected = in_float64(q, k, v, causal=True, scale=0.3)
    assert np.abs(out.view(q.dtype).astype(np.float64) - expected).max() <= BOUND[dtype]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("L", [1, 4, 40])
def test_nan_and_infinity_come_out_where_the_body_has_them(cpu, rng, value, L):
    for causal in (False, True):
        for place in range(3):
            args = qkv(rng, 1, L, 600, 2, 1, 20)
            args[place][0, -1 if place else L // 2, 0, 3] = value
            with np.errstate(all="ignore"):
                expected = attention(REFERENCE, *args, causal=causal)
            found = attention(cpu, *args, causal=causal)
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, expected))
            assert np.abs(found[finite] - expected[finite]).max(initial=0) <= BOUND["float32"]
    bias = np.zeros((1, 1, L, 600), np.float32)
    bias[..., 300] = value
    q, k, v = qkv(rng, 1, L, 600, 2, 1, 20)
    np.testing.assert_array_equal(
        np.isnan(attention(cpu, q, k, v, bias)), np.isnan(attention(REFERENCE, q, k, v, bias))
    )


@pytest.mark.parametrize("L", [1, 40])
def test_scores_far_apart_neither_overflow_nor_vanish(cpu, rng, L):
    q, k, v = qkv(rng, 1, L, 700, 2, 2, 16)
    found = attention(cpu, 300 * q, k, v)  # scores of a thousand: nearly one key alone
    expected = in_float64(300 * q, k, v)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 2e-3  # scores are wrong by u times their size
    equal = attention(cpu, 0 * q, k, np.ones_like(v))
    np.testing.assert_allclose(equal, 1, rtol=1e-6)


def gradients(backend, g, q, k, v, bias=None, causal=False, scale=None):
    return backend.bind(TABLE["attention_grad"], (g, q, k, v, bias), {"causal": causal, "scale": scale})


@pytest.mark.parametrize("L, S", [(1, 1), (3, 40), (70, 70), (130, 600), (40, 9)])
@pytest.mark.parametrize("H, Hkv, D, Dv", [(2, 2, 64, 64), (6, 2, 40, 24), (3, 1, 33, 7)])
def test_gradients(cpu, rng, L, S, H, Hkv, D, Dv):
    q, k, v = qkv(rng, 2, L, S, H, Hkv, D, Dv)
    g = normal(rng, 2, L, H, Dv)
    for causal, masked in ((False, False), (True, False), (False, True), (True, True)):
        bias = None
        if masked:
            bias = np.where(rng.random((2, 1, L, S)) < 0.3, -np.inf, 0.5).astype(np.float32)
            bias[0, :, 0] = -np.inf
        before = stats().get("cpu.attention_grad", 0)
        found = gradients(cpu, g, q, k, v, bias, causal=causal)
        assert stats()["cpu.attention_grad"] == before + 1
        wide = [None if x is None else x.astype(np.float64) for x in (g, q, k, v, bias)]
        for got, want in zip(found, gradients(REFERENCE, *wide, causal=causal), strict=True):
            assert got.dtype == np.float32
            # sums of up to 600 terms of size 10, each off by a few u: 1e-6 of the largest gradient
            np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * (1 + np.abs(want).max()))


def test_gradients_of_views_in_half_precision_and_with_other_scales(cpu, rng):
    fused = normal(rng, 2, 50, 12, 40)
    g = normal(rng, 2, 50, 4, 80)[..., ::2]
    q, k, v = fused[:, :, :4], fused[:, :, 4:8], fused[:, :, 8:]
    for dtype in ("float32", "bfloat16", "float16"):
        args = [x.astype(zoo.dtype(dtype)) for x in (g, q, k, v)] if dtype != "float32" else [g, q, k, v]
        found = gradients(cpu, *args, causal=True, scale=0.3)
        wanted = gradients(REFERENCE, *(x.astype(np.float64) for x in args), causal=True, scale=0.3)
        for got, want in zip(found, wanted, strict=True):
            assert got.dtype == args[0].dtype
            size = np.abs(want).max()
            np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=BOUND[dtype] * (1 + size))


def test_the_number_of_threads_changes_no_bit(cpu, rng, restore_threads):
    cases = [(qkv(rng, *s), causal) for s in [(2, 1, 900, 8, 2, 40), (1, 150, 600, 3, 1, 24), (3, 20, 20, 4, 4, 16),
                                              (1, 5, 700, 2, 2, 64)] for causal in (False, True)]  # fmt: skip
    results = []
    for threads in (1, 2, 5):
        native.set_threads(threads)
        results.append([attention(cpu, *args, causal=causal) for args, causal in cases])
        for (q, k, v), causal in cases:
            results[-1] += gradients(cpu, q[..., : v.shape[3]], q, k, v, causal=causal)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_memory_does_not_grow_with_the_scores(rng):
    """8,192 queries and keys have 268 MB of scores for one head. What Python sees is traced; working memory of the
    kernels (K and V once) is theirs."""
    resource = pytest.importorskip("resource", reason="this system does not count memory so")
    q, k, v = qkv(rng, 1, 8192, 8192, 1, 1, 8)
    attention(CpuBackend(), q[:, :4], k, v)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attention(CpuBackend(), q, k, v, causal=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB; bytes on macOS
    assert grown < 64 * 1024 * (1024 if sys.platform == "darwin" else 1)


def test_what_the_kernel_does_not_do_is_left_to_the_body(rng):
    cpu = CpuBackend()
    before = stats().get("cpu.attention", 0)
    q, k, v = qkv(rng, 1, 3, 5, 2, 1, 4)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    np.testing.assert_array_equal(attention(cpu, *wide), attention(REFERENCE, *wide))
    assert attention(cpu, q[:, :0], k, v).shape == (1, 0, 2, 4)
    assert (attention(cpu, q, k[:, :0], v[:, :0]) == 0).all()
    assert attention(cpu, q, k, v[..., :0]).shape == (1, 3, 2, 0)
    assert stats().get("cpu.attention", 0) == before


def test_wrong_arguments_are_refused_before_any_memory_is_touched(rng):
    q, k, v = qkv(rng, 1, 3, 5, 4, 2, 8)
    out = np.zeros((1, 3, 4, 8), np.float32)
    for bad in [
        (q, k, v, out[:, :2]),  # size of the result
        (q, k, v, np.zeros((1, 4, 3, 8), "f").swapaxes(1, 2)),  # not contiguous
        (q, k[..., :7], v, out),
        (q, k[:, :4], v, out),
        (q[:, :, :3], k, v, out[:, :, :3].copy()),  # heads
        (q[..., ::2], k[..., ::2], v, out),  # numbers of a head apart
        (q, k, v, out, np.zeros((1, 1, 3, 5), "f")),  # bias not broadcast
        (q, k, v, out, None, False, 1.0, 0, 1),  # float32 said to be bfloat16
        (q, k, v, out, None, False, 1.0, 0, 3),
        (q, k[:, :0], v[:, :0], out),
    ]:
        with pytest.raises(ValueError):
            native.attention(*bad)
    dq, dk = np.zeros_like(q), np.zeros_like(k)
    native.attention_gradient(q, q, k, v, dq, dk, dk.copy())
    for bad in [
        (q[:, :2], q, k, v, dq, dk, dk.copy()),
        (q, q, k, v, dk, dk, dk.copy()),
        (q, q, k, v, dq, dk, dk[..., :3]),
    ]:
        with pytest.raises(ValueError):
            native.attention_gradient(*bad)
