"""Layers with bfloat16 weights where the instruction set multiplies pairs of bfloat16: x is rounded to bfloat16 too.

What is expected is worked out in float64 from the rounded x, so that nothing hides behind the rounding.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.core.backends.numpy import NumpyBackend
from zoo.core.dtype import bfloat16
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402
from zoo.core.backends.cpu.kernels.gemm import as_pairs  # noqa: E402

ISA = "avx512bf16"
if ISA not in native.isas():
    pytest.skip("this processor has no dot products of bfloat16 (AVX512_BF16)", allow_module_level=True)
REFERENCE = NumpyBackend()
THREADS = native.threads()


@pytest.fixture
def cpu():
    before = native.isa()
    native.set_isa(ISA)
    yield CpuBackend()
    native.set_isa(before)


def normal(rng, *shape, dtype=np.float32):
    """Normal numbers with NaN on both sides in memory: who reads too far will see it in the result."""
    memory = np.full(math.prod(shape) + 36, np.nan, dtype)
    inner = memory[18:-18]
    inner[:] = rng.normal(size=inner.size).astype(dtype)
    return inner.reshape(shape)


def rounded(x):
    return x.astype(bfloat16).astype(np.float64)


def linear(cpu, x, w, bias=None):
    before = stats().get("cpu.gemm_bf16_pairs", 0)
    out = cpu.bind(TABLE["linear"], (x, w, bias), {"activation": None})
    assert stats().get("cpu.gemm_bf16_pairs", 0) == before + 1
    return out


def close(found, x, w, bias=0.0):
    """Within 4 sqrt(K) u |x| |w|, u = 2^-24 (Higham & Mary 2019)."""
    wide = w.astype(np.float64)
    bound = 4 * math.sqrt(x.shape[1]) * 2.0**-24 * (abs(rounded(x)) @ abs(wide).T + abs(bias))
    assert (abs(found - (rounded(x) @ wide.T + bias)) <= bound).all()


def test_sums_of_the_rounded_numbers(cpu, rng):
    shapes = [
        (1, 70, 1000),
        (2, 33, 64),
        (3, 1, 2),
        (9, 31, 702),
        (15, 65, 700),
        (24, 33, 4096),
        (40, 90, 300),
        (300, 70, 1538),
    ]
    for m, n, k in shapes:
        x, w, bias = normal(rng, m, k), normal(rng, n, k, dtype=bfloat16), normal(rng, n)
        for weight in (w, cpu.pack(w, "linear")):
            close(linear(cpu, x, weight, bias), x, w, bias)


def test_views_and_inputs_of_bfloat16(cpu, rng):
    x, w = normal(rng, 60, 90), normal(rng, 60, 80, dtype=bfloat16)
    for weight in (w[::2], w[::-1], w[:30, 40:]):
        k = weight.shape[1]
        for left in (x[:5, :k], x[::2, ::-1][:, 5 : 5 + k], np.asfortranarray(x)[:, 1 : 1 + k]):
            close(linear(cpu, left, weight), left, weight)
        halves = x[:7, :k].astype(bfloat16)
        out = linear(cpu, halves, weight)
        assert out.dtype == bfloat16
        close(linear(cpu, halves.astype(np.float32), weight), halves, weight)
    out = np.empty((60, 60), np.float32)
    turned = np.ascontiguousarray(x[:, :80].T).T  # columns of x are contiguous
    native.gemm(turned, cpu.pack(w, "linear").buffer, out, packed_n=60, weight=3)
    close(out, turned, w)


def test_what_lies_not_in_pairs_is_widened(cpu, rng):
    x, w = normal(rng, 9, 33), normal(rng, 20, 66, dtype=bfloat16)
    for weight in (w[:, 1:34], w[:, ::2], np.ascontiguousarray(w[:, :33])):
        assert as_pairs(weight) is None
        found = cpu.bind(TABLE["linear"], (x, weight, None), {"activation": None})
        np.testing.assert_allclose(found, x.astype(np.float64) @ weight.astype(np.float64).T, rtol=1e-5, atol=1e-5)
    assert not cpu.pack(np.ascontiguousarray(w[:, :33]), "linear").pairs


def test_numbers_are_rounded_to_the_nearest_even(cpu):
    """Around every 64th bfloat16: ties, their neighbours, infinities and NaN. Subnormal numbers count as 0."""
    high = np.arange(0, 1 << 16, 64, dtype=np.uint32)[:, None] << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0xFFFF], np.uint32)
    x = (high | low).view(np.float32).reshape(-1, 1)
    w = np.array([[1, 0]], bfloat16)
    both = np.concatenate([x, np.zeros_like(x)], axis=1)
    with np.errstate(invalid="ignore"):
        want = x.astype(bfloat16).astype(np.float32)
    want[abs(x) < np.finfo(np.float32).tiny] = 0
    for weight in (w, cpu.pack(w, "linear")):
        np.testing.assert_array_equal(linear(cpu, both, weight), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_not_lost(cpu, value):
    for place in (0, 33):
        w = np.zeros((40, 34), bfloat16)
        w[3, place] = value
        for rows in (1, 5, 20, 50):
            for weight in (w, cpu.pack(w, "linear")):
                y = linear(cpu, np.zeros((rows, 34), np.float32), weight)
                assert np.isnan(y[:, 3]).all() and not np.delete(y, 3, axis=1).any()


def test_the_number_of_threads_changes_no_bit(cpu, rng):
    w = normal(rng, 300, 500, dtype=bfloat16)
    xs, picture = [normal(rng, m, 500) for m in (1, 14, 20, 60, 500)], normal(rng, 2, 40, 50, 20)
    taps, results = cpu.pack(normal(rng, 48, 3, 3, 20, dtype=bfloat16), "conv"), []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append([linear(cpu, x, weight) for x in xs for weight in (w, cpu.pack(w, "linear"))])
            results[-1].append(conv(cpu, picture, taps, None, 2, 1, 1))
    finally:
        native.set_threads(THREADS)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_it_can_be_switched_off(cpu, rng, monkeypatch):
    monkeypatch.setenv("ZOO_OFF", "bf16")
    plain = CpuBackend()
    x, w = normal(rng, 30, 64), normal(rng, 40, 64, dtype=bfloat16)
    assert cpu.pairs and not plain.pairs and not plain.pack(w, "linear").pairs
    for weight in (w, plain.pack(w, "linear")):
        before = stats().get("cpu.gemm_bf16", 0)
        found = plain.bind(TABLE["linear"], (x, weight, None), {"activation": None})
        assert stats()["cpu.gemm_bf16"] == before + 1
        np.testing.assert_allclose(found, x.astype(np.float64) @ w.astype(np.float64).T, rtol=1e-5, atol=1e-5)


# ---- convolutions


def conv(cpu, x, w, bias, stride, padding, groups, residual=None):
    settings = {
        "stride": (stride,) * 2,
        "padding": ((padding,) * 2,) * 2,
        "dilation": (1, 1),
        "groups": groups,
        "activation": None,
    }
    return cpu.bind(TABLE["conv_bias_act"], (x, w, bias, residual), settings)


@pytest.mark.parametrize(
    "picture, weight, stride, padding, groups",
    [
        ((2, 13, 11, 16), (35, 3, 3, 16), 1, 1, 1),
        ((1, 17, 17, 64), (64, 3, 3, 64), 2, 1, 1),
        ((1, 9, 9, 32), (48, 1, 1, 32), 1, 0, 1),
        ((1, 9, 9, 32), (48, 1, 1, 32), 2, 0, 1),
        ((2, 8, 8, 48), (64, 3, 3, 24), 1, 1, 2),
        ((1, 20, 300, 6), (33, 3, 3, 6), 1, 1, 1),
        ((1, 3, 3, 128), (33, 3, 3, 128), 1, 1, 1),
        ((1, 32, 32, 256), (33, 5, 5, 256), 1, 2, 1),
        ((2, 6, 6, 1024), (33, 3, 3, 1024), 2, 1, 1),
    ],
)
def test_convolutions(cpu, rng, monkeypatch, picture, weight, stride, padding, groups):
    monkeypatch.setenv("ZOO_OFF", "winograd")
    cpu = CpuBackend()
    x, w, bias = normal(rng, *picture), normal(rng, *weight, dtype=bfloat16), normal(rng, weight[0])
    packed = cpu.pack(w, "conv", groups)
    assert packed.pairs and packed.unpack().tobytes() == w.tobytes()
    rounds = x.astype(bfloat16).astype(np.float32)
    want = conv(REFERENCE, rounds, w.astype(np.float32), bias, stride, padding, groups)
    residual = normal(rng, *want.shape)
    size = np.abs(want).max()
    np.testing.assert_allclose(conv(cpu, x, packed, bias, stride, padding, groups), want, atol=1e-5 * size)
    np.testing.assert_allclose(
        conv(cpu, x, packed, bias, stride, padding, groups, residual), want + residual, atol=1e-5 * size
    )
    strided = np.repeat(x, 2, axis=3)[..., ::2]  # channels are not neighbours
    np.testing.assert_allclose(conv(cpu, strided, packed, bias, stride, padding, groups), want, atol=1e-5 * size)


def test_channels_that_make_no_pairs_are_widened(cpu, rng):
    x, w = normal(rng, 1, 9, 9, 15), normal(rng, 33, 3, 3, 15, dtype=bfloat16)
    packed = cpu.pack(w, "conv")
    assert not packed.pairs
    want = conv(REFERENCE, x, w.astype(np.float32), None, 2, 1, 1)
    np.testing.assert_allclose(conv(cpu, x, packed, None, 2, 1, 1), want, atol=1e-4)


@pytest.mark.parametrize("sides", [(13, 11), (70, 66)])
def test_winograd_reads_packed_pairs_and_rounds_nothing(cpu, rng, sides):
    for channels in (6, 130, 300):
        x, w = normal(rng, 2, *sides, channels), normal(rng, 70, 3, 3, channels, dtype=bfloat16)
        packed, out = cpu.pack(w, "conv"), np.empty((2, *sides, 70), np.float32)
        native.conv(x, packed.buffer, out, pad=(1, 1), packed_shape=w.shape, winograd=True, weight=3)
        want = conv(REFERENCE, x, w.astype(np.float32), None, 1, 1, 1)
        np.testing.assert_allclose(out, want, atol=2e-5 * np.abs(want).max())


def test_misuse_is_refused(cpu):
    x, out = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="inner sizes"):
        native.gemm(x, np.ones((1, 4), np.float32), out, weight=3)
    picture, result = np.ones((1, 2, 2, 3), np.float32), np.ones((1, 2, 2, 4), np.float32)
    with pytest.raises(ValueError, match="packed"):
        native.conv(picture, np.ones((4, 1, 1, 3), np.float32), result, weight=3)
    with pytest.raises(ValueError, match="even number"):
        native.conv(picture, np.ones(48, np.float32), result, packed_shape=(4, 1, 1, 3), weight=3)
    native.set_isa("avx512vnni")
    with pytest.raises(ValueError, match="no dot products of bfloat16"):
        native.gemm(np.ones((2, 2), np.float32), np.ones((1, 4), np.float32), out, weight=3)
    assert not CpuBackend().pairs
    native.set_isa(ISA)


# ---- attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "L, S, H, Hkv, D, Dv",
    [(40, 40, 2, 2, 40, 40), (15, 33, 6, 2, 64, 7), (70, 1031, 2, 1, 80, 80), (33, 513, 1, 1, 2, 130)],
)
def test_attention(cpu, rng, causal, L, S, H, Hkv, D, Dv):
    """Products of q and k are exact; weights are rounded, so a result is within 2^-8 of what the |v| would give."""
    shapes = (2, L, H, D), (2, S, Hkv, D), (2, S, Hkv, Dv)
    q, k, v = (normal(rng, *shape, dtype=bfloat16) for shape in shapes)
    bias = normal(rng, 2, 1, 1, S)
    bias[..., 3] = -np.inf
    for added in (None, bias):
        found = attention(cpu, q, k, v, added, causal)
        wide = [np.asarray(x, np.float64) for x in (q, k, v)]
        want = attention(REFERENCE, *wide, added, causal)
        size = attention(REFERENCE, wide[0], wide[1], abs(wide[2]), added, causal)
        assert found.dtype == bfloat16
        assert (abs(found.astype(np.float64) - want) <= 2.0**-8 * (size + abs(want)) + 1e-6).all()


def attention(backend, q, k, v, bias, causal):
    return backend.bind(TABLE["attention"], (q, k, v, bias), {"causal": causal, "scale": None})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_loses_no_nan(cpu, rng, value):
    q, k, v = (normal(rng, 1, 40, 2, 16, dtype=bfloat16) for _ in range(3))
    v[0, 37, 1, 5] = value
    found = attention(cpu, q, k, v, None, True).astype(np.float32)
    want = attention(REFERENCE, *(x.astype(np.float32) for x in (q, k, v)), None, True)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want))
    assert np.isnan(found[0, :37, 1, 5]).all() and np.isfinite(np.delete(found, 5, axis=3)).all()
