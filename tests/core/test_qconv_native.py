"""Convolutions with weights of 8 bits on the cpu device, with every instruction set that this machine has.

The oracle is the same calculation in exact integers: x quantised by tile (or by pixel, for 1x1) as csrc/quant/conv.h
promises it. What quantising x costs is checked against the dequantised weights, under the op's own tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core.backends.numpy import NumpyBackend
from zoo.core.prims import TABLE
from zoo.core.stats import stats
from zoo.core.testing.tol import QUANTISED

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()
# x (N, H, W, C), kernel, outputs, and what is not usual
SHAPES = [
    ((1, 7, 7, 32), (3, 3), 40, {"padding": ((1, 1), (1, 1))}),
    ((2, 5, 6, 4), (3, 2), 33, {"stride": (2, 1), "padding": ((0, 2), (3, 1))}),
    ((1, 30, 33, 20), (3, 3), 70, {"padding": ((1, 1), (1, 1))}),  # several tiles
    ((1, 12, 11, 12), (2, 3), 17, {"dilation": (3, 2), "padding": ((-1, 1), (2, -1))}),
    ((1, 3, 600, 4), (3, 3), 5, {"padding": ((1, 1), (1, 1))}),  # tiles that are parts of a line
    ((1, 9, 9, 600), (3, 3), 65, {"stride": (2, 2), "padding": ((1, 1), (1, 1))}),  # blocks of K
    ((2, 1, 1, 8), (3, 3), 9, {"padding": ((2, 2), (2, 2))}),  # tiles of padding alone
    ((3, 6, 5, 16), (1, 1), 70, {}),
    ((2, 7, 6, 16), (1, 1), 31, {"stride": (2, 3)}),
    ((2, 4, 6, 8), (1, 1), 6, {"stride": (4, 1)}),
    ((2, 5, 4, 8), (1, 1), 6, {"padding": ((1, 0), (0, 2))}),
]


def settings(other):
    return {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "activation": None, **other}


def weight(rng, outputs, kernel, channels):
    w = rng.normal(size=(outputs, kernel[0] * kernel[1] * channels)).astype(np.float32)
    q, scale = REFERENCE.bind(TABLE["quantize"], (w,), {"format": "int8"})
    return q.reshape(outputs, *kernel, channels), scale


def qconv(backend, x, q, scale, bias=None, residual=None, **other):
    return backend.bind(TABLE["qconv"], (x, q, scale, bias, residual), settings(other))


def guarded(array):
    """The same values between large ones: who reads too far will see it in the result."""
    memory = np.full(array.size + 34, 1e30, np.float32)
    memory[17:-17] = array.reshape(-1)
    return memory[17:-17].reshape(array.shape)


def in_float64(x, q, scale, **other):
    """The product of what the codes stand for."""
    wide = [a.astype(np.float64) for a in (x, q, scale)]
    conv = {k: v for k, v in settings(other).items() if k != "activation"}
    w = wide[1] * wide[2].reshape(-1, 1, 1, 1)
    return REFERENCE.bind(TABLE["conv"], (wide[0], w), {**conv, "input_dilation": (1, 1), "groups": 1, "flip": False})


def check(cpu, x, w, packed, **other):
    """One scale for all of x: its largest number is 127, so quantising it is exact, and so is the result but for the
    scales and their roundings."""
    before = stats().get("cpu.conv_int8", 0)
    found = qconv(cpu, x, *packed, **other)
    assert stats()["cpu.conv_int8"] == before + 1
    expected, size = in_float64(x, *w, **other), in_float64(abs(x), abs(w[0]), w[1], **other)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert (abs(found - expected) <= 4 * 2.0**-24 * size).all()
    return found


def whole(rng, *shape):
    """Whole numbers whose largest, in every pixel, is 127."""
    x = rng.integers(-127, 128, shape).astype(np.float32)
    x[..., rng.integers(shape[-1])] = 127
    return x


@pytest.mark.parametrize("shape, kernel, outputs, other", SHAPES)
def test_exact_codes_give_exact_sums(cpu, rng, shape, kernel, outputs, other):
    x, w = guarded(whole(rng, *shape)), weight(rng, outputs, kernel, shape[-1])
    found = check(cpu, x, w, (cpu.pack(w[0], "conv"), w[1]), **other)
    np.testing.assert_array_equal(check(cpu, x, w, w, **other), found)


@pytest.mark.parametrize("shape, kernel, outputs, other", SHAPES)
def test_within_the_tolerance_of_the_op(cpu, rng, shape, kernel, outputs, other):
    x, w = rng.normal(size=shape).astype(np.float32), weight(rng, outputs, kernel, shape[-1])
    assert not QUANTISED.error(qconv(cpu, x, *w, **other), in_float64(x, *w, **other))


@pytest.mark.parametrize("shape, kernel, outputs, other", SHAPES)
def test_bias_residual_and_activation_follow(cpu, rng, shape, kernel, outputs, other):
    x, (q, scale) = whole(rng, *shape), weight(rng, outputs, kernel, shape[-1])
    plain = qconv(cpu, x, q, scale, **other)
    bias, residual = (rng.normal(size=s).astype(np.float32) for s in (outputs, plain.shape))
    found = qconv(cpu, x, q, scale, bias, residual, activation="relu", **other)
    expected = np.maximum(plain.astype(np.float64) + bias + residual, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * abs(plain).max())


def test_the_scale_is_of_a_tile_and_of_one_picture(cpu, rng):
    """A far larger number in one tile, or in another picture, does not touch what a tile gives."""
    w = weight(rng, 8, (3, 3), 8)
    x = rng.normal(size=(2, 64, 64, 8)).astype(np.float32)
    before = qconv(cpu, x, *w)
    x[1] *= 1000
    x[0, :2] *= 1000
    after = qconv(cpu, x, *w)
    np.testing.assert_array_equal(after[0, 32:], before[0, 32:])
    assert not (after[0, :2] == before[0, :2]).any()


def test_half_precision_and_strided_pictures(cpu, rng):
    w = weight(rng, 20, (3, 3), 16)
    x = rng.normal(size=(2, 9, 8, 16)).astype(np.float32)
    for dtype in (zoo.float16, zoo.bfloat16):
        half = x.astype(dtype)
        found = qconv(cpu, half, *w, residual=np.ones((2, 7, 6, 20), dtype))
        assert found.dtype == dtype
        assert not QUANTISED.error(found.astype(np.float32), in_float64(half.astype(np.float32), *w) + 1)
    for view in (x[:, ::-1], x.swapaxes(1, 2), x[::2, 1:], np.broadcast_to(x[:1], (3, 9, 8, 16))):
        np.testing.assert_array_equal(qconv(cpu, view, *w), qconv(cpu, np.ascontiguousarray(view), *w))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_the_references(cpu, rng, value):
    for kernel in ((1, 1), (3, 3)):
        w, x = weight(rng, 40, kernel, 8), rng.normal(size=(1, 9, 9, 8)).astype(np.float32)
        x[0, 4, 4, 3] = value
        found, expected = qconv(cpu, x, *w), qconv(REFERENCE, x, *w)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(cpu, rng):
    cases = []
    for shape, kernel, outputs, other in SHAPES:
        q, scale = weight(rng, outputs, kernel, shape[-1])
        cases.append((rng.normal(size=shape).astype(np.float32), cpu.pack(q, "conv"), scale, other))
    try:
        results = []
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append([qconv(cpu, x, q, scale, **other) for x, q, scale, other in cases])
    finally:
        native.set_threads(THREADS)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_packed_weight_stands_wherever_one_does(rng):
    """Also where it was packed for another instruction set."""
    before = native.isa()
    w, x = weight(rng, 40, (3, 3), 12), whole(rng, 1, 8, 8, 12)
    try:
        for made in native.isas():
            native.set_isa(made)
            q = CpuBackend().pack(w[0], "conv")
            assert q.shape == w[0].shape and q.dtype == np.int8
            np.testing.assert_array_equal(q.unpack(), w[0])
            for used in native.isas():
                native.set_isa(used)
                found = qconv(CpuBackend(), x, q, w[1])
                np.testing.assert_allclose(found, in_float64(x, *w), rtol=1e-4, atol=1e-2)
    finally:
        native.set_isa(before)


def test_nothing_is_written_beside_the_result(cpu, rng):
    for shape, kernel, outputs, other in SHAPES:
        q, scale = weight(rng, outputs, kernel, shape[-1])
        x, s = rng.normal(size=shape).astype(np.float32), settings(other)
        out = qconv(cpu, x, q, scale, **other)
        memory = np.full(out.size + 66, 1234.5, np.float32)
        native.quant_conv(
            x, cpu.pack(q, "conv").buffer, scale, memory[33:-33].reshape(out.shape), None, None, 0, kernel,
            s["stride"], tuple(lo for lo, _ in s["padding"]), s["dilation"],
        )  # fmt: skip
        assert (memory[:33] == 1234.5).all() and (memory[-33:] == 1234.5).all()


def test_wrong_arguments_are_refused_before_any_memory_is_touched(cpu, rng):
    q, scale = weight(rng, 40, (3, 3), 8)
    w, x, out = cpu.pack(q, "conv").buffer, np.ones((1, 5, 5, 8), np.float32), np.ones((1, 3, 3, 40), np.float32)
    rest = (None, None, 0, (3, 3), (1, 1), (0, 0), (1, 1))
    for arguments in (
        (x[..., :4], w, scale, out, *rest),
        (np.ones((1, 5, 5, 6), np.float32), w, scale, out, *rest),
        (x, w[:-1], scale, out, *rest),
        (x, w, scale[:-1], out, *rest),
        (x, w, scale, out[0], *rest),
        (x, w, scale, out, np.ones(3, np.float32), *rest[1:]),
        (x, w, scale, out, None, np.ones(3, np.float32), *rest[2:]),
        (x, w, scale, out, None, None, 99, *rest[3:]),
        (x, w, scale, out, *rest[:3], (3, 2), *rest[4:]),
        (x, w, scale, out, *rest[:4], (0, 1), *rest[5:]),
    ):
        with pytest.raises(ValueError):
            native.quant_conv(*arguments)
