"""The row-wise kernels on an emulated GPU, where the op table's small cases do not reach: rows of every length of team,
columns in several parts, views that begin between multiples of 16 bytes, another order of threads, indices out of
range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.core import ops
from zoo.core.backends.cuda.kernels import activation, index, norm, optim, random, reduce, rope, softmax, window
from zoo.core.device import device as device_of
from zoo.core.dtype import bfloat16, float16, float32, float64
from zoo.core.errors import ShapeError
from zoo.core.stats import stats
from zoo.core.testing import check, ref
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES
from zoo.core.testing.cases.arrays import LOGSUM
from zoo.core.testing.cases.nn import TWICE
from zoo.core.testing.devices import opened
from zoo.core.testing.emulator import CudaBackend, EmulatedDriver
from zoo.core.testing.tol import EXACT, SUM, nmse, ulp

FAMILIES = (activation, index, norm, optim, random, reduce, rope, softmax, window)
OPS = {name for family in FAMILIES for name in family.KERNELS}


@pytest.fixture(scope="module")
def device() -> Any:
    with opened("cuda:emulated") as found:
        yield found


def used(name: str, run: Any) -> Any:
    """What `run` returns; the kernel `name` took part."""
    before = stats().get(f"cuda.{name}", 0)
    out = run()
    assert stats().get(f"cuda.{name}", 0) > before, f"{name} ran without its kernel"
    return out


def rows(cases: Any) -> Any:
    return pytest.mark.parametrize("case, dtype", [pytest.param(c, d, id=f"{c}-{d.name}") for c, d in cases])


# A warp has rows of up to 1024 columns, 256 threads up to 4096, 1024 threads up to 16384; longer ones are read again.
# Odd ones are read value by value.
LENGTHS = ((9, 1000, float32), (3, 1025, float32), (2, 4096, bfloat16), (2, 5003, float16), (1, 16392, bfloat16))
LONG_SHARES = ulp(32, "a sum of thousands of exponentials, of which each is a small share", floor=2.0**-20)


def _long(n: int, c: int) -> list[Case]:
    return [
        Case(f"softmax[{c}]", ops.softmax, lambda r: (r.f(n, c),), ref.softmax, LONG_SHARES),
        Case(f"log_softmax[{c}]", ops.log_softmax, lambda r: (r.f(n, c),), lambda x: np.log(ref.softmax(x)),
             ulp(32, "a difference of values near 10", floor=8.0)),
        Case(f"logsumexp[{c}]", lambda x: ops.logsumexp(x, axis=-1), lambda r: (r.f(n, c),),
             lambda x: ref.logsumexp(x, axis=-1), LOGSUM),
        Case(f"cross_entropy[{c}]", ops.cross_entropy, lambda r: (r.f(n, c), r.i(n, below=c)), ref.cross_entropy,
             LOGSUM, result=float32),
        Case(f"layer_norm[{c}]", ops.layer_norm, lambda r: (r.f(n, c) + 20, r.f(c), r.f(c)),
             lambda x, w, b: ref.standardised(x, -1, 1e-5) * w + b,
             ulp(64, "values near 20: an ulp of 20 over a deviation of 2", floor=1.0)),
        Case(f"rms_norm[{c}]", ops.rms_norm, lambda r: (r.f(n, c), r.f(c)), lambda x, w: ref.rms_norm(x, w, 1e-5),
             TWICE),
    ]  # fmt: skip


LONG = [(case, dtype) for n, c, dtype in LENGTHS for case in _long(n, c)]


@rows(LONG)
def test_rows_of_any_length(device: Any, case: Case, dtype: Any) -> None:
    used(case.op, lambda: check.value(case, device, dtype))


@rows([(c, d) for c, d in LONG if c.op != "logsumexp"])
def test_gradients_of_rows_of_any_length(device: Any, case: Case, dtype: Any) -> None:
    used(f"{case.op}_grad", lambda: check.gradients_agree(case, device, dtype))


# Down columns: a part has 128 rows or more of a tile of 8 vectors (1024 of one vector), so these have several parts,
# whose tiles and rows end in the middle.
FAR = nmse(1e-9, 1e-3, 1e-1, 1e-22, "values near 200: an ulp of 200 over a deviation of 2", floor=0.01)
COLUMNS = [
    (Case("group_norm[parts, far from 0]", lambda x, w, b: ops.group_norm(x, w, b, 5),
          lambda r: (r.f(2, 300, 40) + 200, r.f(40), r.f(40)), lambda x, w, b: ref.group_norm(x, w, b, 5, 1e-5),
          ulp(16, "values near 200: an ulp of 200 over a deviation of 2", floor=256.0), gradient=FAR), float32),
    (Case("group_norm[parts, silu]", lambda x, w, b: ops.group_norm(x, w, b, 3, activation="silu"),
          lambda r: (r.f(1, 20, 15, 72), r.f(72), r.f(72)),
          lambda x, w, b: ref.ACTIVATIONS["silu"](ref.group_norm(x, w, b, 3, 1e-5)),
          ulp(24, "a mean over thousands of values", floor=1.0)), bfloat16),
    (Case("batch_norm_train[few channels]", lambda x, w, b: ops.batch_norm_train(x, w, b)[0],
          lambda r: (r.f(2100, 3), r.f(3), r.f(3)), lambda x, w, b: ref.standardised(x, (0,), 1e-5) * w + b,
          ulp(24, "a mean over thousands of values", floor=1.0)), float32),
    (Case("batch_norm_train[odd channels]", lambda x, w, b: ops.batch_norm_train(x, w, b)[0],
          lambda r: (r.f(3, 9, 10, 21), r.f(21), r.f(21)), lambda x, w, b: ref.standardised(x, (0, 1, 2), 1e-5) * w + b,
          ulp(24, "a mean over hundreds of values", floor=1.0)), float16),
    (Case("batch_norm[parts]", lambda x, m, v, w, b: ops.batch_norm(x, m, v, w, b),
          lambda r: (r.f(700, 24), r.f(24), r.f(24, low=0.5), r.f(24), r.f(24)),
          lambda x, m, v, w, b: (x - m) / np.sqrt(v + 1e-5) * w + b,
          ulp(24, "differences and products of values up to 30", floor=32.0), grad=False), float16),
    (Case("layer_norm[many rows]", ops.layer_norm, lambda r: (r.f(300, 20), r.f(20), r.f(20)),
          lambda x, w, b: ref.standardised(x, -1, 1e-5) * w + b,
          ulp(24, "a root and two products", floor=1.0)), float32),
    (Case("rms_norm[many rows]", ops.rms_norm, lambda r: (r.f(300, 20), r.f(20)), lambda x, w: ref.rms_norm(x, w, 1e-5),
          TWICE), bfloat16),
]  # fmt: skip


@rows(COLUMNS)
def test_columns_in_parts(device: Any, case: Case, dtype: Any) -> None:
    used(case.op, lambda: check.value(case, device, dtype))
    if case.differentiable:
        name = {"batch_norm_train": "group_norm"}.get(case.op, case.op)
        used(f"{name}_grad", lambda: check.gradients_agree(case, device, dtype))


SHAPE = (5, 70, 3, 33)


def _reduction(name: str, shape: Any, axis: Any) -> Case:
    face, want = getattr(ops, name), getattr(np, name)
    return Case(
        f"{name}[{shape}, {axis}]",
        lambda x: face(x, axis=axis),
        lambda r: (r.f(*shape, low=0),),  # of one sign: a sum of thousands says something
        lambda x: want(x, axis=axis),
        SUM if name in ("sum", "mean") else EXACT,
    )


REDUCTIONS = [
    *[(_reduction("sum", SHAPE, axis), float32) for axis in (0, 1, 2, 3, (0, 2), (1, 3), (0, 1, 2), None)],
    (_reduction("sum", (40001,), None), float32),
    (_reduction("mean", (2, 40000), 1), bfloat16),
    (_reduction("mean", (300, 17), 0), float16),
    (_reduction("mean", SHAPE, (0, 2)), bfloat16),
    (_reduction("max", (3, 33000), 1), float16),
    (_reduction("max", (9, 1100), 1), float32),
    (_reduction("min", (2, 300, 16), 1), float32),
]


@rows(REDUCTIONS)
def test_reductions_of_any_axes(device: Any, case: Case, dtype: Any) -> None:
    used(case.op, lambda: check.value(case, device, dtype))


def placed(device: Any, *arrays: np.ndarray) -> list[Any]:
    return [device.from_host(a) for a in arrays]


@pytest.mark.parametrize("columns", [700, 1500])
def test_extremes_find_nan_and_the_first_of_equals(device: Any, columns: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (5, columns)).astype(np.float32)
    x[3, columns - 5 :: 2] = np.nan
    x[4] = -np.inf
    (h,) = placed(device, x)
    for name in ("argmax", "argmin"):
        got = used(name, lambda name=name: getattr(device.ops, name)(h, axis=-1, keepdims=False))
        assert np.array_equal(got, getattr(np, name)(x, axis=-1))
    for name in ("max", "min"):
        assert np.array_equal(getattr(device.ops, name)(h, axis=1), getattr(np, name)(x, axis=1), equal_nan=True)
        assert np.array_equal(getattr(device.ops, name)(h, axis=0), getattr(np, name)(x, axis=0), equal_nan=True)


def test_running_sums_pass_from_one_step_of_the_block_to_the_next(device: Any) -> None:
    x = np.random.default_rng(0).integers(-4, 5, (2, 2500)).astype(np.float32)
    got = used("cumsum", lambda: device.ops.cumsum(device.from_host(x), axis=1))
    assert np.array_equal(got, np.cumsum(x, axis=1))  # whole numbers: exact in any order


@pytest.mark.parametrize(
    "columns, k, dtype",
    [(4096, 4096, float32), (4097, 1, float32), (9000, 50, bfloat16), (9000, 4096, float16), (5, 5, float32)],
)
def test_the_k_largest_of_long_rows(device: Any, columns: int, k: int, dtype: Any) -> None:
    """Ties by the hundred (halves have few values), infinities, NaN and both zeros, against numpy's stable sort."""
    x = np.random.default_rng(columns).uniform(-9, 9, (2, columns)).astype(dtype)
    x[0, :: max(columns // 40, 2)] = -np.inf
    x[1, 1 :: max(columns // 4, 2)] = np.nan
    x[1, 2], x[1, 3], x[1, 4] = np.inf, -0.0, 0.0
    values, places = used("topk", lambda: device.ops.topk(device.from_host(x), k=k))
    order = np.argsort(-x.astype(np.float32), axis=-1, kind="stable")[:, :k]
    assert np.array_equal(places, order)
    assert np.take_along_axis(x, order, -1).tobytes() == values.tobytes()


def test_the_k_largest_where_nearly_all_are_equal(device: Any) -> None:
    """The k-th key is told from its equals by place alone: all eight passes."""
    x = np.full((1, 6000), 2.0, np.float32)
    x[0, 77] = 3
    _, places = device.ops.topk(device.from_host(x), k=300)
    assert places.tolist() == [[77, *[i for i in range(300) if i != 77][:299]]]


POOLS = [((2, 9, 11, 19), (3, 3), (2, 2), ((1, 1), (1, 0))), ((1, 6, 8, 16), (2, 3), (2, 3), ((0, 0), (0, 1))),
         ((2, 13, 5), (4,), (1,), ((3, 2),))]  # fmt: skip


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("shape, window, stride, padding", POOLS)
def test_pooling_as_the_reference(device: Any, shape: Any, window: Any, stride: Any, padding: Any, dtype: Any) -> None:
    """Whole numbers of which many are equal: sums are exact, and the gradient goes to the first of equals."""
    rng, numpy = np.random.default_rng(1), device_of("numpy")
    x = rng.integers(-2, 3, shape).astype(dtype)
    x.reshape(-1)[x.size // 2] = np.nan
    settings = {"window": window, "stride": stride, "padding": padding}
    for name in ("window_max", "window_sum"):
        got = used(name, lambda name=name: getattr(device.ops, name)(device.from_host(x), **settings))
        want = getattr(numpy.ops, name)(x, **settings)
        assert np.array_equal(got.astype(np.float32), want.astype(np.float32), equal_nan=True)
    y = numpy.ops.window_max(x, **settings)
    g = rng.integers(-4, 5, y.shape).astype(dtype)
    got = used("window_max_grad", lambda: device.ops.window_max_grad(*placed(device, x, y, g), **settings))
    assert np.array_equal(got, numpy.ops.window_max_grad(x, y, g, **settings))


# Memory


def shifted(array: np.ndarray, device: Any) -> Any:
    """The same values one place further on: in one run, but not from a multiple of 16 bytes on."""
    buffer = np.concatenate([np.full(1, 77).astype(array.dtype), array.reshape(-1)])
    return device.from_host(buffer)[1:].reshape(array.shape)


@rows([(c, d) for c in CASES if c.op in OPS and not c.source for d in (float32, float16) if d in c.dtypes])
def test_views_that_begin_between_multiples_of_16_bytes(device: Any, case: Case, dtype: Any) -> None:
    args = case.draw(dtype)
    check.compare(case, check.run(case, device, args, shifted), args, dtype, "shifted")


WIDE = [c for c, d in LONG if d == float32] + [
    Case(f"{name}[whole vectors]", face, lambda r, n=n: tuple(r.f(3, 64) for _ in range(n)), want,
         ulp(8, "products of values up to 3", halves=1.5, floor=1.0))
    for name, face, n, want in (
        ("swiglu", ops.swiglu, 2, lambda a, b: ref.ACTIVATIONS["silu"](a) * b),
        ("gelu", ops.gelu, 1, ref.ACTIVATIONS["gelu"]),
    )
]  # fmt: skip


@rows([(c, d) for c in WIDE for d in (float32, bfloat16)])
def test_whole_vectors_that_are_shifted(device: Any, case: Case, dtype: Any) -> None:
    """Sizes that divide, so that only where memory begins speaks against vectors."""
    args = case.draw(dtype)
    check.compare(case, check.run(case, device, args, shifted), args, dtype, "shifted")


def test_another_order_of_threads_gives_the_same_bits(device: Any) -> None:
    """No result depends on which thread comes first."""
    other = CudaBackend(EmulatedDriver(90, seed=5), "cuda:emulated")
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(2, 260, 24)).astype(np.float32) for _ in range(2))
    w = rng.normal(size=24).astype(np.float32)
    row = rng.normal(size=(2, 6000)).astype(np.float32)
    lines, updates = rng.integers(0, 4, 200).astype(np.int32), rng.normal(size=(200, 5)).astype(np.float32)

    def results(b: Any) -> list[Any]:
        o, put = b.ops, b.from_host
        return [
            *o.group_norm_grad(put(x), put(w), put(g), groups=3, eps=1e-5),
            *o.rms_norm_grad(put(x), put(w), put(g), eps=1e-5),
            o.softmax(put(row), axis=-1),
            o.sum(put(x), axis=(0, 1), keepdims=False),
            *o.topk(put(row), k=40),
            o.cumsum(put(row), axis=1),
            o.scatter_add(put(updates[:4]), put(lines), put(updates)),
        ]

    for a, b in zip(results(device), results(other), strict=True):
        assert a.tobytes() == b.tobytes()


def test_updates_are_added_in_their_order(device: Any) -> None:
    """As numpy adds them: the sum of numbers that cancel says in which order it was made."""
    rng = np.random.default_rng(0)
    x = np.zeros((3, 7), np.float32)
    updates = (rng.normal(size=(90, 7)) * 10.0 ** rng.integers(-6, 7, (90, 1))).astype(np.float32)
    lines = rng.integers(0, 3, 90).astype(np.int64)
    want = x.copy()
    np.add.at(want, lines, updates)
    got = used("scatter_add", lambda: device.ops.scatter_add(*placed(device, x, lines, updates)))
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1])
def test_an_index_out_of_range_is_an_error_and_touches_nothing(device: Any, wrong: int) -> None:
    o, x = device.ops, device.from_host(np.ones((5, 3), np.float32))
    for name, indices, rest, attrs in (
        ("take", [0, wrong], (), {}),
        ("gather", [[0, 1, wrong]], (), {"axis": 0}),
        ("scatter_add", [wrong, 1], (np.ones((2, 3), np.float32),), {}),
    ):
        places = device.from_host(np.array(indices, np.int32))
        with pytest.raises(ShapeError, match="the axis holds 0 to 4"):
            getattr(o, name)(x, places, *placed(device, *rest), **attrs)
        assert np.array_equal(
            o.take(x, device.from_host(np.array([4], np.int32))), [[1, 1, 1]]
        )  # and the next call works
    targets = device.from_host(np.array([0, wrong], np.int64))
    logits = device.from_host(np.ones((2, 5), np.float32))
    with pytest.raises(ShapeError, match="the axis holds 0 to 4"):
        o.cross_entropy(logits, targets)
    with pytest.raises(ShapeError, match="the axis holds 0 to 4"):
        o.cross_entropy_grad(logits, targets, device.from_host(np.ones(2, np.float32)))


def test_a_captured_lookup_waits_for_nothing(device: Any) -> None:
    """A replay looks up what the indices are by then; one that is out of range gives zeros."""
    x, places = placed(device, np.arange(12, dtype=np.float32).reshape(4, 3), np.array([1, 2], np.int32))
    with device.driver.capture() as graph:
        y = device.ops.take(x, places)
    places[:] = [3, 4]
    graph.launch()
    assert y.tolist() == [[9, 10, 11], [0, 0, 0]]
    with pytest.raises(ShapeError, match="the axis holds 0 to 3"):
        device.ops.take(x, places)
    fault = device.index_fault
    assert not fault.any(), "the error was told"
    graph.launch()
    assert device.index_fault is fault and fault.any(), "a replay writes where it did when it was recorded"
    fault.fill(0)


# Random numbers


@pytest.mark.parametrize("name", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [float32, float16, bfloat16], ids=str)
def test_random_numbers_are_those_of_every_device(device: Any, name: str, dtype: Any) -> None:
    """Several blocks of threads, an end within four words, blocks that pass 2^32, a key whose top bits are set."""
    settings = {"shape": (3, 1001), "seed": 2**63 + 2**31 + 9, "offset": 2**32 - 100, "dtype": dtype}
    got = used(name, lambda: getattr(device.ops, name)(**settings))
    want = getattr(device_of("numpy").ops, name)(**settings)
    if name == "uniform":
        assert got.tobytes() == want.tobytes()
    wrong = ulp(1, "two libraries' logarithms may round to neighbouring values").error(got, want.astype(float64))
    assert not wrong, wrong


def test_dropout_drops_what_every_device_drops(device: Any) -> None:
    x = np.random.default_rng(0).normal(size=(7, 333)).astype(np.float32)
    settings = {"p": 0.3, "seed": 11, "offset": 5}
    got = used("dropout", lambda: device.ops.dropout(device.from_host(x), **settings))
    assert np.array_equal(got, device_of("numpy").ops.dropout(x, **settings))


@pytest.mark.parametrize("dtype", [float32, float16, bfloat16], ids=str)
def test_adamw_of_parameters_in_any_storage(device: Any, dtype: Any) -> None:
    """Moments in float32 beside parameters in half precision, and an end within four numbers."""
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=(33, 31)).astype(dtype) for _ in range(2))
    m, v = rng.normal(size=p.shape).astype(np.float32), rng.uniform(size=p.shape).astype(np.float32)
    settings = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    got = used("adamw_step", lambda: device.ops.adamw_step(*placed(device, p, g, m, v), **settings))
    want = device_of("numpy").ops.adamw_step(p, g, m, v, **settings)
    for a, b in zip(got, want, strict=True):
        wrong = ulp(8, "two products, a root and a quotient", floor=0.1).error(a, b.astype(float64))
        assert not wrong and a.dtype == b.dtype, wrong


def test_every_op_of_these_files_runs_by_its_kernel(device: Any) -> None:
    """In float32 and both half precisions the table's first case of each op does not pass the kernel by."""
    counted = {"embedding": "take", "sort": "topk"}
    for name in sorted(OPS):
        cases = [c for c in CASES if c.op == name and "empty" not in c.name and "scalar" not in c.name]
        for dtype in (float32, float16, bfloat16) if cases else ():
            if dtype in cases[0].dtypes:
                args = cases[0].draw(dtype)
                used(counted.get(name, name), lambda c=cases[0], a=args: check.run(c, device, a))
