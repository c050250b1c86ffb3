"""Fusion on the cuda device: regions printed as C for cu/fused.cu, on the emulated GPU, against the same record worked
off op by op (on numpy), and against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.device import device as device_of
from zoo.core.fusion import Fusion, fused
from zoo.core.fusion.node import Lazy
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.devices import recording_all
from zoo.core.testing.emulator import emulated

CUDA = emulated()
FUSED, READ, PLAIN = Fusion(CUDA), Fusion("numpy"), device_of("numpy")


@pytest.fixture(autouse=True)
def everything_is_recorded() -> Iterator[None]:
    with recording_all("numpy"):
        yield


def on(device: Any, *arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(device.from_host(a), device) for a in arrays]


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-2, 2, s).astype(np.float32) for s in shapes]


class kernels:
    """Asserts how many kernels a block of statements takes."""

    def __init__(self, wanted: int):
        self.wanted = wanted

    def __enter__(self) -> None:
        self.before = stats().get("fusion.runs", 0)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            assert stats().get("fusion.runs", 0) - self.before == self.wanted


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m = m * 0.9 + g * 0.1
    v = v * 0.999 + g * g * 0.001
    return p * 0.99999 - m / (ops.sqrt(v) + 1e-8) * 0.001, m, v


def test_an_optimizer_step_is_one_kernel_with_three_results() -> None:
    arrays = [np.abs(a) for a in draw(*[(50, 40)] * 4)]
    p, m, v = adamw(*on(FUSED, *arrays))
    with kernels(1):
        found = [p.numpy(), m.numpy(), v.numpy()]
    for a, wanted in zip(found, adamw(*on(PLAIN, *arrays)), strict=True):
        np.testing.assert_allclose(a, wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize("columns", [5, 64, 5000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm", "logsumexp", "var"])
def test_reductions_and_what_spreads_them_are_one_kernel(name: str, columns: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(FUSED, "_kernels", {})
    x, w = draw((2, 3, columns), (columns,))
    weights = {"layer_norm": (w, w), "rms_norm": (w,)}.get(name, ())
    settings = {"axis": -1} if name in ("logsumexp", "var") else {}
    y = getattr(ops, name)(*on(FUSED, x, *weights), **settings)
    with kernels(1):
        found = y.numpy()
    wide = [a.astype(np.float64) for a in (x, *weights)]
    wanted = getattr(ops, name)(*on(PLAIN, *wide), **settings).numpy()
    np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=3e-6)


def test_one_kernel_serves_other_sizes_and_numbers() -> None:
    def f(x: Tensor, k: float) -> Tensor:
        return (x * k + 0.321) / 7.77

    before = len(CUDA.driver._kernels)
    for shape, k in (((40,), 2.0), ((3, 16), 5.0), ((2, 1, 8), -1.0)):
        (x,) = draw(shape)
        np.testing.assert_allclose(f(*on(FUSED, x), k).numpy(), (x.astype(np.float64) * k + 0.321) / 7.77, rtol=2e-6)
    assert len(CUDA.driver._kernels) == before + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_storage(dtype: str) -> None:
    """A chain keeps float32 on the way: it is rounded once, not five times. And what two readers see is rounded."""
    x, y = (a.astype(zoo.dtype(dtype)) for a in draw((30, 48), (48,)))

    def f(a: Tensor, b: Tensor) -> Tensor:
        return ops.maximum(a * b + a, 0.5) * b - a

    found = f(*on(FUSED, x, y))
    exact = f(*on(PLAIN, x.astype(np.float32), y.astype(np.float32))).numpy()
    np.testing.assert_array_equal(found.numpy(), exact.astype(found.dtype))
    for hold in (True, False):
        p, q = on(FUSED, x, x)
        product = p * q
        peak = ops.max(product, axis=-1, keepdims=True)
        hits = ops.equal(product, peak)
        if not hold:
            del product
        peak.numpy()
        assert hits.numpy().any(axis=1).all()


def test_arguments_of_every_layout_and_kind() -> None:
    x, row, column, other = draw((6, 16), (16,), (6, 1), (16, 6))
    small = np.arange(-48, 48, dtype=np.int8).reshape(6, 16)
    truth = x > 0

    def f(x: Tensor, row: Tensor, column: Tensor, turned: Tensor, small: Tensor, truth: Tensor) -> list[Tensor]:
        y = x * row + column - turned.permute_dims(1, 0) + small.astype("float32")
        picked = ops.where(truth, y, row)
        return [y, picked, ops.sum(picked, axis=-1), ops.less(picked, column), ops.mean(x[:, 1::3] * 2, axis=-1)]

    given = (x, row, column, other, small, truth)
    for found, wanted in zip(f(*on(FUSED, *given)), f(*on(READ, *given)), strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=2e-6, atol=2e-6)


def test_nan_and_infinity() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3e38], np.float32)
    for f in (
        lambda t: ops.exp(t) - t,
        lambda t: ops.maximum(t, 0) * 2,
        lambda t: ops.where(ops.isnan(t), 1.0, t) + 0,
        lambda t: ops.sum(t * 1, axis=-1),
        lambda t: ops.max(-t, axis=-1),
        lambda t: ops.min(t * 2, axis=-1),
        lambda t: ops.sigmoid(-t),
    ):
        np.testing.assert_allclose(f(*on(FUSED, x)).numpy(), f(*on(PLAIN, x)).numpy(), rtol=1e-6)


UNARY = [
    ops.neg, ops.tanh, ops.sigmoid, ops.square, ops.relu, ops.silu, ops.erf, lambda x: ops.exp(-ops.abs(x)),
    lambda x: ops.sqrt(ops.abs(x) + 1), lambda x: 1.5 - x, lambda x: ops.mean(x, axis=-1).reshape(*x.shape[:-1], 1),
    lambda x: ops.max(x, axis=-1, keepdims=True), lambda x: ops.sum(x, axis=-1, keepdims=True) / x.shape[-1],
]  # fmt: skip
BINARY = [
    ops.add, ops.sub, lambda a, b: ops.tanh(a) * ops.tanh(b), ops.maximum, ops.minimum,
    lambda a, b: a / (ops.abs(b) + 1), lambda a, b: ops.where(a < b, a, b),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(16))
def test_random_chains(seed: int) -> None:
    """No further from float64 than 20 times what numpy's float32 is, op by op."""
    rng = np.random.default_rng(seed)
    shape = [(7,), (5, 8), (3, 4, 33), (2, 600)][seed % 4]
    arrays = draw(shape, shape[-1:], (*shape[:-1], 1), seed=seed)
    steps = rng.integers(0, 99, (int(rng.integers(3, 16)), 3)).tolist()

    def chain(leaves: list[Tensor]) -> Tensor:
        values: list[Any] = list(leaves)
        for kind, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            op: Any = (UNARY + BINARY)[kind % (len(UNARY) + len(BINARY))]
            values.append(ops.tanh(op(a) if op in UNARY else op(a, b)))
        return values[-1] + values[0]

    wanted = chain(on(PLAIN, *[a.astype(np.float64) for a in arrays])).numpy()
    plain = chain(on(PLAIN, *arrays)).numpy()
    found = chain(on(FUSED, *arrays)).numpy()
    assert (np.abs(found - wanted) <= 20 * np.abs(plain - wanted).max() + 2e-5 * (1 + np.abs(wanted))).all()


def test_fused_leaves_nothing_waiting() -> None:
    (x,) = on(CUDA, *draw((8, 8)))
    with kernels(1):
        y = fused(lambda t: ops.tanh(t * 2) + t)(x)
    assert y.device is CUDA and type(y.handle) is not Lazy
    np.testing.assert_allclose(y.numpy(), np.tanh(x.numpy() * 2) + x.numpy(), rtol=1e-6, atol=1e-6)


def test_gradients() -> None:
    (x,) = draw((4, 32))
    found = []
    for inner in (FUSED, PLAIN):
        autodiff = zoo.Autodiff(inner)
        t = Tensor(autodiff.variable(inner.from_host(x)), autodiff)
        loss = ops.sum(ops.silu(t * 2) / (ops.abs(t) + 1))
        found.append(loss.backward()[t].numpy())
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
