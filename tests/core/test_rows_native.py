"""The native kernels that are bound by memory (csrc/rows), with every instruction set of this machine.

The table of op cases checks values, gradients, layouts and NaN of small arrays against float64. Here: sizes over
several vectors and tasks with every tail, half precision, guards around the results, and any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.core.backends.numpy import NumpyBackend
from zoo.core.dtype import bfloat16, float16
from zoo.core.errors import ShapeError
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

REFERENCE = NumpyBackend()
THREADS = native.threads()
F32 = np.float32


def draw(rng, *shape):
    return rng.normal(size=shape).astype(F32)


def bind(backend, name, *args, **attrs):
    return backend.bind(TABLE[name], args, attrs)


def each(results):
    return results if isinstance(results, tuple) else (results,)


def check(cpu, name, *args, counter=None, near=2e-6, **attrs):
    """cpu's own kernel against numpy's in float64, in units of the largest value."""
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == F32 else a for a in args]
    before = stats().get(f"cpu.{counter or name}", 0)
    found = each(bind(cpu, name, *args, **attrs))
    assert stats()[f"cpu.{counter or name}"] == before + 1
    for y, want in zip(found, each(bind(REFERENCE, name, *wide, **attrs)), strict=True):
        assert y.shape == want.shape and y.dtype in (F32, np.int32)
        assert abs(y - want).max() <= near * max(1.0, abs(want).max()), name


SIZES = [1, 3, 15, 16, 17, 63, 64, 65, 100, 1000]


@pytest.mark.parametrize("n", SIZES)
def test_every_tail(cpu, rng, n):
    x, g, w, b = draw(rng, 7, n), draw(rng, 7, n), draw(rng, n), draw(rng, n)
    for name in ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh", "exp"):
        check(cpu, name, x, counter="unary")
    for name in ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh"):
        check(cpu, "activation_grad", x, g, activation=name)
    check(cpu, "swiglu", x, g)
    check(cpu, "geglu", np.hstack([x, g]))
    check(cpu, "swiglu_grad", x, g, g * x)
    for name in ("softmax", "log_softmax"):
        check(cpu, name, x, axis=-1)
        check(cpu, f"{name}_grad", bind(REFERENCE, name, x, axis=-1), g, axis=-1, near=1e-5)
    check(cpu, "logsumexp", x, axis=-1, keepdims=False)
    targets = rng.integers(0, n, 7)
    check(cpu, "cross_entropy", x, targets)
    check(cpu, "cross_entropy_grad", x, targets, g[:, 0].copy())
    far = 30 * x + 100  # a mean far from 0 must not cost the deviations their digits
    for near_or_far, bound in ((x, 1e-5), (far, 2e-4)):
        check(cpu, "rms_norm", near_or_far, w, eps=1e-5, near=bound)
        check(cpu, "layer_norm", near_or_far, w, b, eps=1e-1, near=bound)
        check(cpu, "batch_norm_train", near_or_far, w, b, eps=1e-1, counter="group_norm", near=bound)
    check(cpu, "rms_norm_grad", x, w, g, eps=1e-5, near=1e-5)
    check(cpu, "group_norm_grad", x, w, g, groups=1, eps=1e-1, counter="layer_norm_grad", near=1e-5)
    check(cpu, "group_norm_grad", x[None], w, g[None], groups=n, eps=1e-1, near=1e-5)


@pytest.mark.parametrize("rows, columns", [(700, 70), (9000, 16), (40, 2000), (64, 5000)])
def test_over_several_tasks(cpu, rng, rows, columns):
    """More than one block of rows: sums of blocks and merged moments."""
    x, g, w, b = draw(rng, rows, columns), draw(rng, rows, columns), draw(rng, columns), draw(rng, columns)
    far = x + 50
    check(cpu, "sum", x, axis=0, keepdims=False, counter="column_sums", near=1e-5)
    check(cpu, "mean", x, axis=(0,), keepdims=True, counter="column_sums", near=1e-5)
    check(cpu, "sum", x.reshape(2, rows // 2, columns), axis=1, keepdims=False, counter="column_sums", near=1e-5)
    check(cpu, "batch_norm_train", far, w, b, eps=1e-5, counter="group_norm", near=3e-5)
    check(cpu, "group_norm_grad", x[None], w, g[None], groups=columns, eps=1e-5, near=3e-5)
    check(cpu, "group_norm_grad", x, w, g, groups=1, eps=1e-5, counter="layer_norm_grad", near=3e-5)
    check(cpu, "rms_norm_grad", x, w, g, eps=1e-5, near=3e-5)
    check(cpu, "layer_norm", far, w, b, eps=1e-5, near=3e-5)
    check(cpu, "softmax", x, axis=-1)


@pytest.mark.parametrize("activation", [None, "silu", "relu"])
@pytest.mark.parametrize("shape, groups", [((2, 5, 6, 32), 8), ((3, 40, 33), 3), ((1, 30, 30, 64), 32), ((4, 60), 5)])
def test_group_norm(cpu, rng, shape, groups, activation):
    x, w, b = draw(rng, *shape) + 5, draw(rng, shape[-1]), draw(rng, shape[-1])
    check(cpu, "group_norm", x, w, b, groups=groups, eps=1e-5, activation=activation, near=1e-5)
    check(cpu, "group_norm", x, None, None, groups=groups, eps=1e-5, activation=activation, near=1e-5)
    check(cpu, "group_norm_grad", x, None, draw(rng, *shape), groups=groups, eps=1e-5, near=3e-5)
    check(cpu, "batch_norm", x, b, abs(w) + 0.1, w, b, eps=1e-5, near=1e-5)


def test_elementwise_over_several_tasks(cpu, rng):
    x, y, row = draw(rng, 300, 301), draw(rng, 300, 301), draw(rng, 301)
    for name in ("add", "sub", "mul", "div", "maximum", "minimum"):
        for a, b in ((x, y), (x, row), (row, x), (x, 2.5), (2.5, x), (x, row[None])):
            found = bind(cpu, name, a, b)
            np.testing.assert_array_equal(found, bind(REFERENCE, name, a, b))
            assert found.dtype == F32
    hit = x > 0
    for a, b in ((x, y), (x, 0.0), (0.0, y), (1.0, 0.5)):
        np.testing.assert_array_equal(bind(cpu, "where", hit, a, b), np.where(hit, a, b).astype(F32))
    step = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 3}
    check(cpu, "adamw_step", x, y, y * 0.1, y * y, **step, counter="adamw")


@pytest.mark.parametrize("dtype", [bfloat16, float16])
def test_elementwise_in_half_precision_is_rounded_once(cpu, rng, dtype):
    x, y, row = (draw(rng, *shape).astype(dtype) for shape in ((90, 101), (90, 101), (101,)))
    for name in ("add", "sub", "mul", "div", "maximum", "minimum"):
        for a, b in ((x, y), (x, row), (row, x), (x, 1.7), (1.7, x)):
            before = stats().get("cpu.binary", 0)
            found = bind(cpu, name, a, b)
            assert stats()["cpu.binary"] == before + 1 and found.dtype == dtype
            np.testing.assert_array_equal(found, bind(REFERENCE, name, a, b))


@pytest.mark.parametrize("dtype", [bfloat16, float16])
def test_gradients_in_half_precision_are_those_of_float32_rounded(cpu, rng, dtype):
    x, g, w = (draw(rng, *shape).astype(dtype) for shape in ((70, 65), (70, 65), (65,)))
    targets, places = rng.integers(0, 65, 70), rng.integers(0, 70, 70)
    for name, args, attrs, results in [
        ("rms_norm_grad", (x, w, g), {"eps": 1e-5}, (dtype, dtype)),
        ("group_norm_grad", (x[None], w, g[None]), {"groups": 5, "eps": 1e-5}, (dtype, F32, F32)),
        ("cross_entropy", (x, targets), {}, (F32,)),
        ("cross_entropy_grad", (x, targets, draw(rng, 70)), {}, (dtype,)),
        ("logsumexp", (x,), {"axis": -1, "keepdims": False}, (dtype,)),
        ("sum", (x,), {"axis": 0, "keepdims": False}, (dtype,)),
        ("scatter_add", (x, places, g), {}, (dtype,)),
    ]:
        wide = [a.astype(F32) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in args]
        before = sum(stats().values())
        found, exact = each(bind(cpu, name, *args, **attrs)), each(bind(cpu, name, *wide, **attrs))
        assert sum(stats().values()) > before
        for y, want, result in zip(found, exact, results, strict=True):
            assert y.dtype == result, name
            np.testing.assert_array_equal(y, want.astype(result))


@pytest.mark.parametrize(
    "lines, columns, n", [(9, 1, 40), (300, 17, 2000), (50, 256, 7), (3, 1000, 100), (70000, 3, 9)]
)
def test_scatter_add(cpu, rng, lines, columns, n):
    """Bit by bit as numpy adds, in the order of the rows."""
    x, updates, places = draw(rng, lines, columns), draw(rng, n, columns), rng.integers(0, lines, n)
    before = stats().get("cpu.scatter_add", 0)
    found = bind(cpu, "scatter_add", x, places, updates)
    assert stats()["cpu.scatter_add"] == before + 1
    np.testing.assert_array_equal(found, bind(REFERENCE, "scatter_add", x, places, updates))
    for wrong in (-1, lines):
        with pytest.raises(ShapeError, match="indices run from"):
            bind(cpu, "scatter_add", x, np.full(n, wrong), updates)


def test_infinities_and_nan(cpu):
    x = np.array([[0, np.inf, 1], [0, -np.inf, 1], [-np.inf] * 3, [0, np.nan, 1]], F32)
    for name in ("softmax", "log_softmax"):
        np.testing.assert_allclose(bind(cpu, name, x, axis=-1), bind(REFERENCE, name, x, axis=-1), rtol=1e-6)
    for name in ("exp", "relu", "sigmoid", "tanh", "maximum", "minimum"):
        args = (np.tile(x, 500), np.tile(x, 500)[::-1].copy()) if name.endswith("imum") else (x,)
        np.testing.assert_allclose(bind(cpu, name, *args), bind(REFERENCE, name, *args), rtol=1e-6)
    found = bind(cpu, "logsumexp", x, axis=-1, keepdims=False)
    np.testing.assert_allclose(found, bind(REFERENCE, "logsumexp", x, axis=-1, keepdims=False), rtol=1e-6)
    large = np.array([-200, -104, -88, -87, 88, 89, 200], F32)
    with np.errstate(over="ignore"):
        powers = np.exp(large.astype(np.float64)).astype(F32)
    np.testing.assert_allclose(bind(cpu, "exp", large), powers, rtol=1e-6, atol=1.2e-38)


@pytest.mark.parametrize("dtype", [bfloat16, float16])
def test_half_precision_is_rounded_once(cpu, rng, dtype):
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    wide = bind(cpu, "cast", every, dtype=np.dtype(F32))
    np.testing.assert_array_equal(wide, every.astype(F32))
    with np.errstate(all="ignore"):
        between = [wide * F32(1.0005), wide * F32(0.999)]
        numbers = np.concatenate([rng.integers(0, 2**32, 20000, np.uint32).view(F32), wide, *between])
        want = numbers.astype(dtype)
    narrow = bind(cpu, "cast", numbers, dtype=dtype)
    assert (np.isnan(want) == np.isnan(narrow)).all()
    usual = ~np.isnan(want)
    np.testing.assert_array_equal(narrow[usual].view(np.uint16), want[usual].view(np.uint16))
    x, w = draw(rng, 5, 77).astype(dtype), draw(rng, 77).astype(dtype)
    for name, args, attrs in [
        ("gelu", (x,), {}), ("silu", (x,), {}), ("softmax", (x,), {"axis": -1}), ("log_softmax", (x,), {"axis": 1}),
        ("rms_norm", (x, w), {"eps": 1e-5}), ("layer_norm", (x, w, w), {"eps": 1e-5}), ("swiglu", (x, x[::-1]), {}),
        ("geglu", (np.hstack([x, x[::-1]]),), {}),
    ]:  # fmt: skip
        found, expected = bind(cpu, name, *args, **attrs), bind(REFERENCE, name, *args, **attrs)
        assert found.dtype == dtype
        unit = float(np.finfo(np.float16).eps) if dtype == float16 else 2.0**-7
        np.testing.assert_allclose(found.astype(F32), expected.astype(F32), rtol=2 * unit, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads, width, half", [(1, 2, 1), (3, 64, 32), (2, 80, 17), (4, 128, 64)])
def test_rope(cpu, rng, interleaved, heads, width, half):
    x = draw(rng, 2, 5, heads, width)
    for lines in ((5,), (2, 5), (1, 5)):
        angle = draw(rng, *lines, half)
        check(cpu, "rope", x, np.cos(angle), np.sin(angle), interleaved=interleaved)


@pytest.mark.parametrize("n, k", [(1, 1), (40, 7), (3000, 1), (3000, 50), (70000, 40), (5000, 5000)])
def test_topk(cpu, rng, n, k):
    x = draw(rng, 3, n)
    x[1] = np.round(x[1])  # equal values: the first comes first
    x[2, : n // 3] = np.nan
    x[0, 0], x[0, -1] = -0.0, np.inf
    for found, want in zip(bind(cpu, "topk", x, k=k), bind(REFERENCE, "topk", x, k=k), strict=True):
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("seed, offset", [(0, 0), (2**64 - 1, 7), (5, 2**32 - 3), (1, 2**40)])
def test_random_bits(cpu, seed, offset):
    for shape in ((1,), (3, 7), (33,), (40000,)):
        attrs = {"shape": shape, "seed": seed, "offset": offset, "dtype": np.dtype(F32)}
        found = bind(cpu, "uniform", **attrs)
        np.testing.assert_array_equal(found, bind(REFERENCE, "uniform", **attrs))
        before = stats().get("cpu.normal", 0)
        normal = bind(cpu, "normal", **attrs)
        assert stats()["cpu.normal"] == before + 1 and normal.dtype == F32
        np.testing.assert_array_max_ulp(normal, bind(REFERENCE, "normal", **attrs), 1)
        x = found + 1
        for p in (0.0, 0.1, 0.5):
            drop = {"p": p, "seed": seed, "offset": offset}
            np.testing.assert_array_equal(bind(cpu, "dropout", x, **drop), bind(REFERENCE, "dropout", x, **drop))


@pytest.mark.parametrize("channels", [1, 3, 16, 20, 70])
@pytest.mark.parametrize(
    "window, stride, pad",
    [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (2, 0)), ((1, 4), (5, 1), (0, 3))],
)
def test_pooling(cpu, rng, channels, window, stride, pad):
    settings = {"window": window, "stride": stride, "padding": tuple((p, p) for p in pad)}
    x = rng.integers(-3, 4, (3, 9, 10, channels)).astype(F32)  # whole numbers: many equal, and sums are exact
    for name in ("window_max", "window_sum"):
        np.testing.assert_array_equal(bind(cpu, name, x, **settings), bind(REFERENCE, name, x, **settings))
    y = bind(REFERENCE, "window_max", x, **settings)
    g = rng.integers(-3, 4, y.shape).astype(F32)
    before = stats().get("cpu.window_max_grad", 0)
    found = bind(cpu, "window_max_grad", x, y, g, **settings)
    assert stats()["cpu.window_max_grad"] == before + 1
    np.testing.assert_array_equal(found, bind(REFERENCE, "window_max_grad", x, y, g, **settings))
    x[1, 4, 4] = np.nan
    np.testing.assert_array_equal(bind(cpu, "window_max", x, **settings), bind(REFERENCE, "window_max", x, **settings))


def test_views(cpu, rng):
    wide = draw(rng, 60, 90)
    for x in (wide[::2, ::3], wide.T, wide[:, ::-1], np.broadcast_to(wide[:1], (30, 90)), wide[3:, 5:]):
        np.testing.assert_allclose(bind(cpu, "softmax", x, axis=-1), bind(REFERENCE, "softmax", x, axis=-1), rtol=1e-5)
        np.testing.assert_array_equal(bind(cpu, "relu", x), np.maximum(x, 0))
        np.testing.assert_allclose(bind(cpu, "sum", x, axis=0, keepdims=False), x.sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_not_done_here_falls_back(rng):
    cpu, before = CpuBackend(), stats()
    raw = np.zeros(401, np.uint8)[1:].view(F32)
    assert not raw.flags.aligned
    assert (bind(cpu, "exp", raw) == 1).all()
    for empty in (np.zeros((0, 4), F32), np.zeros((4, 0), F32)):
        assert bind(cpu, "softmax", empty, axis=-1).shape == empty.shape
    np.testing.assert_array_equal(bind(cpu, "relu", np.arange(-2, 3)), [0, 0, 0, 1, 2])
    assert stats() == before


def test_wrong_arguments_are_refused():
    f = np.zeros
    for op, rows, columns, inputs, outputs in [
        ("nothing", 1, 4, (f(4, F32),), (f(4, F32),)),
        ("unary", 1, 4, (f(3, F32),), (f(4, F32),)),
        ("unary", 1, 4, (f(4),), (f(4, F32),)),
        ("unary", 1, 4, (), (f(4, F32),)),
        ("unary", 1, 4, (None,), (f(4, F32),)),
        ("softmax", 2, 2, (f((2, 2), F32),), (f((2, 4), F32)[:, ::2],)),
    ]:
        with pytest.raises((ValueError, BufferError)):
            native.rows(op, rows, columns, 0, inputs, outputs, (), (1,))
    x = f((1, 4, 4, 2), F32)
    with pytest.raises(ValueError, match="outside"):
        native.windows(x, f((1, 9, 9, 2), F32), None, None, (2, 2), (2, 2), (0, 0), True)


def test_the_number_of_threads_changes_no_bit(cpu, rng):
    x, g, w = draw(rng, 3000, 48), draw(rng, 3000, 48), draw(rng, 48)
    picture = draw(rng, 5, 40, 41, 16)
    pool = {"window": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    results = []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            y = bind(cpu, "window_max", picture, **pool)
            results.append([
                bind(cpu, "sum", x, axis=0, keepdims=False),
                *bind(cpu, "batch_norm_train", x, w, w, eps=1e-5),
                *bind(cpu, "group_norm_grad", x, w, g, groups=1, eps=1e-5),
                *bind(cpu, "group_norm_grad", picture, None, picture * 2, groups=4, eps=1e-5),
                *bind(cpu, "rms_norm_grad", x, w, g, eps=1e-5),
                bind(cpu, "scatter_add", x, np.arange(3000) % 7, g),
                bind(cpu, "softmax", x, axis=-1),
                bind(cpu, "dropout", x, p=0.5, seed=1, offset=0),
                bind(cpu, "window_max_grad", picture, y, y * 3, **pool),
            ])  # fmt: skip
    finally:
        native.set_threads(THREADS)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("columns", [1024, 1021])
def test_large_results_are_those_of_their_parts(cpu, rng, columns):
    """From 4 MiB on results go past the caches, where their rows begin at a vector; not a bit depends on it."""
    rows, part = (1 << 20) // columns + 5, 100
    x, g, up = (draw(rng, rows, columns) for _ in range(3))
    w, b, scales = draw(rng, columns), draw(rng, columns), draw(rng, rows)
    targets = rng.integers(0, columns, rows)
    step = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 3}
    for name, args, attrs in [
        ("gelu", (x,), {}), ("silu", (x,), {}), ("activation_grad", (x, g), {"activation": "gelu"}),
        ("swiglu", (x, up), {}), ("swiglu_grad", (x, up, g), {}), ("geglu", (np.hstack([x, up]),), {}),
        ("add", (x, g), {}), ("mul", (x, w), {}), ("div", (x, 3.0), {}), ("adamw_step", (x, g, up, up * up), step),
        ("softmax", (x,), {"axis": -1}), ("softmax_grad", (x, g), {"axis": -1}),
        ("log_softmax", (x,), {"axis": -1}), ("log_softmax_grad", (x, g), {"axis": -1}),
        ("cross_entropy_grad", (x, targets, scales), {}), ("rms_norm", (x, w), {"eps": 1e-5}),
        ("layer_norm", (x, w, b), {"eps": 1e-5}), ("batch_norm", (x, b, abs(w), w, b), {"eps": 1e-5}),
        ("rms_norm_grad", (x, w, g), {"eps": 1e-5}), ("group_norm_grad", (x, w, g), {"groups": 1, "eps": 1e-5}),
    ]:  # fmt: skip
        found = each(bind(cpu, name, *args, **attrs))
        for first in (0, rows - part):
            here = slice(first, first + part)
            parts = [a[here] if isinstance(a, np.ndarray) and len(a) == rows else a for a in args]
            for y, want in zip(found, each(bind(cpu, name, *parts, **attrs)), strict=True):
                if len(y) == rows:  # not a weight's gradient
                    np.testing.assert_array_equal(y[here], want, err_msg=name)
    picture = x.reshape(1, rows, columns) + 5
    check(cpu, "group_norm", picture, w, b, groups=1, eps=1e-5, activation="silu", near=1e-5)
    check(cpu, "group_norm_grad", picture, w, g[None], groups=1, eps=1e-5, near=1e-4)


def test_results_stay_within_their_arrays(cpu, rng):
    """Guards on both sides of what is written, for lengths with every tail."""
    for n in (1, 5, 16, 31, 33, 200):
        memory = np.full(3 * n + 64, 7.0, F32)
        out = memory[32 : 32 + 3 * n].reshape(3, n)
        x, w = draw(rng, 3, n), draw(rng, n)
        for op, inputs, numbers, settings in [
            ("unary", (x,), (), (2,)), ("softmax", (x,), (), ()), ("layer_norm", (x, w, None), (1e-5,), ()),
            ("rms_norm", (x, w), (1e-5,), ()), ("uniform", (), (), (1, 2, 3)),
            ("rope", (x, w[:1], w[:1]), (), (1, 1, 1, 0)),
        ]:  # fmt: skip
            if op == "rope" and n < 2:
                continue
            native.rows(op, 3, n, 0, inputs, (out,), numbers, settings)
            assert (memory[:32] == 7).all() and (memory[32 + 3 * n :] == 7).all(), (op, n)
            assert math.isfinite(float(out.sum()))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("row", [0, 70, 200])
def test_moments_of_what_is_not_finite(cpu, rng, value, row):
    """Wherever it lies, its channel has no mean and no variance, and the others are untouched."""
    x = draw(rng, 300, 20)
    x[row, 7] = value
    y, mean, var = bind(cpu, "batch_norm_train", x, None, None, eps=1e-5)
    assert not np.isfinite(mean[7]) and np.isnan(var[7]) and np.isnan(y[:, 7]).all()
    others = np.delete(np.arange(20), 7)
    want = bind(REFERENCE, "batch_norm_train", x[:, others], None, None, eps=1e-5)
    for found, expected in zip((y[:, others], mean[others], var[others]), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_outlier_in_the_first_row_costs_no_digits(cpu, rng):
    """Moments are summed about the first row of a block: n rows lose at most log2(n) bits by that."""
    x = draw(rng, 1, 500, 32)
    x[0, 0] += 1e4
    check(cpu, "group_norm", x, None, None, groups=8, eps=1e-5, activation=None, near=3e-5)
    check(cpu, "group_norm_grad", x, None, draw(rng, 1, 500, 32), groups=8, eps=1e-5, near=3e-5)


@pytest.mark.parametrize("dtype", [np.dtype(F32), np.dtype(np.int8), bfloat16])
def test_large_moves(cpu, rng, dtype):
    x = draw(rng, 2, 60, 64, 300).astype(dtype)
    for axis, cut in ((-1, 100), (1, 7), (0, 1)):
        pieces = np.split(x, [cut], axis=axis)
        before = stats().get("cpu.concat", 0)
        np.testing.assert_array_equal(bind(cpu, "concat", *pieces, axis=axis).view(np.uint8), x.view(np.uint8))
        assert stats()["cpu.concat"] == before + 1
    for picture, scale in (
        (x, (2, 3)),
        (x[:, ::2, 1::2], (1, 2)),
        (x[:, 0], (2,)),
        (x[:0], (2, 2)),
        (x[..., :3], (2, 2)),
    ):
        np.testing.assert_array_equal(
            bind(cpu, "upsample", picture, scale=scale).astype(F32),
            bind(REFERENCE, "upsample", picture, scale=scale).astype(F32),
        )
    with pytest.raises(ValueError, match="contiguous"):
        native.move(np.zeros((4, 4))[:, ::2], np.zeros((4, 2)))
    with pytest.raises(ValueError, match="same shape"):
        native.move(np.zeros((4, 4)), np.zeros((4, 2)))
