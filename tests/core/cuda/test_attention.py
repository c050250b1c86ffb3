"""Attention on the emulated GPU against the op's own body in float64: each kernel, its tails, views and masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

import zoo
from zoo.core.backends.cuda.kernels.attention import WIDTHS
from zoo.core.backends.numpy import NumpyBackend
from zoo.core.prims import TABLE
from zoo.core.stats import stats
from zoo.core.testing.emulator import CudaBackend, EmulatedDriver, emulated

REFERENCE = NumpyBackend()
# As on the cpu device (tests/core/test_attention_native.py): scores below 10 in size are wrong by a few u of that, and
# values are below 5. On tensor cores weights are rounded too: half a unit of values below 5, as the result is.
BOUND = {"float32": 5e-6, "bfloat16": 5 * 2.0**-8, "float16": 5 * 2.0**-11}
# what runs: counter, dtype, architecture
DECODE, TILES, MMA = "cuda.attention_decode", "cuda.attention_tiles", "cuda.attention_mma"
MANY = [(TILES, "float32", 90), (MMA, "float16", 90), (MMA, "bfloat16", 80), (MMA, "float16", 75),
        (TILES, "bfloat16", 75)]  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def normal(rng, *shape, dtype="float32"):
    """Normal numbers with NaN on both sides in memory."""
    memory = np.full(math.prod(shape) + 34, np.nan, np.float32)
    memory[17:-17] = rng.normal(size=math.prod(shape))
    return memory.astype(zoo.dtype(dtype))[17:-17].reshape(shape)


def qkv(rng, B, L, S, H, Hkv, D, Dv=None, dtype="float32"):
    shapes = (B, L, H, D), (B, S, Hkv, D), (B, S, Hkv, Dv or D)
    return [normal(rng, *shape, dtype=dtype) for shape in shapes]


def attention(backend, q, k, v, bias=None, lengths=None, causal=False, scale=None):
    return backend.bind(TABLE["attention"], (q, k, v, bias, lengths), {"causal": causal, "scale": scale})


def in_float64(q, k, v, bias=None, lengths=None, **settings):
    args = [None if x is None else np.asarray(x, np.float64) for x in (q, k, v, bias)]
    return attention(REFERENCE, *args, lengths, **settings)


def check(counter, arch, q, k, v, bias=None, lengths=None, **settings):
    before = stats().get(counter, 0)
    found = attention(emulated(arch), q, k, v, bias, lengths, **settings)
    assert stats().get(counter, 0) == before + 1, f"{counter} did not run"
    expected = in_float64(q, k, v, bias, lengths, **settings)
    assert found.dtype == q.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    error = np.abs(found.astype(np.float64) - expected)
    assert not (error > BOUND[q.dtype.name]).any(), f"{np.nanmax(error):.3g}"
    return found


@pytest.mark.parametrize("counter, dtype, arch", MANY)
@pytest.mark.parametrize("L, S", [(17, 1), (64, 64), (20, 65), (70, 133)])
def test_many_queries(rng, counter, dtype, arch, L, S):
    for H, Hkv, D, Dv in [(2, 2, 64, 64), (6, 2, 40, 40), (2, 1, 33, 7)]:
        q, k, v = qkv(rng, 1, L, S, H, Hkv, D, Dv, dtype)
        check(counter, arch, q, k, v, causal=L % 2 == 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("L, S", [(1, 1), (1, 19), (1, 1030), (3, 300), (2, 129)])
def test_few_queries(rng, dtype, L, S):
    """Rows of a group together, 1 to 16 of them; one part of the keys and several."""
    for H, Hkv, D in [(2, 2, 64), (8, 2, 40), (4, 1, 33), (5, 1, 80)]:
        check(DECODE, 90, *qkv(rng, 2, L, S, H, Hkv, D, dtype=dtype), causal=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("counter, dtype, arch", MANY[:4:3] + MANY[1:2])
def test_head_sizes(rng, width, counter, dtype, arch):
    check(counter, arch, *qkv(rng, 1, 20, 70, 2, 2, width, dtype=dtype), causal=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_head_sizes_of_few_queries(rng, width, dtype):
    check(DECODE, 90, *qkv(rng, 1, 1, 90, 3, 1, width, dtype=dtype))


@pytest.mark.parametrize("L, counter, dtype", [(1, DECODE, "float32"), (40, TILES, "float32"), (40, MMA, "float16")])
def test_bias_of_every_broadcast_shape(rng, L, counter, dtype):
    q, k, v = qkv(rng, 2, L, 37, 4, 2, 16, dtype=dtype)
    for shape in [(2, 4, L, 37), (1, 1, L, 37), (2, 1, 1, 37), (4, 1, 37), (4, L, 1), (37,), (1,), ()]:
        bias = normal(rng, *shape)
        check(counter, 90, q, k, v, bias)
        check(counter, 90, q, k, v, bias.astype(zoo.bfloat16), causal=True)
    check(counter, 90, q, k, v, normal(rng, 2, 4, 37, L).swapaxes(2, 3))
    check(counter, 90, q, k, v, normal(rng, 2, 4, L, 74)[..., ::-2], causal=True)


@pytest.mark.parametrize("L, counter, dtype", [(1, DECODE, "float32"), (6, DECODE, "float16"), (50, TILES, "float32"),
                                               (50, MMA, "bfloat16")])  # fmt: skip
def test_masks_and_queries_that_see_nothing(rng, L, counter, dtype):
    q, k, v = qkv(rng, 2, L, 300, 4, 2, 24, dtype=dtype)
    bias = np.where(rng.random((2, 1, L, 300)) < 0.4, -np.inf, 0).astype(np.float32)
    bias[1, :, -1] = -np.inf
    bias[0, ..., :220] = -np.inf  # the first parts and tiles of the keys are hidden
    for causal in (False, True):
        found = check(counter, 90, q, k, v, bias, causal=causal)
        assert (found[1, -1] == 0).all()


@pytest.mark.parametrize("L, S, counter, dtype", [(6, 2, DECODE, "float32"), (50, 3, TILES, "float32"),
                                                  (150, 70, MMA, "float16")])  # fmt: skip
def test_causal_with_more_queries_than_keys(rng, L, S, counter, dtype):
    found = check(counter, 90, *qkv(rng, 1, L, S, 2, 1, 20, dtype=dtype), causal=True)
    assert (found[:, : L - S] == 0).all()


@pytest.mark.parametrize("L, counter, dtype", [(1, DECODE, "float32"), (2, DECODE, "bfloat16"), (33, TILES, "float32"),
                                               (33, MMA, "float16")])  # fmt: skip
def test_views_are_read_in_place(rng, monkeypatch, L, counter, dtype):
    cache = [normal(rng, 2, 200, 2, 40, dtype=dtype) for _ in range(2)]  # (B, capacity, H_kv, D)
    q, fused = normal(rng, 2, L, 4, 40, dtype=dtype), normal(rng, 2, L, 12, 40, dtype=dtype)
    heads_first = [normal(rng, 2, 2, 90, 40, dtype=dtype).transpose(0, 2, 1, 3) for _ in range(2)]

    def copied(*_):
        raise AssertionError("a view was copied")

    with monkeypatch.context() as patch:
        patch.setattr("zoo.core.backends.cuda.kernels.attention.contiguous", copied)
        check(counter, 90, q, *(c[:, :77] for c in cache), causal=True)
        check(counter, 90, q, *(c[:, 150:20:-1] for c in cache))
        check(counter, 90, fused[:, :, :4], fused[:, :, 4:8], fused[:, :, 8:], causal=True)  # of one projection
        check(counter, 90, q, *heads_first)
        check(counter, 90, q, *(np.broadcast_to(c[:1, :50, :1], (2, 50, 4, 40)) for c in cache))
        check(counter, 90, q[..., 3:36], *(c[..., 3:36] for c in cache))  # begins between words of 16 bytes
    check(counter, 90, q[..., ::2], *(c[..., 39::-2] for c in cache))  # numbers of a head apart: copied


def test_words_of_16_bytes_are_read_together(rng):
    """Numpy's memory begins on multiples of 16: the other tests' tensors, 17 numbers further on, do not."""
    for counter, dtype, L in [(MMA, "float16", 40), (TILES, "float32", 40), (DECODE, "float16", 1)]:
        arrays = [x.copy() for x in qkv(rng, 1, L, 150, 4, 2, 64, dtype=dtype)]
        assert all(x.ctypes.data % 16 == 0 for x in arrays)
        check(counter, 90, *arrays, causal=True)
        check(counter, 90, *(x[..., :60] for x in arrays))


@pytest.mark.parametrize("L, counter, dtype", [(1, DECODE, "float16"), (2, DECODE, "float32"), (17, TILES, "float32"),
                                               (17, MMA, "bfloat16")])  # fmt: skip
def test_lengths_are_read_on_the_device(rng, L, counter, dtype):
    """What lies behind them is never read: it is NaN here. One sequence has no key, one all that there is room for."""
    q, k, v = qkv(rng, 4, L, 130, 4, 2, 40, dtype=dtype)
    lengths = np.array([0, 37, 70, 130], np.int32)
    for cache in (k, v):
        for b, n in enumerate(lengths):
            cache[b, n:] = np.nan
    for causal in (False, True):
        found = check(counter, 90, q, k, v, lengths=lengths, causal=causal)
        assert (found[0] == 0).all()
        check(counter, 90, q, k, v, normal(rng, 4, 1, 1, 130), lengths.astype(np.int64), causal=causal)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int64"])
def test_rows_are_written_where_the_positions_say(rng, dtype):
    numbers = rng.integers(0, 100, (4, 2, 3, 5)).astype(zoo.dtype(dtype))
    for cache in (
        rng.integers(0, 100, (4, 9, 3, 5)).astype(zoo.dtype(dtype)),
        rng.integers(0, 100, (4, 3, 9, 5)).astype(zoo.dtype(dtype)).transpose(0, 2, 1, 3),  # heads first
    ):
        for positions in (np.array([0, 3, 7, 2], np.int32), np.array([-1, 8, 9, 100], np.int64)):
            args, attrs = (cache, numbers, positions), {"donate": False}
            before = stats().get("cuda.update_rows", 0)
            found = emulated().bind(TABLE["update_rows"], args, attrs)
            np.testing.assert_array_equal(found, REFERENCE.bind(TABLE["update_rows"], args, attrs))
            assert stats()["cuda.update_rows"] == before + 1
            assert not np.shares_memory(found, cache)
            inside = cache.copy(order="K")
            donated = emulated().bind(TABLE["update_rows"], (inside, numbers, positions), {"donate": True})
            assert donated is inside
            np.testing.assert_array_equal(inside, found)


@pytest.mark.parametrize("L", [1, 40])
def test_cache_in_another_dtype(rng, L):
    q, k, v = qkv(rng, 1, L, 70, 4, 2, 40)
    for stored in (zoo.float16, zoo.bfloat16):
        check(DECODE if L == 1 else TILES, 90, q, k.astype(stored), v.astype(stored))
    check(DECODE if L == 1 else TILES, 90, q, k.astype(zoo.float16), v)
    check(DECODE if L == 1 else TILES, 90, q.astype(zoo.bfloat16), k, v)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("L, counter, dtype", [(1, DECODE, "float32"), (20, TILES, "float32"), (20, MMA, "float16")])
def test_nan_and_infinity_come_out_where_the_body_has_them(rng, value, L, counter, dtype):
    for place in range(3):
        args = qkv(rng, 1, L, 150, 2, 1, 20, dtype=dtype)
        args[place][0, -1 if place else L // 2, 0, 3] = value
        with np.errstate(all="ignore"):
            expected = in_float64(*args)
        before = stats().get(counter, 0)
        found = attention(emulated(), *args).astype(np.float64)
        assert stats().get(counter, 0) == before + 1
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, expected))
        assert np.abs(found[finite] - expected[finite]).max(initial=0) <= BOUND[dtype]


def test_scores_far_apart_neither_overflow_nor_vanish(rng):
    for L, dtype in [(1, "float32"), (40, "float32"), (40, "float16")]:
        q, k, v = qkv(rng, 1, L, 150, 2, 2, 16, dtype=dtype)
        large = (300 * q.astype(np.float32)).astype(q.dtype)  # scores of a thousand: nearly one key alone
        found, expected = attention(emulated(), large, k, v), in_float64(large, k, v)
        assert np.isfinite(found).all()
        # scores are wrong by u of their size
        assert np.abs(found.astype(np.float64) - expected).max() <= 2e-3 + BOUND[dtype]
        equal = attention(emulated(), 0 * q, k, np.ones_like(v))
        np.testing.assert_allclose(equal.astype(np.float64), 1, rtol=1e-6)


def gradients(backend, g, q, k, v, bias=None, causal=False, scale=None):
    return backend.bind(TABLE["attention_grad"], (g, q, k, v, bias), {"causal": causal, "scale": scale})


def compare_gradients(found, args, bound, bias=None, **settings):
    wide = [None if x is None else x.astype(np.float64) for x in (*args, bias)]
    for got, want in zip(found, gradients(REFERENCE, *wide, **settings), strict=True):
        assert got.dtype == args[0].dtype
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=bound * (1 + np.abs(want).max()))


@pytest.mark.parametrize("L, S", [(1, 1), (3, 40), (70, 66), (40, 9)])
@pytest.mark.parametrize("H, Hkv, D, Dv", [(2, 2, 64, 64), (6, 2, 40, 24), (3, 1, 33, 7)])
def test_gradients(rng, L, S, H, Hkv, D, Dv):
    q, k, v = qkv(rng, 2, L, S, H, Hkv, D, Dv)
    g = normal(rng, 2, L, H, Dv)
    for causal, masked in ((False, False), (True, False), (True, True)):
        bias = None
        if masked:
            bias = np.where(rng.random((2, 1, L, S)) < 0.3, -np.inf, 0.5).astype(np.float32)
            bias[0, :, 0] = -np.inf
        before = stats().get("cuda.attention_grad", 0)
        found = gradients(emulated(), g, q, k, v, bias, causal=causal)
        assert stats()["cuda.attention_grad"] == before + 1
        # sums of up to 200 terms of size 10, each off by a few u: 1e-6 of the largest gradient
        compare_gradients(found, (g, q, k, v), 3e-6, causal=causal, bias=bias)


@pytest.mark.parametrize("width", [32, 80, 96, 128, 160, 256])
def test_gradients_of_all_head_sizes(rng, width):
    q, k, v = qkv(rng, 1, 20, 35, 2, 1, width)
    g = normal(rng, 1, 20, 2, width)
    compare_gradients(gradients(emulated(), g, q, k, v, causal=True), (g, q, k, v), 3e-6, causal=True)


GRAD, GRAD_MMA = "cuda.attention_grad", "cuda.attention_grad_mma"


@pytest.mark.parametrize("counter, dtype, arch", [(GRAD, "float32", 90), (GRAD_MMA, "bfloat16", 90),
                                                  (GRAD_MMA, "float16", 75), (GRAD, "bfloat16", 75)])  # fmt: skip
def test_gradients_of_views_in_half_precision_and_with_other_scales(rng, counter, dtype, arch):
    fused = normal(rng, 2, 50, 12, 40, dtype=dtype)
    args = [normal(rng, 2, 50, 4, 80, dtype=dtype)[..., ::2], *(fused[:, :, i : i + 4] for i in (0, 4, 8))]
    before = stats().get(counter, 0)
    found = gradients(emulated(arch), *args, causal=True, scale=0.3)
    assert stats()[counter] == before + 1
    compare_gradients(found, args, BOUND[dtype], causal=True, scale=0.3)


@pytest.mark.parametrize("L, S", [(1, 1), (70, 66), (20, 200), (150, 9)])
@pytest.mark.parametrize("H, Hkv, D, Dv, dtype", [(2, 2, 64, 64, "float16"), (6, 2, 96, 24, "bfloat16"),
                                                  (3, 1, 33, 7, "float16"), (2, 1, 128, 128, "bfloat16")])  # fmt: skip
def test_gradients_on_tensor_cores(rng, L, S, H, Hkv, D, Dv, dtype):
    q, k, v = qkv(rng, 1, L, S, H, Hkv, D, Dv, dtype)
    g = normal(rng, 1, L, H, Dv, dtype=dtype)
    bias = np.where(rng.random((1, 1, L, S)) < 0.3, -np.inf, 0.5).astype(np.float32)
    bias[0, :, 0] = -np.inf
    for settings in ({"causal": False}, {"causal": True, "bias": bias}):
        before = stats().get(GRAD_MMA, 0)
        found = gradients(emulated(), g, q, k, v, **settings)
        assert stats()[GRAD_MMA] == before + 1
        compare_gradients(found, (g, q, k, v), BOUND[dtype], **settings)


def test_the_order_of_threads_changes_no_bit(rng):
    """Another order in which the emulator runs them finds what a missing barrier would leave to chance."""
    devices = [CudaBackend(EmulatedDriver(90, seed=seed), f"cuda:order{seed}") for seed in (1, 2, 3)]
    for dtype, L in [("float32", 1), ("float32", 40), ("float16", 40)]:
        q, k, v = qkv(rng, 1, L, 150, 4, 2, 40, dtype=dtype)
        first, *others = [attention(d, q, k, v, causal=True) for d in devices]
        for other in others:
            np.testing.assert_array_equal(first, other)
    for dtype in ("float32", "bfloat16"):
        g, q = (normal(rng, 1, 70, 4, 40, dtype=dtype) for _ in range(2))
        first, *others = [gradients(d, g, q, q, q, causal=True) for d in devices]
        for other in others:
            for a, b in zip(first, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_the_kernels_do_not_do_is_left_to_the_body(rng):
    before = {n: c for n, c in stats().items() if n.startswith("cuda.attention")}
    q, k, v = qkv(rng, 1, 3, 5, 2, 1, 4)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    np.testing.assert_allclose(attention(emulated(), *wide), attention(REFERENCE, *wide), rtol=1e-12)
    assert attention(emulated(), q[:, :0], k, v).shape == (1, 0, 2, 4)
    assert (attention(emulated(), q, k[:, :0], v[:, :0]) == 0).all()
    assert attention(emulated(), q, k, v[..., :0]).shape == (1, 3, 2, 0)
    large = qkv(rng, 1, 3, 5, 1, 1, 260)
    np.testing.assert_allclose(attention(emulated(), *large), in_float64(*large), atol=1e-5)
    g, *large = (x.astype(np.float32) for x in (normal(rng, 1, 3, 2, 256), *qkv(rng, 1, 3, 5, 2, 2, 256)))
    gradients(emulated(75), g, *large)  # more shared memory than sm_75 has
    assert {n: c for n, c in stats().items() if n.startswith("cuda.attention")} == before
