"""Products on the emulated GPU: which of them go to cuBLAS, and how it is asked; the few rows that need none; float32
times half precision. The emulated cuBLAS reads memory as the real one would, and refuses what lies beyond an array."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from zoo.core.backends.cuda import cublas
from zoo.core.backends.cuda.kernels import gemm
from zoo.core.dtype import HALVES, bfloat16, float16, float32, float64
from zoo.core.prims.nn import ACTIVATIONS
from zoo.core.stats import stats
from zoo.core.testing import check as check_cases
from zoo.core.testing import ref
from zoo.core.testing.cases import CASES
from zoo.core.testing.emulator import EmulationError, emulated

SINGLE = (float32, float16, bfloat16)
EXACT = {
    float32: 2.0**-20,
    float16: 2.0**-10,
    bfloat16: 2.0**-7,
    float64: 2.0**-50,
}  # of the sum of the sizes of all terms


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@contextmanager
def counted(**wanted: int) -> Iterator[None]:
    """Of the counters "cuda.gemm", ... exactly these moved, by so much."""
    names = ("gemm", "gemv", "gemm_split")
    before = stats()
    yield
    after = stats()
    moved = {n: after.get(f"cuda.{n}", 0) - before.get(f"cuda.{n}", 0) for n in names}
    assert {n: by for n, by in moved.items() if by} == wanted


def check(b: Any, x: np.ndarray, w: np.ndarray, bias: Any = None, activation: str | None = None) -> None:
    """linear, against float64: off by at most the rounding of a sum in float32 and of the result."""
    y = b.ops.linear(x, w, bias, activation=activation)
    wide = [None if a is None else a.astype(float64) for a in (x, w, bias)]
    want = wide[0] @ wide[1].T + (0 if bias is None else wide[2])
    size = abs(wide[0]) @ abs(wide[1]).T + (0 if bias is None else abs(wide[2]))
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], len(w))
    # no activation is steeper than 1.13; its own rounding is below that of the result
    off = abs(y.astype(float64) - (ref.ACTIVATIONS[activation](want) if activation else want))
    assert (off <= 1.2 * EXACT[x.dtype] * size + 1e-6).all(), f"{x.shape} {w.shape} {x.dtype} {w.dtype}: {off.max()}"


@pytest.mark.parametrize("w_dtype", SINGLE, ids=str)
@pytest.mark.parametrize("x_dtype", SINGLE, ids=str)
def test_few_rows_are_read_by_gemv(rng: Any, x_dtype: np.dtype, w_dtype: np.dtype) -> None:
    """Every number of rows; outputs and inputs that fill vectors, warps and blocks, and that do not."""
    b = emulated()
    shapes = [(1, 1, 1), (2, 5, 8), (3, 33, 40), (4, 37, 129), (5, 64, 264), (6, 7, 1031), (7, 66, 512), (8, 35, 2056)]
    for rows, n, k in shapes if (x_dtype, w_dtype) == (float32, bfloat16) else shapes[1::6]:
        x, w = rng.normal(size=(rows, k)).astype(x_dtype), rng.normal(size=(n, k)).astype(w_dtype)
        bias = rng.normal(size=n).astype(w_dtype if n == 5 else float32) if n % 2 else None
        with counted(gemv=1):
            check(b, x, w, bias)


def test_gemv_is_cut_up_by_the_size_of_the_product() -> None:
    """16 warps for each of the 4 multiprocessors, where there is work for them."""
    b = emulated()
    assert gemm.few_rows(b, outputs=300, steps=8) == (4, 1)
    assert gemm.few_rows(b, outputs=100, steps=8) == (4, 4)
    assert gemm.few_rows(b, outputs=130, steps=8) == (4, 2)
    assert gemm.few_rows(b, outputs=7, steps=8) == (1, 4)
    assert gemm.few_rows(b, outputs=7, steps=3) == (1, 2)
    assert gemm.few_rows(b, outputs=7, steps=1) == (1, 1)
    assert [gemm.most(n) for n in range(1, 9)] == [1, 4, 4, 4, 8, 8, 8, 8]


def test_gemv_of_rows_that_lie_apart_and_of_unaligned_ones(rng: Any) -> None:
    b = emulated()
    wide = rng.normal(size=(40, 96)).astype(float16)
    x = rng.normal(size=(2, 65)).astype(float32)
    with counted(gemv=4):
        check(b, x[:, :64], wide[:, :64])  # a whole number of vectors, from one boundary to another
        check(b, x[:, :64], wide[:, 3:67])
        check(b, x[:, 1:], wide[::3, 8:72])
        check(b, x[:, :64], np.broadcast_to(wide[:1, :64], (5, 64)))
    with counted(gemm=2, gemm_split=1):  # of outputs that lie side by side, no warp reads one of them at once
        check(b, x[:, :40], np.asfortranarray(wide[:, :40]))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_many_rows_go_to_cublas(rng: Any, activation: str | None) -> None:
    b = emulated()
    for dtype in SINGLE if activation in (None, "silu") else (float32,):
        for n, k in ((6, 40), (9, 7)):
            x, w = rng.normal(size=(2, 7, k)).astype(dtype), rng.normal(size=(n, k)).astype(dtype)
            with counted(gemm=2):
                check(b, x, w, rng.normal(size=n).astype(float32), activation)
                check(b, x, w, None, activation)


def test_what_follows_a_product_keeps_float32(rng: Any) -> None:
    """Rounded once, to the nearest: with a bias that nearly cancels the product, halves in between would show."""
    b = emulated()
    x, w = rng.normal(size=(20, 64)).astype(float16), rng.normal(size=(8, 64)).astype(float16)
    exact = x.astype(float32) @ w.astype(float32).T
    bias = -exact[0]
    y = b.ops.linear(x, w, bias, activation=None)
    assert abs(y[0]).max() <= 2e-5 and abs(exact[0]).max() > 4
    np.testing.assert_allclose(y, exact + bias, rtol=2**-11, atol=2e-5)


# float32 times half precision


@pytest.mark.parametrize("w_dtype", sorted(HALVES, key=str), ids=str)
def test_float32_times_half_precision_keeps_float32(rng: Any, w_dtype: np.dtype) -> None:
    b = emulated()
    for m, n, k in ((9, 5, 33), (40, 17, 256)):
        x = (rng.normal(size=(m, k)) * 10.0 ** rng.integers(-6, 4, (m, k))).astype(float32)
        w = rng.normal(size=(n, k)).astype(w_dtype)
        with counted(gemm=3 if w_dtype == bfloat16 else 2, gemm_split=1):
            check(b, x, w)
        with counted(gemm=3 if w_dtype == bfloat16 else 2, gemm_split=1):
            check(b, x, w, rng.normal(size=n).astype(float32), "relu")


def test_parts_are_the_number() -> None:
    """bfloat16: exactly. float16: 22 bits of numbers down to 2^-29 of the largest of their row."""
    b = emulated()
    rng = np.random.default_rng(0)
    for largest in (1e-24, 1.0, 3e4, 3e38):  # numbers below 1e-38 count as zero on a GPU
        x = (rng.uniform(-1, 1, (12, 100)) * 2.0 ** rng.integers(-20, 1, (12, 100)) * largest).astype(float32)
        x[:, 0] = largest
        eye = np.eye(100, dtype=bfloat16)
        np.testing.assert_allclose(b.ops.linear(x, eye, None), x, rtol=0, atol=1.2e-38)
        np.testing.assert_allclose(b.ops.linear(x, eye.astype(float16), None), x, rtol=2.0**-22)


@pytest.mark.parametrize("w_dtype", sorted(HALVES, key=str), ids=str)
def test_parts_of_infinity_and_nan(rng: Any, w_dtype: np.dtype) -> None:
    b = emulated()
    x, w = rng.normal(size=(12, 40)).astype(float32), rng.normal(size=(6, 40)).astype(w_dtype)
    x[1, 3], x[2, 5], x[4, 7] = np.inf, -np.inf, np.nan
    x[5], x[6, 0] = 0.0, np.float32(1e-40)
    with np.errstate(invalid="ignore"):
        want = x @ w.astype(float32).T
    np.testing.assert_allclose(b.ops.linear(x, w, None), want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def loose() -> Iterator[Any]:
    b = emulated()
    b.tf32 = True
    yield b
    b.tf32 = False


def test_tf32_rounds_to_what_the_weight_is_stored_in(rng: Any, loose: Any) -> None:
    """One product for each; float16 keeps its 11 bits however large the numbers are."""
    x, w = rng.normal(size=(20, 64)).astype(float32), rng.normal(size=(9, 64))
    for dtype, split, bits in ((bfloat16, {}, 8), (float16, {"gemm_split": 1}, 11)):
        w = w.astype(dtype)
        for factor in (1.0, 1e6):
            with counted(gemm=1, **split):
                y = loose.ops.linear(x * float32.type(factor), w, None, activation=None)
            want = x.astype(float64) @ w.astype(float64).T * factor
            off, size = abs(y - want), abs(x) @ abs(w.astype(float32)).T * factor
            assert (off <= 2.0**-bits * size).all() and off.max() > 2.0 ** (-bits - 9) * size.max()


def test_an_architecture_without_bfloat16(rng: Any) -> None:
    b = emulated(75)
    for dtype in HALVES:
        check(b, rng.normal(size=(3, 40)).astype(float32), rng.normal(size=(6, 40)).astype(dtype))
    with counted(gemm=2, gemm_split=1):
        check(b, rng.normal(size=(12, 40)).astype(float32), rng.normal(size=(6, 40)).astype(float16), None, "silu")
    x, w = rng.normal(size=(12, 40)).astype(bfloat16), rng.normal(size=(6, 40)).astype(bfloat16)
    with counted(gemm=1):
        check(b, x, w)
    with counted(gemm=1):
        check(b, x.astype(float32), w)
    with counted(gemm=1):
        y = b.ops.matmul(x.reshape(2, 6, 40), np.stack([w.T, w.T]))
    assert y.dtype == bfloat16


# how cuBLAS is asked


class Asked:
    """Stands for a driver's gemm, and keeps what it was given."""

    def __init__(self, b: Any):
        self.b, self.real, self.calls = b, b.driver.gemm, []

    def __enter__(self) -> list[Any]:
        self.b.driver.gemm = lambda *args, **settings: (self.calls.append(args), self.real(*args, **settings))
        return self.calls

    def __exit__(self, *exception: Any) -> None:
        del self.b.driver.gemm


def test_views_are_multiplied_where_they_lie(rng: Any) -> None:
    b = emulated()
    big = rng.normal(size=(40, 50)).astype(float32)
    left, right = big[3:23, 5:35], big.T[10:40, 2:9]
    with Asked(b) as calls:
        np.testing.assert_allclose(b.ops.matmul(left, right), left @ right, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(b.ops.matmul(left, left, transpose_a=True), left.T @ left, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 and all(np.shares_memory(a, big) for call in calls for a in (call[6], call[9]))
    with Asked(b) as calls:  # every second number, and backwards: that cuBLAS cannot read
        y = b.ops.matmul(big[:20, ::2], big[:25, ::-1])
    np.testing.assert_allclose(y, big[:20, ::2] @ big[:25, ::-1], rtol=1e-4, atol=1e-4)
    assert len(calls) == 1 and not any(np.shares_memory(a, big) for a in (calls[0][6], calls[0][9]))


def test_batches_are_few_calls_without_copies(rng: Any) -> None:
    b = emulated()

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(float32)

    heads = draw(2, 6, 3, 4), draw(2, 5, 3, 4)  # (B, L, H, D)
    for x, y, wanted in [
        (heads[0].transpose(0, 2, 1, 3), heads[1].transpose(0, 2, 3, 1), 2),  # the heads of each of B are one run
        (draw(2, 3, 4, 5), draw(2, 3, 5, 6), 1),
        (draw(7, 1, 4, 5), draw(3, 5, 6), 3),
        (draw(4, 5), draw(2, 3, 5, 6), 1),
        (draw(2, 3, 4, 5), draw(6, 5).T, 1),  # one matrix for all: its rows are those of the whole batch
        (np.broadcast_to(draw(4, 5), (2, 3, 4, 5)), draw(1, 1, 5, 6), 1),
        (draw(3, 2, 4, 5).swapaxes(0, 1), draw(2, 3, 5, 6), 2),
    ]:
        with Asked(b) as calls:
            z = b.ops.matmul(x, y)
        np.testing.assert_allclose(z, np.matmul(x, y), rtol=1e-4, atol=1e-5)
        assert len(calls) == wanted, (x.shape, y.shape)
        for call in calls:
            assert np.shares_memory(call[9], x) and np.shares_memory(call[6], y), (x.shape, y.shape)


def test_sizes_of_one_have_any_stride(rng: Any) -> None:
    b = emulated()
    memory = rng.normal(size=(30, 30)).astype(float32)
    for x, y in [
        (memory[:12, 3:4], memory[3:4, :9]),
        (memory[:12, ::7][:, 1:2], memory[::9][1:2, :9]),
        (memory.T[:12, 3:4], memory.T[3:4, :9]),
        (memory[4:5, :12], memory[:12, 7:8]),
    ]:
        batched = b.ops.matmul(np.stack([x, x]), np.stack([y, y]))
        np.testing.assert_allclose(batched[1], x @ y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(b.ops.matmul(x, y), x @ y, rtol=1e-4, atol=1e-4)


def test_products_are_captured_as_kernels_are(rng: Any) -> None:
    b = emulated()
    x, w = rng.normal(size=(12, 40)).astype(float32), rng.normal(size=(6, 40)).astype(bfloat16)
    with b.driver.capture() as graph:
        y = b.ops.linear(x, w, None)
    assert np.isnan(y).all()
    for _ in range(2):
        x += 1
        graph.launch()
        np.testing.assert_allclose(y, x @ w.astype(float32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [c for c in CASES if c.op in gemm.KERNELS and c.differentiable], ids=str)
def test_gradients(case: Any) -> None:
    check_cases.gradients_agree(case, emulated(), case.main_dtype)


def test_float64_stays_so(rng: Any) -> None:
    b = emulated()
    x, y = rng.normal(size=(3, 40)), rng.normal(size=(40, 9))
    with counted(gemm=3):
        np.testing.assert_allclose(b.ops.matmul(x, y), x @ y, rtol=1e-13)
        np.testing.assert_allclose(b.ops.matmul(x.astype(float32), y), x.astype(float32) @ y, rtol=1e-13)
        np.testing.assert_allclose(b.ops.linear(x, y.T, None, activation="relu"), np.maximum(x @ y, 0), rtol=1e-13)


# the emulated cuBLAS, and the real one's bindings

A, C = np.arange(12, dtype=float32).reshape(3, 4), np.zeros((3, 3), float32)


def asked(**changed: Any) -> dict[str, Any]:
    """c = a' a for the columns that A's memory holds, (4, 3)."""
    usual = {
        "transpose_a": True, "transpose_b": False, "m": 3, "n": 3, "k": 4, "alpha": 1.0, "a": A, "lda": 4,
        "stride_a": 0, "b": A, "ldb": 4, "stride_b": 0, "beta": 0.0, "c": C, "ldc": 3, "stride_c": 0, "batch": 1,
        "tf32": False,
    }  # fmt: skip
    return {**usual, **changed}


def test_the_emulated_cublas_reads_columns() -> None:
    driver = emulated().driver
    c = np.full((3, 3), np.nan, float32)
    driver.gemm(**asked(c=c))
    np.testing.assert_array_equal(c, A @ A.T)
    driver.gemm(**asked(c=c, alpha=2.0, beta=-1.0))
    np.testing.assert_array_equal(c, A @ A.T)
    wide = np.full((2, 3, 5), 7, float32)
    driver.gemm(**asked(a=np.stack([A, A + 1]), stride_a=12, c=wide, ldc=5, stride_c=15, batch=2))
    np.testing.assert_array_equal(wide[1, :, :3], A @ (A + 1).T)
    assert (wide[:, :, 3:] == 7).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"lda": 3}, {"lda": 5}, {"k": 5, "lda": 5, "ldb": 5}, {"m": 4}, {"ldc": 4}, {"ldc": 2}, {"n": 0},
        {"a": A[::-1]}, {"batch": 2, "stride_a": 1}, {"batch": 2},
        {"batch": 2, "c": np.zeros((2, 3, 3), float32), "stride_c": 8},
        {"b": A.astype(float16)}, {"c": C.astype(float16)}, {"c": C.astype(float64)}, {"stride_a": -1, "batch": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_cublas_would_not_do_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(EmulationError):
        emulated().driver.gemm(**asked(**changed))


class Bindings(types.ModuleType):
    """cupy.cuda.cublas with the signatures that the wheel of CuPy 14.2 documents, and the emulated product behind."""

    CUBLAS_GEMM_DEFAULT = -1

    def __init__(self, arrays: list[np.ndarray]):
        super().__init__("cupy.cuda.cublas")
        self.at = {a.ctypes.data: a for a in arrays}
        self.modes: list[int] = []
        self.compute: list[int] = []

    def setMathMode(self, handle: int, mode: int) -> None:
        self.modes.append(mode)

    def gemmEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc,
               computeType, algo):  # fmt: skip
        self.gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C,
                                  Ctype, ldc, 0, 1, computeType, algo)  # fmt: skip

    def gemmStridedBatchedEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb,
                             strideB, beta, C, Ctype, ldc, strideC, batchCount, computeType, algo):  # fmt: skip
        number = ctypes.c_double if computeType == 70 else ctypes.c_float
        one, two = (number.from_address(at).value for at in (alpha, beta))
        a, b, c = (self.at[at] for at in (A, B, C))
        named = {0: float32, 1: float64, 2: float16, 14: bfloat16}  # cudaDataType of library_types.h
        assert handle == 17 and algo == -1 and [named[t] for t in (Atype, Btype, Ctype)] == [x.dtype for x in (a, b, c)]
        self.compute.append(computeType)
        emulated().driver.gemm(transa, transb, m, n, k, one, a, lda, strideA, b, ldb, strideB, two, c, ldc, strideC,
                               batchCount, tf32=False)  # fmt: skip


class OnGpu(np.ndarray):
    """An array that has its address where CuPy's have it."""

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)


def test_cupys_bindings_are_called_as_the_wheel_has_them(monkeypatch: Any, rng: Any) -> None:
    """68, 70 and 77: CUBLAS_COMPUTE_32F, _64F, _32F_FAST_TF32 of cublas_api.h; 16 forbids sums in half precision."""
    for dtype, out, batch, tf32, compute in [
        (float32, float32, 1, False, 68), (float32, float32, 3, True, 77), (float16, float16, 3, False, 68),
        (bfloat16, float32, 1, True, 68), (float64, float64, 2, True, 70),
    ]:  # fmt: skip
        a, b = (rng.normal(size=(batch, *s)).astype(dtype).view(OnGpu) for s in ((4, 5), (6, 5)))
        c = np.ones((batch, 6, 4), out).view(OnGpu)
        bindings = Bindings([a, b, c])
        monkeypatch.setattr(cublas, "_library", lambda bindings=bindings: bindings)
        cublas.gemm(17, True, False, 4, 6, 5, 2.0, a, 5, 20, b, 5, 30, 1.0, c, 4, 24, batch, tf32=tf32)
        want = 2 * np.asarray(b, float64) @ np.asarray(a, float64).swapaxes(1, 2) + 1
        np.testing.assert_allclose(np.asarray(c, float64), want, rtol=2e-2 if out == float16 else 1e-2, atol=1e-2)
        assert bindings.compute == [compute] and bindings.modes == [16]


def test_without_cublas_it_says_what_to_install(monkeypatch: Any) -> None:
    from zoo.core.errors import DeviceError

    monkeypatch.setitem(sys.modules, "cupy", None)
    cublas._library.cache_clear()
    with pytest.raises(DeviceError, match="does not find cuBLAS"):
        cublas._library()
