"""Products with weights of 8 and 4 bits on the emulated GPU: sums of integers, so that what must come out is known to
the rounding of the scales; and the same integers as on the cpu."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo import nn
from zoo.core.backends.cuda.kernels import quant
from zoo.core.dtype import bfloat16, float16, float32, float64
from zoo.core.errors import DeviceError
from zoo.core.prims.nn import ACTIVATIONS
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing import check as check_cases
from zoo.core.testing import ref
from zoo.core.testing.cases import CASES
from zoo.core.testing.emulator import emulated
from zoo.nn.quantized import quantize

Weight = tuple[np.ndarray, np.ndarray]


@pytest.fixture(params=["int8", "int4"])
def format(request: Any) -> str:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def weight(rng: Any, n: int, k: int, format: str) -> Weight:
    """All codes occur, -128 too, which `quantize` never makes."""
    if format == "int8":
        return rng.integers(-128, 128, (n, k)).astype(np.int8), rng.uniform(0.5, 2, n).astype(float32)
    return rng.integers(0, 256, (n, k // 2)).astype(np.uint8), rng.uniform(-2, 2, (n, k // 32)).astype(float16)


def plain(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return ref.dequantize(q, scale, "int8" if q.dtype == np.int8 else "int4")


def expected(x: np.ndarray, w: np.ndarray, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    """From x rounded as csrc/quant/activations.h does it, in float64; also the sum of the sizes of all terms."""
    x = x.astype(float32)
    largest = abs(x).max(axis=-1, keepdims=True)
    usable = largest >= np.float32(1e-36)
    inverse = np.where(usable, np.float32(127) / np.where(usable, largest, 1), 0).astype(float32)
    rounded = np.rint(x * inverse).astype(float64) * np.where(usable, largest / np.float32(127), 0).astype(float64)
    added = 0.0 if bias is None else bias.astype(float64)
    return rounded @ w.T + added, abs(rounded) @ abs(w).T + abs(added)


def check(
    b: Any,
    x: np.ndarray,
    w: Weight,
    bias: Any = None,
    activation: str | None = None,
    *,
    path: str,
    rounding: float = 64,
) -> None:
    """Off by at most `rounding` units of float32 of the terms' sizes (a sum of groups, and scales), and by the
    rounding of the result; and it went by `path`."""
    format = "int8" if w[0].dtype == np.int8 else "int4"
    before = stats()
    y = b.ops.qlinear(x, *w, bias, format=format, activation=activation)
    moved = {name for name, n in stats().items() if n != before.get(name, 0) and name.startswith("cuda.q")}
    assert moved == {f"cuda.{path}"}
    want, size = expected(x, plain(*w), bias)
    want = ref.ACTIVATIONS[activation](want) if activation else want
    allowed = (
        rounding * 2.0**-24 * size + {float32: 0, float16: 2.0**-10, bfloat16: 2.0**-7}[x.dtype] * abs(want) + 1e-6
    )
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], len(w[0]))
    off = abs(y.astype(float64) - want)
    assert (off <= allowed).all(), f"{x.shape} {w[0].shape}: {off.max()}"


@pytest.mark.parametrize("arch", [90, 75])
def test_few_rows(rng: Any, format: str, arch: int) -> None:
    """Every number of rows, with outputs and inputs that fill warps and vectors and that do not."""
    b = emulated(arch)
    depths = (1, 37, 64, 130, 1040) if format == "int8" else (32, 64, 160, 1056)
    for rows in range(1, 9):
        k, n = depths[rows % len(depths)], (1, 3, 33, 66, 4, 40)[rows % 6]
        check(b, rng.normal(size=(rows, k)).astype(float32), weight(rng, n, k, format), path=f"qgemv_{format}")
    for k in depths:
        bias = rng.normal(size=34).astype(float32)
        check(b, rng.normal(size=(2, k)).astype(float32), weight(rng, 34, k, format), bias, path=f"qgemv_{format}")


@pytest.mark.parametrize("arch", [90, 75])
def test_many_rows(rng: Any, format: str, arch: int) -> None:
    """Tails of a tile's 64 rows, 64 outputs and 64 inputs; several steps, so that all stages come round."""
    b = emulated(arch)
    for m, n, k in [(9, 5, 32), (64, 64, 64), (65, 3, 96), (20, 70, 352)]:
        bias = rng.normal(size=n).astype(float32)
        check(b, rng.normal(size=(m, k)).astype(float32), weight(rng, n, k, format), bias, path=f"qgemm_{format}")
    if format == "int8":
        for k in (1, 37, 130):
            check(b, rng.normal(size=(10, k)).astype(float32), weight(rng, 6, k, format), path="qgemm_int8")


def test_large_tiles(rng: Any, format: str) -> None:
    """Where each multiprocessor (the emulated GPU has four) gets one."""
    b = emulated()
    for m, n, k in [(130, 140, 288), (257, 129, 64)]:
        check(b, rng.normal(size=(m, k)).astype(float32), weight(rng, n, k, format), path=f"qgemm_{format}_large")


FOLLOWS = [*((a, float32) for a in ACTIVATIONS), (None, float16), (None, bfloat16), ("silu", bfloat16)]


@pytest.mark.parametrize("activation, dtype", FOLLOWS, ids=str)
def test_what_follows(rng: Any, format: str, activation: str | None, dtype: np.dtype) -> None:
    b = emulated()
    q, scale = weight(rng, 9, 64, format)
    w = q, (scale * (0.01 if format == "int8" else 0.1)).astype(scale.dtype)
    for rows, path in ((3, "qgemv"), (12, "qgemm")):
        x, bias = rng.normal(size=(rows, 64)).astype(dtype), rng.normal(size=9).astype(dtype if rows == 3 else float32)
        check(b, x, w, bias, activation, path=f"{path}_{format}")


def test_largest_codes_are_summed_exactly() -> None:
    """+-127 against -128 and 127 in all places: sums beyond 2^24 are rounded once, at the end."""
    b, k = emulated(), 2000
    for code in (-128, 127):
        w = np.full((3, k), code, np.int8), np.ones(3, float32)
        for rows in (1, 10):
            y = b.ops.qlinear(np.full((rows, k), -127.0, float32), *w, None, format="int8", activation=None)
            np.testing.assert_array_equal(y, np.float32(-127 * code * k))


def test_rows_without_a_scale(rng: Any, format: str) -> None:
    """NaN and infinity are computed with the weight as it stands for, as the reference does; rows of zeros and of
    numbers below 1e-36 are zero."""
    b = emulated()
    w = weight(rng, 7, 64, format)
    x = rng.normal(size=(12, 64)).astype(float32)
    x[0, 3], x[1, 7], x[2, 63] = np.nan, np.inf, -np.inf
    x[3, :9], x[4] = np.inf, 0
    x[5] = 1e-37
    for rows in (x[:8], x):
        y = b.ops.qlinear(rows, *w, None, format=format, activation=None)
        with np.errstate(invalid="ignore"):
            want = rows[:4].astype(float64) @ plain(*w).T
        np.testing.assert_array_equal(y[:4], want.astype(float32))
        np.testing.assert_array_equal(y[4:6], 0)
        want, size = expected(rows[6:], plain(*w), None)
        assert (abs(y[6:] - want) <= 2.0**-18 * size).all()


def test_views_and_unaligned_weights(rng: Any, format: str) -> None:
    b = emulated()
    q, scale = weight(rng, 20, 128, format)
    bytes_of_64 = 64 if format == "int8" else 32
    groups = scale[:, :2] if format == "int4" else scale
    w = q[:, :bytes_of_64], groups
    wide = rng.normal(size=(30, 66)).astype(float32)
    memory = np.empty(w[0].size + 1, np.uint8)
    unaligned = memory[1:].view(q.dtype).reshape(w[0].shape)
    unaligned[...] = w[0]
    for x, path in ((wide[:5, 1:65], "qgemv"), (wide[::2, :64], "qgemm"), (wide.T[1:65, :12].T, "qgemm")):
        check(b, x, w, path=f"{path}_{format}")
        check(b, x, (unaligned, groups), path=f"{path}_{format}")
        check(b, x, (w[0][::-1], groups[::-1]), path=f"{path}_{format}")


def test_several_products_round_their_rows_once(rng: Any, format: str) -> None:
    b = emulated()
    x = rng.normal(size=(2, 3, 64)).astype(float32)
    each = [(*weight(rng, n, 64, format), bias) for n, bias in ((5, None), (8, rng.normal(size=8).astype(float32)))]
    together = b.ops.qlinears(x, *[part for one in each for part in one], format=format)
    for y, one in zip(together, each, strict=True):
        np.testing.assert_array_equal(y, b.ops.qlinear(x, *one, format=format, activation=None))


def test_the_cpu_adds_up_the_same_integers(rng: Any, format: str) -> None:
    try:
        cpu = zoo.device("cpu")
    except DeviceError as e:
        pytest.skip(str(e))
    b = emulated()
    for rows in (1, 5, 40):
        x, w = rng.normal(size=(rows, 320)).astype(float32), weight(rng, 50, 320, format)
        ours, theirs = (d.ops.qlinear(x, *w, None, format=format, activation=None) for d in (b, cpu))
        size = expected(x, plain(*w), None)[1]
        assert (abs(ours - theirs) <= 4 * 2.0**-24 * size).all()


def test_weights_in_numbers_again(rng: Any, format: str) -> None:
    b = emulated()
    q, scale = weight(rng, 5, 96, format)
    for dtype in (float32, float16, bfloat16):
        before = stats().get("cuda.dequantize", 0)
        w = b.ops.dequantize(q, scale, format=format, dtype=dtype)
        assert stats()["cuda.dequantize"] == before + 1
        np.testing.assert_array_equal(w, plain(q, scale).astype(float32).astype(dtype))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_embedding(rng: Any, dtype: Any) -> None:
    """Rows of the table; NaN where there is none, since a GPU cannot raise."""
    b = emulated()
    q, scale = weight(rng, 11, 37, "int8")
    ids = rng.integers(0, 11, (2, 9)).astype(dtype)
    y = b.ops.qembedding(q, scale, ids)
    np.testing.assert_array_equal(y, plain(q, scale).astype(float32)[ids])
    ids[1, 4] = 11
    assert np.isnan(b.ops.qembedding(q, scale, ids)[1, 4]).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.op in quant.KERNELS and c.differentiable], ids=str)
def test_gradients(case: Any) -> None:
    check_cases.gradients_agree(case, emulated(), case.main_dtype)


class Small(nn.Module):
    def __init__(self) -> None:
        self.embed, self.up, self.down = nn.TiedEmbedding(40, 128), nn.Linear(128, 256), nn.Linear(256, 128, bias=False)

    def __call__(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.embed.head(x + self.down(self.up(x, activation="silu")))


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_a_rounded_model_is_prepared_and_runs_as_on_numpy(to: str) -> None:
    """`prepare` leaves the weights as they are: the kernels read them so."""
    ids = np.arange(12).reshape(1, 12)
    answers = []
    for device in (zoo.device("numpy"), emulated()):
        model = quantize(Small().init(3, zoo.device("numpy")), to).to(device).prepare()
        answers.append(model(zoo.tensor(ids, device=device)).numpy())
    assert np.linalg.norm(answers[1] - answers[0]) < 0.02 * np.linalg.norm(answers[0])


def test_products_that_might_overflow_are_left_to_the_body() -> None:
    b = emulated()
    x = np.zeros((1, quant.MAX_INPUTS + 1), float32)
    w = np.zeros((1, quant.MAX_INPUTS + 1), np.int8), np.ones(1, float32)
    before = stats().get("cuda.qgemv_int8", 0)
    b.ops.qlinear(x, *w, None, format="int8", activation=None)
    assert stats().get("cuda.qgemv_int8", 0) == before
