"""Products with weights of half precision on the cpu device, with every instruction set that this machine has.

Weights are widened in registers, never as a whole; the sums are float32. Small whole numbers make every sum exact: then
results are equal bit by bit to those of integers. What rounds x to bfloat16 too is in test_bf16_native.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import zoo
from zoo.core.errors import OpError
from zoo.core.prims import TABLE
from zoo.core.stats import stats

native = pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
from zoo.core.backends.cpu import CpuBackend  # noqa: E402

THREADS = native.threads()
HALVES = {"bf16": zoo.bfloat16, "f16": zoo.float16}


@pytest.fixture(params=HALVES)
def half(request):
    return request.param


def whole(rng, *shape, dtype=np.float32):
    """Whole numbers from -2 to 2 between NaNs: who reads too far will see it in the result."""
    memory = np.full(math.prod(shape) + 34, np.nan, dtype)
    inner = memory[17:-17]
    inner[:] = rng.integers(-2, 3, inner.size).astype(dtype)
    return inner.reshape(shape)


def linear(cpu, x, w, bias=None, activation=None):
    return cpu.bind(TABLE["linear"], (x, w, bias), {"activation": activation})


def products(half):
    return sum(stats().get(f"cpu.gemm_{half}{how}", 0) for how in ("", "_pairs"))


def exact(x, w):
    return x.astype(np.int64) @ w.astype(np.float32).astype(np.int64).T


def test_every_number_of_rows_and_every_tail(cpu, half, rng):
    mr, nr = native.tile()
    for n, k in ((1, 1), (nr // 2, 3), (nr, 16), (nr + 1, 37), (2 * nr - 1, 131)):
        w, bias = whole(rng, n, k, dtype=HALVES[half]), whole(rng, n)
        packed = cpu.pack(w, "linear")
        for m in (*range(1, 2 * mr + 2), 3 * mr - 1, 4 * mr, 7 * mr + 3):
            x = whole(rng, m, k)
            expected = np.maximum(exact(x, w) + bias, 0)
            for weight in (w, packed):
                before = products(half)
                found = linear(cpu, x, weight, bias, "relu")
                np.testing.assert_array_equal(found, expected, err_msg=f"{m}x{n}x{k}")
                assert products(half) == before + 1


def test_nothing_is_written_beside_the_result(cpu, half, rng):
    for m, n, k in ((1, 33, 40), (15, 31, 64), (40, 65, 100)):
        w, x = whole(rng, n, k, dtype=HALVES[half]), whole(rng, m, k)
        memory = np.full(m * n + 66, 1234.5, np.float32)
        out, packed, kind = memory[33:-33].reshape(m, n), cpu.pack(w, "linear"), 1 + (half == "f16")
        for b, columns, stored in ((w.view(np.uint16).T, -1, kind), (packed.buffer, n, 3 if packed.pairs else kind)):
            out[:] = 0
            native.gemm(x, b, out, packed_n=columns, weight=stored)
            np.testing.assert_array_equal(out, exact(x, w))
            assert (memory[:33] == 1234.5).all() and (memory[-33:] == 1234.5).all()


def test_strided_inputs(cpu, half, rng):
    w, x = whole(rng, 60, 80, dtype=HALVES[half]), whole(rng, 2 * 40, 90)
    for rows in (1, 5, 40):
        for weight in (w[::2, ::2], w[::-1, :40], w[:30, 40:], np.asfortranarray(w)[:, 3:43], w.T[10:50, :40].T):
            for left in (x[:rows, :40], x[: 2 * rows : 2, ::-1][:, 5:45], np.asfortranarray(x)[:rows, 1:41]):
                np.testing.assert_array_equal(linear(cpu, left, weight), exact(left, weight))


def test_all_numbers_of_half_precision_are_widened_rightly(cpu, half):
    """All 65,536 of them, subnormal, infinite and NaN: one output each."""
    w = np.arange(1 << 16, dtype=np.uint16).view(HALVES[half])[:, None]
    expected = w.astype(np.float32).T
    for weight in (w, cpu.pack(w, "linear")):
        for rows in (1, 40):
            found = linear(cpu, np.ones((rows, 1), np.float32), weight)
            np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_against_float64(isa, half, rng, monkeypatch):
    """Within 4 sqrt(K) u |x| |w|, u = 2^-24, of the product with the widened weights (Higham & Mary 2019)."""
    monkeypatch.setenv("ZOO_OFF", "bf16")
    cpu = CpuBackend()
    for m, n, k in ((1, 70, 1000), (9, 33, 700), (30, 40, 900), (70, 90, 300)):
        x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(HALVES[half])
        wide = w.astype(np.float64)
        bound = 4 * math.sqrt(k) * 2.0**-24 * (abs(x).astype(np.float64) @ abs(wide).T)
        for weight in (w, cpu.pack(w, "linear")):
            assert (abs(linear(cpu, x, weight) - x.astype(np.float64) @ wide.T) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_not_lost(cpu, half, value):
    w = np.zeros((40, 35), HALVES[half])
    w[3, 34] = value
    for rows in (1, 5, 20, 50):
        for weight in (w, cpu.pack(w, "linear")):
            y = linear(cpu, np.zeros((rows, 35), np.float32), weight, activation="relu")
            assert np.isnan(y[:, 3]).all() and not np.isnan(np.delete(y, 3, axis=1)).any()


def test_the_number_of_threads_changes_no_bit(cpu, half, rng):
    w = rng.normal(size=(300, 500)).astype(HALVES[half])
    xs = [rng.normal(size=(m, 500)).astype(np.float32) for m in (1, 14, 20, 60, 500)]
    results = []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append([linear(cpu, x, weight) for x in xs for weight in (w, cpu.pack(w, "linear"))])
    finally:
        native.set_threads(THREADS)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_packing_loses_nothing(cpu, half, rng):
    for shape in ((33, 17), (1, 1), (64, 200)):
        w = rng.integers(0, 1 << 16, shape).astype(np.uint16).view(HALVES[half])
        packed = cpu.pack(w, "linear")
        assert packed.shape == shape and packed.dtype == w.dtype and packed.isa == cpu.isa
        assert packed.nbytes < 2 * (w.size + 64 * shape[1])
        assert cpu.to_host(packed).dtype == w.dtype and cpu.to_host(packed).tobytes() == w.tobytes()


def test_a_mapped_weight_is_read_where_it_lies(cpu, half, rng, tmp_path):
    w, x = whole(rng, 70, 300, dtype=HALVES[half]), whole(rng, 9, 300)
    (tmp_path / "w").write_bytes(bytes(6) + w.tobytes())
    mapped = np.memmap(tmp_path / "w", np.uint8, "r")[6:].view(w.dtype).reshape(w.shape)
    with pytest.raises(OpError, match="in a mapped file"):
        cpu.pack(mapped, "linear")
    for rows in (1, 2, 9):
        np.testing.assert_array_equal(linear(cpu, x[:rows], mapped), exact(x[:rows], w))
    (tmp_path / "f32").write_bytes(x.tobytes())
    single = np.memmap(tmp_path / "f32", np.float32, "r").reshape(x.shape)
    np.testing.assert_array_equal(cpu.pack(single, "linear").unpack(), x)


def test_empty_products(cpu, half):
    for m, n, k in ((0, 3, 4), (3, 0, 4), (3, 4, 0), (20, 4, 0)):
        x, w, bias = np.ones((m, k), np.float32), np.ones((n, k), HALVES[half]), np.ones(n, np.float32)
        np.testing.assert_array_equal(linear(cpu, x, w, bias), np.ones((m, n)) * (k + 1))


@pytest.mark.parametrize("transpose_a, transpose_b", [(a, b) for a in (False, True) for b in (False, True)])
def test_products_of_half_precision(cpu, half, rng, transpose_a, transpose_b):
    """Either operand or both, batches too, as gradients of such weights multiply them: exact sums, rounded once."""
    dtype = HALVES[half]
    for batch_a, batch_b in (((), ()), ((3,), ()), ((2, 3), (3,)), ((0,), (0,))):
        for m, k, n in ((1, 5, 7), (20, 33, 40)):
            a = whole(rng, *batch_a, *((k, m) if transpose_a else (m, k)))
            b = whole(rng, *batch_b, *((n, k) if transpose_b else (k, n)))
            want = np.matmul(a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b)
            flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
            for left, right in ((a.astype(dtype), b.astype(dtype)), (a, b.astype(dtype)), (a.astype(dtype), b)):
                counter = f"cpu.gemm_{half}" if right.dtype == dtype else "cpu.gemm_f32"
                before = stats().get(counter, 0)
                found = cpu.bind(TABLE["matmul"], (left, right), flags)
                assert stats()[counter] == before + 1
                assert found.dtype == (dtype if left.dtype == right.dtype else np.float32)
                np.testing.assert_array_equal(found.astype(np.float32), want.astype(found.dtype).astype(np.float32))
