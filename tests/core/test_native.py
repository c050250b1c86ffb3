"""The native kernels of the cpu device, with every instruction set that this machine has.

Most inputs are small whole numbers: then every sum is exact in float32 in any order, and results must be equal, bit by
bit. What rounds is compared with float64 under a bound that says where it comes from.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from itertools import product

import numpy as np
import pytest

from zoo.core.backends.numpy import NumpyBackend
from zoo.core.errors import DeviceError, OpError, ZooError
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402
from zoo.core.backends.cpu.kernels.common import ACTIVATIONS  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()
GUARD = 1234.5


@pytest.fixture
def cpu(isa, monkeypatch):
    """Without Winograd's algorithm, whose sums are not exact; test_conv_native.py is about it."""
    monkeypatch.setenv("ZOO_OFF", "winograd")
    return CpuBackend()


def whole(rng, *shape):
    """Whole numbers from -2 to 2, with NaN on both sides in memory: who reads too far will see it in the result."""
    memory = np.full(math.prod(shape) + 34, np.nan, np.float32)
    inner = memory[17:-17]  # 17 floats: no vector is aligned
    inner[:] = rng.integers(-2, 3, inner.size)
    return inner.reshape(shape)


class Guarded:
    """An output array with guards on both sides."""

    def __init__(self, *shape):
        self.memory = np.full(math.prod(shape) + 66, GUARD, np.float32)
        self.array = self.memory[33:-33].reshape(shape)

    def intact(self):
        return bool((self.memory[:33] == GUARD).all() and (self.memory[-33:] == GUARD).all())


def exact(a, b):
    return np.matmul(a.astype(np.int64), b.astype(np.int64))


def bind(backend, name, *args, **attrs):
    return backend.bind(TABLE[name], args, attrs)


def check(cpu, name, *args, counter, **attrs):
    """cpu computes, by its own kernel, exactly what the reference computes."""
    expected = bind(REFERENCE, name, *args, **attrs)
    before = stats().get(counter, 0)
    found = bind(cpu, name, *args, **attrs)
    assert stats()[counter] == before + 1
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    return found


# ---- products


def test_every_number_of_rows_and_every_tail(cpu, rng):
    mr, nr = native.tile()
    for n, k in product((1, nr // 2, nr, nr + 1, 2 * nr - 1), (1, 3, 16, 37, 150)):
        w = whole(rng, n, k)
        packed = cpu.pack(w, "linear").buffer
        row_major = np.ascontiguousarray(w.T)
        bias, residual = whole(rng, n), whole(rng, 2 * mr + 1, n)
        for m in range(1, 2 * mr + 2):
            a = whole(rng, m, k)
            expected = exact(a, w.T) + bias + residual[:m]
            for b, packed_n in ((w.T, -1), (row_major, -1), (packed, n)):
                for left in (a, np.asfortranarray(a)):
                    out = Guarded(m, n)
                    native.gemm(left, b, out.array, bias, residual[:m], 0, packed_n)
                    np.testing.assert_array_equal(out.array, expected, err_msg=f"{m}x{n}x{k}")
                    assert out.intact()


# more than one task, more than one block of K and N, K split into parts
@pytest.mark.parametrize("m, n, k", [(1100, 70, 50), (300, 700, 600), (40, 1000, 1100), (5, 20, 30000), (20, 5, 9000)])
def test_large_products(cpu, rng, m, n, k):
    a, w = whole(rng, m, k), whole(rng, n, k)
    expected = exact(a, w.T)
    for b, packed_n in ((w.T, -1), (np.ascontiguousarray(w.T), -1), (cpu.pack(w, "linear").buffer, n)):
        out = Guarded(m, n)
        native.gemm(a, b, out.array, packed_n=packed_n)
        np.testing.assert_array_equal(out.array, expected)
        assert out.intact()


def test_rounding(cpu, rng):
    """Against float64, within 4 sqrt(K) u |A| |B|, u = 2^-24: errors add up as a random walk (Higham & Mary 2019)."""
    for m, n, k in [(1, 50, 700), (7, 33, 1000), (64, 90, 257), (9, 40, 20000)]:
        a, b = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (k, n)))
        bound = 4 * math.sqrt(k) * 2.0**-24 * np.matmul(abs(a), abs(b), dtype=np.float64)
        found = bind(cpu, "matmul", a, b, transpose_a=False, transpose_b=False)
        assert (abs(found - np.matmul(a, b, dtype=np.float64)) <= bound).all()


@pytest.mark.parametrize("rows", [1, 4, 15, 40])
def test_strided_inputs(cpu, rng, rows):
    wide = whole(rng, 2 * rows, 60)
    tall = whole(rng, 120, 50)
    views = [wide[::2, ::2], wide[::-2, 30:], wide[:rows, 29::-1], np.broadcast_to(wide[:1, :30], (rows, 30))]
    others = [
        tall[:30, :20],
        tall[::4, ::2],
        tall[29::-1, ::-1],
        tall.T[:30, :33],
        np.broadcast_to(tall[:30, :1], (30, 9)),
    ]
    for a, b in product(views, others):
        check(cpu, "matmul", a, b, transpose_a=False, transpose_b=False, counter="cpu.gemm_f32")


@pytest.mark.parametrize("transpose_a, transpose_b", list(product((False, True), repeat=2)))
def test_batches_broadcast(cpu, rng, transpose_a, transpose_b):
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b, "counter": "cpu.gemm_f32"}
    for batch_a, batch_b in [((3,), (3,)), ((2, 3), (3,)), ((4, 1), (1, 5)), ((), (2,)), ((6,), ()), ((0,), (0,))]:
        a = whole(rng, *batch_a, *((7, 5) if transpose_a else (5, 7)))
        b = whole(rng, *batch_b, *((9, 7) if transpose_b else (7, 9)))
        check(cpu, "matmul", a, b, **flags)
    heads = whole(rng, 2, 40, 6, 64).transpose(0, 2, 1, 3)  # attention's view of (batch, length, heads, head_dim)
    check(cpu, "matmul", heads, heads, transpose_a=False, transpose_b=True, counter="cpu.gemm_f32")


@pytest.mark.parametrize("m, k, n", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (1, 0, 1), (40, 0, 40)])
def test_empty_products(cpu, rng, m, k, n):
    bias = whole(rng, n)
    check(
        cpu, "matmul", whole(rng, m, k), whole(rng, k, n), transpose_a=False, transpose_b=False, counter="cpu.gemm_f32"
    )
    check(cpu, "linear", whole(rng, 2, m, k), whole(rng, n, k), bias, activation="relu", counter="cpu.gemm_f32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 5, 12, 50])
def test_nan_and_infinity_are_not_lost(cpu, rng, rows, value):
    """0 * NaN and 0 * inf are NaN: no kernel may skip zeros or assume finite numbers."""
    w = whole(rng, 40, 35)
    w[3, 34] = value
    x = np.zeros((rows, 35), np.float32)
    for weight in (w, cpu.pack(w, "linear")):
        y = bind(cpu, "linear", x, weight, None, activation="relu")
        assert np.isnan(y[:, 3]).all() and not np.isnan(np.delete(y, 3, axis=1)).any()
    y = bind(
        cpu, "matmul", np.ones((rows, 35), np.float32), np.ascontiguousarray(w.T), transpose_a=False, transpose_b=False
    )
    np.testing.assert_array_equal(y[:, 3], np.full(rows, value + w[3, :34].sum()))


# ---- what follows a product


def reference_activation(name, x):
    """In float64; the tail of gelu by erfc, which does not cancel."""
    sigmoid = lambda z: np.exp(np.minimum(z, 0)) / (1 + np.exp(-abs(z)))  # noqa: E731
    return {
        None: lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "gelu": lambda: x * 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in x]),
        "gelu_tanh": lambda: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
        "quick_gelu": lambda: x * sigmoid(1.702 * x),
        "silu": lambda: x * sigmoid(x),
        "sigmoid": lambda: sigmoid(x),
        "tanh": lambda: np.tanh(x),
    }[name]()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(cpu, name):
    """Relative error below 4e-6 wherever the result is no smaller than 1e-6, so in the tails too: rounding an exponent
    of about 16 costs 16 u = 1e-6, and the cube in gelu_tanh triples it. Beyond, absolute error below 1e-11."""
    x = np.concatenate([np.linspace(-30, 30, 6001), np.linspace(-1, 1, 2001), [0.0, -100, 100, -1e4, 1e4]]).astype(
        np.float32
    )
    found = bind(cpu, "linear", x[:, None], np.ones((1, 1), np.float32), None, activation=name)[:, 0]
    expected = reference_activation(name, x.astype(np.float64))
    error = abs(found - expected)
    large = abs(expected) >= 1e-6
    assert (error[large] <= 4e-6 * abs(expected[large])).all()
    assert (error[~large] <= 1e-11).all()
    special = np.array([[np.nan], [np.inf]], np.float32)
    got = bind(cpu, "linear", special, np.ones((1, 1), np.float32), None, activation=name)[:, 0]
    assert np.isnan(got[0]) and got[1] == (1 if name in ("sigmoid", "tanh") else np.inf)


def test_bias_activation_residual(cpu, rng):
    for rows, columns, depth in [(1, 7, 20), (6, 40, 33), (50, 45, 1200)]:
        x, w, bias = whole(rng, rows, depth), whole(rng, columns, depth), whole(rng, columns)
        for weight in (w, cpu.pack(w, "linear")):
            y = bind(cpu, "linear", x, weight, bias, activation="relu")
            np.testing.assert_array_equal(y, np.maximum(exact(x, w.T) + bias, 0))
    for groups, stride in [(1, 1), (2, 2), (1, 2)]:
        x, w, bias = whole(rng, 2, 9, 8, 4), whole(rng, 36, 3, 3, 4 // groups), whole(rng, 36)
        settings = {"stride": (stride, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": groups}
        shape = bind(REFERENCE, "conv_bias_act", x, w, bias, None, activation=None, **settings).shape
        residual = whole(rng, *shape)
        for b, r, activation in product((bias, None), (residual, None), (None, "relu")):
            for weight in (w, cpu.pack(w, "conv", groups)):
                expected = bind(REFERENCE, "conv_bias_act", x, w, b, r, activation=activation, **settings)
                found = bind(cpu, "conv_bias_act", x, weight, b, r, activation=activation, **settings)
                np.testing.assert_array_equal(found, expected)


# ---- convolution

CONV = "cpu.conv_f32"


def conv_settings(rank=2, stride=1, padding=(0, 0), dilation=1, groups=1):
    return {
        "stride": (stride,) * rank,
        "padding": (padding,) * rank,
        "dilation": (dilation,) * rank,
        "input_dilation": (1,) * rank,
        "groups": groups,
        "flip": False,
    }


def gradients(backend, g, x, w, settings):
    """Those in x and in w."""
    return [f() for f in TABLE["conv"].vjp(backend.ops, g, x, w, None, **settings)]


@pytest.mark.parametrize("channels, outputs, groups", [(3, 5, 1), (1, 20, 1), (20, 34, 1), (40, 8, 4), (6, 6, 6)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
def test_convolution(cpu, rng, channels, outputs, groups, kernel):
    x, w = whole(rng, 2, 9, 10, channels), whole(rng, outputs, *kernel, channels // groups)
    paddings = [((0, 0), (0, 0)), ((1, 1), (2, 1)), ((-1, 0), (0, -1)), ((3, 2), (0, 5))]
    for stride, padding, dilation in product([(1, 1), (2, 1), (2, 3)], paddings, [(1, 1), (2, 1), (1, 2)]):
        for flip, input_dilation in [(False, (1, 1)), (True, (1, 1)), (True, (2, 3))]:
            check(cpu, "conv", x, w, stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation,
                  groups=groups, flip=flip, counter=CONV)  # fmt: skip


def test_convolution_in_one_dimension(cpu, rng):
    x, w = whole(rng, 2, 40, 24), whole(rng, 33, 3, 24)
    for stride, padding, dilation in product([1, 2], [(0, 0), (1, 1), (2, 0)], [1, 2]):
        settings = conv_settings(rank=1, stride=stride, padding=padding, dilation=dilation)
        expected = check(cpu, "conv", x, w, counter=CONV, **settings)
        del settings["input_dilation"], settings["flip"]
        found = bind(cpu, "conv_bias_act", x, cpu.pack(w, "conv"), None, None, activation="relu", **settings)
        np.testing.assert_array_equal(found, np.maximum(expected, 0))


def test_convolution_over_many_tiles_and_blocks(cpu, rng):
    same = conv_settings(padding=(1, 1))
    x, w = whole(rng, 3, 30, 31, 70), whole(rng, 66, 3, 3, 70)  # 2790 pixels, K = 630
    check(cpu, "conv", x, w, counter=CONV, **same)
    check(cpu, "conv", x, w[:, :1, :1], counter=CONV, **conv_settings())  # one product over all pixels
    check(cpu, "conv", x[:, ::2, ::-1], w, counter=CONV, **same)
    check(cpu, "conv", whole(rng, 1, 2, 600, 5), whole(rng, 6, 2, 4, 5), counter=CONV, **same)  # a row in two parts
    check(cpu, "conv", whole(rng, 1, 20, 20, 1300), whole(rng, 4, 3, 3, 1300), counter=CONV, **same)  # taps in parts
    check(cpu, "conv", whole(rng, 2, 9, 9, 512), whole(rng, 4, 3, 3, 512), counter=CONV, **same)  # rows 2 KiB apart
    channels_first = whole(rng, 2, 20, 12, 13).transpose(0, 2, 3, 1)
    check(cpu, "conv", channels_first, whole(rng, 7, 3, 3, 20), counter=CONV, **same)


@pytest.mark.parametrize(
    "batch, size, channels, outputs", [(64, 12, 1, 20), (64, 12, 20, 50), (5, 9, 32, 64), (1, 8, 3, 4)]
)
@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 1, 2)])
def test_gradients_of_a_convolution(cpu, rng, batch, size, channels, outputs, stride, padding, dilation):
    """What Autodiff asks for: the gradient in x is a convolution with the kernel turned round, the one in w one whose
    kernel is the output's gradient; with permuted views, as the rule in zoo/core/prims/contract.py makes them."""
    x, w = whole(rng, batch, size, size, channels), whole(rng, outputs, 3, 3, channels)
    settings = conv_settings(stride=stride, padding=(padding, padding), dilation=dilation)
    y = check(cpu, "conv", x, w, counter=CONV, **settings)
    g = whole(rng, *y.shape)
    for found, expected in zip(gradients(cpu, g, x, w, settings), gradients(REFERENCE, g, x, w, settings), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_gradients_of_a_grouped_convolution(cpu, rng):
    x, w = whole(rng, 6, 9, 9, 8), whole(rng, 12, 3, 3, 4)
    settings = conv_settings(stride=2, padding=(1, 0), groups=2)
    g = whole(rng, *bind(REFERENCE, "conv", x, w, **settings).shape)
    for found, expected in zip(gradients(cpu, g, x, w, settings), gradients(REFERENCE, g, x, w, settings), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- packed weights


def test_packing_loses_nothing(cpu, rng):
    for shape, kind, groups in [
        ((33, 17), "linear", 1),
        ((8, 3, 3, 5), "conv", 1),
        ((64, 5, 2), "conv", 4),
        ((1, 1), "linear", 1),
    ]:
        w = rng.normal(size=shape).astype(np.float32)
        packed = cpu.pack(w, kind, groups)
        assert packed.shape == shape and packed.dtype == np.float32 and packed.isa == cpu.isa
        np.testing.assert_array_equal(packed.unpack(), w)
        np.testing.assert_array_equal(cpu.to_host(packed), w)


def test_a_packed_weight_stands_wherever_a_weight_does(cpu, rng):
    w = whole(rng, 30, 20)
    packed = cpu.pack(w, "linear")
    np.testing.assert_array_equal(bind(cpu, "mul", packed, 2.0), 2 * w)
    x = whole(rng, 5, 20)
    np.testing.assert_array_equal(bind(cpu, "matmul", x, packed, transpose_a=False, transpose_b=True), exact(x, w.T))
    wide = bind(cpu, "linear", x.astype(np.float64), packed, None, activation=None)
    np.testing.assert_array_equal(wide, exact(x, w.T))


def test_a_weight_packed_for_another_instruction_set_still_works(rng):
    w, x = whole(rng, 30, 20), whole(rng, 5, 20)
    before = native.isa()
    try:
        for ours in native.isas():
            native.set_isa(ours)
            cpu = CpuBackend()
            packed = cpu.pack(w, "linear")
            for other in native.isas():
                native.set_isa(other)
                np.testing.assert_array_equal(bind(cpu, "linear", x, packed, None, activation=None), exact(x, w.T))
    finally:
        native.set_isa(before)


@pytest.mark.parametrize("shape, kind, groups", [((3, 4), "conv", 1), ((3, 4, 5), "linear", 1), ((3, 1, 4), "conv", 2),
                                                 ((0, 4), "linear", 1), ((3, 4), "lstm", 1)])  # fmt: skip
def test_what_cannot_be_packed_says_so(shape, kind, groups):
    with pytest.raises(OpError, match="cannot pack"):
        CpuBackend().pack(np.zeros(shape, np.float32), kind, groups)


# ---- what the kernels do not do is numpy's


def test_float64_falls_back(rng):
    cpu = CpuBackend()
    x, w = (whole(rng, *s).astype(np.float64) for s in ((3, 5), (4, 5)))
    before = stats()
    found = bind(cpu, "linear", x, w, None, activation="relu")
    assert found.dtype == x.dtype and stats() == before
    np.testing.assert_array_equal(found.astype(np.float64), np.maximum(exact(x, w.T), 0))


def test_three_spatial_axes_and_misaligned_memory_fall_back(rng):
    cpu = CpuBackend()
    x, w = whole(rng, 1, 4, 5, 6, 2), whole(rng, 3, 2, 2, 2, 2)
    settings = conv_settings(rank=3, padding=(0, 1))
    before = stats()
    np.testing.assert_array_equal(bind(cpu, "conv", x, w, **settings), bind(REFERENCE, "conv", x, w, **settings))
    raw = np.zeros(6 * 5 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(6, 5)
    assert not raw.flags.aligned
    raw[:] = 1
    y = bind(cpu, "matmul", raw, whole(rng, 5, 2) * 0 + 1, transpose_a=False, transpose_b=False)
    assert (y == 5).all() and stats() == before


def test_wrong_arguments_are_refused_before_any_memory_is_touched():
    f = np.zeros
    good = f((3, 4), np.float32)
    for b, out in [
        (f((5, 2), "f"), f((3, 2), "f")),  # inner sizes
        (f((4, 2), "f"), f((3, 3), "f")),  # size of the result
        (f((4, 2)), f((3, 2), "f")),  # float64
        (f((4, 2), "f"), f((2, 3), "f").T),  # a result that is not contiguous
        (f((4,), "f"), f((3, 2), "f")),  # one axis
    ]:
        with pytest.raises(ValueError):
            native.gemm(good, b, out)
    with pytest.raises(ValueError):
        native.gemm(good, f(10, "f"), f((3, 2), "f"), packed_n=2)
    read_only = f((3, 2), "f")
    read_only.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        native.gemm(good, f((4, 2), "f"), read_only)
    with pytest.raises(ValueError):
        native.conv(f((1, 5, 5, 2), "f"), f((3, 2, 2, 3), "f"), f((1, 4, 4, 3), "f"))


# ---- threads


def test_the_number_of_threads_changes_no_bit(cpu, rng, restore_threads):
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((150, 300), (300, 170)))
    few, deep = rng.normal(size=(5, 9000)).astype(np.float32), rng.normal(size=(9000, 30)).astype(np.float32)
    x, w = rng.normal(size=(4, 14, 14, 33)).astype(np.float32), rng.normal(size=(70, 3, 3, 33)).astype(np.float32)
    settings = conv_settings(padding=(1, 1))
    g = rng.normal(size=(4, 14, 14, 70)).astype(np.float32)
    results = []
    for threads in (1, 2, THREADS + 3):
        native.set_threads(threads)
        assert native.threads() == threads
        results.append([
            bind(cpu, "matmul", a, b, transpose_a=False, transpose_b=False),
            bind(cpu, "matmul", few, deep, transpose_a=False, transpose_b=False),
            bind(cpu, "matmul", np.stack([a, a]), b, transpose_a=False, transpose_b=False),
            bind(cpu, "conv", x, w, **settings),
            *gradients(cpu, g, x, w, settings),
        ])  # fmt: skip
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_several_python_threads_at_once(rng, restore_threads):
    native.set_threads(2)
    cpu = CpuBackend()
    wrong = []

    def work(seed):
        own = np.random.default_rng(seed)
        a, b = whole(own, 60 + seed, 300), whole(own, 300, 200)
        expected = exact(a, b)
        for _ in range(40):
            if not np.array_equal(bind(cpu, "matmul", a, b, transpose_a=False, transpose_b=False), expected):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 on: forking with threads, which is the point
def test_a_forked_child_computes(rng, restore_threads):
    native.set_threads(3)
    cpu = CpuBackend()
    a, b = whole(rng, 200, 300), whole(rng, 300, 200)
    expected = exact(a, b)

    def right():
        return np.array_equal(bind(cpu, "matmul", a, b, transpose_a=False, transpose_b=False), expected)

    assert right()  # the pool is running when the process forks
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if right() and right() else 1)
        assert right()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- settings


def test_instruction_sets_by_name(monkeypatch):
    before = native.isa()
    try:
        for isa in native.isas():
            monkeypatch.setenv("ZOO_ISA", isa)
            cpu = CpuBackend()
            assert cpu.isa == native.isa() == isa and cpu.details[0] == isa
        monkeypatch.setenv("ZOO_ISA", "avx1024")
        with pytest.raises(ZooError, match=f"ZOO_ISA=avx1024 cannot be used\n.*{native.isas()[0]}.*\n"):
            CpuBackend()
        assert native.isa() == native.isas()[-1]
    finally:
        native.set_isa(before)


def test_number_of_threads_by_name(monkeypatch, restore_threads):
    monkeypatch.setenv("ZOO_THREADS", "3")
    assert CpuBackend().details[1] == "3 threads"
    for bad in ("0", "many", "-2", "1e9"):
        monkeypatch.setenv("ZOO_THREADS", bad)
        with pytest.raises(ZooError, match="ZOO_THREADS"):
            CpuBackend()
    native.set_threads(0)
    assert 1 <= native.threads() <= (os.cpu_count() or 1)


def test_kernels_can_be_switched_off(monkeypatch, rng):
    monkeypatch.setenv("ZOO_OFF", "matmul, conv")
    cpu = CpuBackend()
    x = whole(rng, 3, 4)
    before = stats()
    bind(cpu, "matmul", x, x, transpose_a=False, transpose_b=True)
    assert stats() == before
    bind(cpu, "linear", x, x, None, activation=None)
    assert stats()["cpu.gemm_f32"] == before.get("cpu.gemm_f32", 0) + 1
    monkeypatch.setenv("ZOO_OFF", "matmull")
    with pytest.raises(ZooError, match="matmull"):
        CpuBackend()


def test_without_the_extension_the_device_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "zoo.core.backends.cpu._native", None)
    with pytest.raises(DeviceError) as caught:
        CpuBackend()
    assert len(str(caught.value).splitlines()) == 3 and "--device numpy" in str(caught.value)
