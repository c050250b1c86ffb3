"""Fusion: what is recorded, when and in how many passes it is calculated, and its values against the inner device."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.core import ops
from zoo.core.device import device as device_of
from zoo.core.errors import ShapeError
from zoo.core.fusion import Fusion, fused
from zoo.core.fusion import device as fusion_device
from zoo.core.fusion.node import Lazy
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.devices import recording_all

pytest.importorskip("zoo.core.backends.cpu._native", reason="the native kernels were not built")
CPU = device_of("cpu")


@pytest.fixture(autouse=True)
def everything_is_recorded():
    with recording_all(), recording_all("numpy"):
        yield


FUSED, READ = Fusion("cpu"), Fusion("numpy")  # numpy has no interpreter: its record is worked off op by op


def on(device: Any, *arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(device.from_host(a), device) for a in arrays]


def draw(*shapes: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-2, 2, s).astype(dtype) for s in shapes]


class runs:
    """Asserts how often the interpreter ran in a block."""

    def __init__(self, wanted: int):
        self.wanted = wanted

    def __enter__(self) -> None:
        self.before = stats().get("fusion.runs", 0)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            assert stats().get("fusion.runs", 0) - self.before == self.wanted


def close(found: Tensor, wanted: np.ndarray, units: float = 16) -> None:
    assert found.shape == wanted.shape
    near = units * 2.0**-24 * (1 + np.abs(wanted))
    off = np.abs(found.numpy().astype(np.float64) - wanted)
    assert (off <= near).all(), float((off / near).max())


# ---- in how many passes


def adamw(p, g, m, v):
    m = m * 0.9 + g * 0.1
    v = v * 0.999 + g * g * 0.001
    return p * 0.99999 - m / (ops.sqrt(v) + 1e-8) * 0.001, m, v


def test_an_optimizer_step_is_one_pass_with_three_results():
    arrays = [np.abs(a) for a in draw(*[(50, 40)] * 4)]
    p, m, v = adamw(*on(FUSED, *arrays))
    with runs(1):
        first = p.numpy()
    with runs(0):
        second, third = m.numpy(), v.numpy()
    for found, wanted in zip((first, second, third), adamw(*on(CPU, *arrays)), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize("columns", [5, 64, 700, 5000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm", "logsumexp", "var"])
def test_reductions_and_what_spreads_them_are_one_pass(name, columns, monkeypatch):
    """The bodies of these ops, where the inner device has no kernel of its own for them."""
    monkeypatch.setattr(FUSED, "_kernels", {})
    x, w = draw((6, 7, columns), (columns,))
    weights = {"layer_norm": (w, w), "rms_norm": (w,)}.get(name, ())
    settings = {"axis": -1} if name in ("logsumexp", "var") else {}
    y = getattr(ops, name)(*on(FUSED, x, *weights), **settings)
    with runs(1):
        found = y.numpy()
    wide = [a.astype(np.float64) for a in (x, *weights)]
    wanted = getattr(ops, name)(*on(device_of("numpy"), *wide), **settings).numpy()
    np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=3e-6)


def test_the_same_program_serves_other_sizes_and_numbers():
    def f(x, k):
        return (x * k + 0.321) / 7.77

    before = stats()
    for shape, k in (((40,), 2.0), ((3, 17), 5.0), ((2, 1, 9), -1.0)):
        (x,) = draw(shape)
        close(f(*on(FUSED, x), k), (x.astype(np.float64) * k + 0.321) / 7.77)
    assert stats()["fusion.compiled"] - before.get("fusion.compiled", 0) == 1
    assert stats()["fusion.cache_hits"] - before.get("fusion.cache_hits", 0) == 2


def test_programs_are_forgotten(monkeypatch):
    monkeypatch.setattr(fusion_device, "PROGRAMS", 3)
    (x,) = on(FUSED, *draw((40,)))
    for n in range(1, 9):
        y = x
        for _ in range(n):
            y = y * 1.01
        y.numpy()
    assert len(FUSED._programs) == 3


def test_other_ops_are_barriers():
    x, w = draw((8, 8), (8, 8))
    before = stats().get("cpu.gemm_f32", 0)
    a, b = on(FUSED, x, w)
    y = ops.relu((a + 1) @ (b * 2)) - 1
    assert stats()["cpu.gemm_f32"] == before + 1
    close(y, np.maximum((x.astype(np.float64) + 1) @ (w * 2.0), 0) - 1, 64)


def test_composites_with_a_kernel_go_to_it():
    """`linear` has one on the cpu device; packed weights, too, are its affair."""
    x, w = draw((8, 8), (8, 8))
    before = stats().get("cpu.packed_weight", 0)
    (a,) = on(FUSED, x)
    close(ops.linear(a + 1, Tensor(CPU.pack(w, "linear"), FUSED)), (x.astype(np.float64) + 1) @ w.T, 64)
    assert stats()["cpu.packed_weight"] == before + 1


def test_what_somebody_holds_is_calculated_on_the_way():
    (x,) = on(FUSED, *draw((100,)))
    h = ops.exp(x)
    y = h * 2 + 1
    with runs(1):
        y.numpy()
        h.numpy()
    h = ops.exp(x)
    y = h * 2 + 1
    del h
    before = stats()["fusion.nodes"]
    with runs(1):
        y.numpy()
    assert stats()["fusion.nodes"] - before == 3


def test_numbers_of_few_elements_are_not_recorded():
    with recording_all() as fusion:
        fusion.small = 10
        short, long = on(fusion, *draw((9,), (10,)))
        assert type((short + 1).handle) is np.ndarray and type((long + 1).handle) is Lazy


# ---- values


UNARY = [
    ops.neg,
    ops.abs,
    ops.tanh,
    ops.sigmoid,
    ops.square,
    ops.relu,
    ops.silu,
    ops.erf,
    lambda x: ops.exp(-ops.abs(x)),
    lambda x: ops.sqrt(ops.abs(x) + 1),
    lambda x: ops.log(ops.abs(x) + 1),
    lambda x: x * 0.5,
    lambda x: 1.5 - x,
    lambda x: ops.sum(x, axis=-1, keepdims=True) / x.shape[-1],
    lambda x: ops.max(x, axis=-1, keepdims=True),
    lambda x: ops.mean(x, axis=-1).reshape(*x.shape[:-1], 1),
]
BINARY = [
    ops.add,
    ops.sub,
    lambda a, b: ops.tanh(a) * ops.tanh(b),
    ops.maximum,
    ops.minimum,
    lambda a, b: a / (ops.abs(b) + 1),
    lambda a, b: ops.where(a < b, a, b),
]


@st.composite
def chains(draw_: Any) -> Any:
    shape = draw_(st.sampled_from([(7,), (5, 9), (3, 4, 33), (2, 600), (3, 5000)]))
    steps = draw_(
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=20)
    )
    return shape, steps


def chain(shape: tuple[int, ...], steps: Any, leaves: list[Tensor]) -> Tensor:
    values = list(leaves)
    for kind, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        op = (UNARY + BINARY)[kind % (len(UNARY) + len(BINARY))]
        values.append(
            ops.tanh(op(a) if op in UNARY else op(a, b)) if kind % 2 else (op(a) if op in UNARY else op(a, b))
        )
    return values[-1] + values[0]


@given(chains())
def test_random_chains_against_float64(case):
    """No further from float64 than 20 times what numpy's float32 is, op by op."""
    shape, steps = case
    arrays = draw(shape, shape[-1:], (*shape[:-1], 1))
    wanted = chain(shape, steps, on(device_of("numpy"), *[a.astype(np.float64) for a in arrays])).numpy()
    plain = chain(shape, steps, on(device_of("numpy"), *arrays)).numpy()
    found = chain(shape, steps, on(FUSED, *arrays)).numpy()
    allowed = 20 * np.abs(plain - wanted).max() + 2e-5 * (1 + np.abs(wanted))
    finite = np.isfinite(plain)
    assert (np.abs(found - wanted) <= allowed)[finite].all()
    np.testing.assert_array_equal(chain(shape, steps, on(READ, *arrays)).numpy(), plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_storage(dtype):
    """A chain keeps float32 on the way: it is rounded once, not five times."""
    x, y = (a.astype(zoo.dtype(dtype)) for a in draw((30, 50), (50,)))

    def f(a, b):
        return ops.tanh(a * b + a) * b - a

    found = f(*on(FUSED, x, y))
    exact = f(*on(device_of("numpy"), x.astype(np.float32), y.astype(np.float32))).numpy()
    np.testing.assert_array_equal(found.numpy(), exact.astype(found.dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_readers_of_one_half_precision_value_agree(dtype):
    """max(x) == x must hold somewhere, whichever of the two is calculated when; a cast rounds."""
    a, b = (t.astype(zoo.dtype(dtype)) for t in draw((20, 30), (20, 30)))
    for hold in (True, False):
        p, q = on(FUSED, a, b)
        x = p * q
        peak = ops.max(x, axis=-1, keepdims=True)
        hits = ops.equal(x, peak)
        if not hold:
            del x
        peak.numpy()
        assert hits.numpy().any(axis=1).all()
    (p,) = on(FUSED, a.astype(np.float32) * 1.001)
    np.testing.assert_array_equal(
        (p.astype(dtype).astype("float32") + 0).numpy(), p.numpy().astype(a.dtype).astype(np.float32)
    )


def test_integers_and_float64_are_not_recorded():
    for dtype in ("int32", "int8", "float64", "uint8"):
        (x,) = on(FUSED, np.arange(10).astype(dtype))
        assert type((x + 1).handle) is not Lazy and (x * 3).dtype == dtype
    (x,) = on(FUSED, np.arange(-5, 5, dtype=np.int8))
    y = x.astype("float32") * 0.5
    assert type(y.handle) is Lazy
    np.testing.assert_array_equal(y.numpy(), np.arange(-5, 5) * np.float32(0.5))
    assert (x.astype("float32") + 0.5).astype("int32").tolist() == np.trunc(np.arange(-5, 5) + 0.5).tolist()


def test_nan_infinity_and_empty():
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-42, 3e38], np.float32)
    for f in (
        lambda t: ops.exp(t) - t,
        lambda t: ops.maximum(t, 0) * 2,
        lambda t: ops.where(ops.isnan(t), 1.0, t) + 0,
        lambda t: ops.sum(t * 1, axis=-1),
        lambda t: ops.max(-t, axis=-1),
        lambda t: ops.sigmoid(-t),
    ):
        np.testing.assert_allclose(f(*on(FUSED, x)).numpy(), f(*on(CPU, x)).numpy(), rtol=1e-6, atol=1e-44)
    (e,) = on(FUSED, np.zeros((0, 4), np.float32))
    assert ops.softmax(e * 2 + 1).shape == (0, 4) and ops.sum(e * 2, axis=-1).numpy().shape == (0,)


def test_results_never_share_memory_with_what_is_live():
    x, y = draw((64,), (64,))
    a, b = on(FUSED, x, y)
    h = a + b
    results = [
        h.numpy(),
        (h * 2).numpy(),
        ops.relu(a).numpy(),
        (a.astype("bfloat16").astype("float32")).numpy(),
        (h - 0).numpy(),
    ]
    inputs = [x, y]
    for i, r in enumerate(results):
        assert not any(np.shares_memory(r, other) for other in inputs + results[:i])
    before = results[0].copy()
    (h * 3 + h).numpy()
    np.testing.assert_array_equal(results[0], before)


# ---- the record


def test_errors_come_at_the_call():
    x, y = on(FUSED, *draw((3, 4), (5,)))
    h = x * 2
    with pytest.raises(ShapeError, match=r"add\(float32 \(3, 4\), float32 \(5,\)\) on fusion\(cpu\) cannot be done"):
        h + y
    with pytest.raises(ShapeError, match="axis 2 does not exist"):
        ops.sum(h, axis=2)
    with pytest.raises(zoo.DtypeError):
        ops.where(h, h, h)
    assert type(h.handle) is Lazy and h.handle.node.value is None


def test_a_long_chain_does_not_wait_for_ever():
    (x,) = draw((50,))
    (y,) = on(FUSED, x)
    wanted = x.astype(np.float64)
    for _ in range(1000):
        y, wanted = y * 0.999 + 0.001, wanted * 0.999 + 0.001
        assert y.handle.node.value is not None or fusion_device._measured(y.handle.node)[0] <= fusion_device.MAX_NODES
    close(y, wanted, 2000)
    y = on(FUSED, x)[0]
    with runs(1):
        for _ in range(5):  # each reads the one before twice: 2^5 paths, but 10 nodes
            y = y * ops.sigmoid(y)
        y.numpy()


def test_memory_is_not_held_by_what_waits(monkeypatch):
    """A running sum of large arrays: those that were added are let go after a while, not when the sum is asked for."""
    monkeypatch.setattr(fusion_device, "MAX_HELD", 1 << 16)
    total, alive = None, []
    for _ in range(40):
        array = np.ones(4096, np.float32)
        alive.append(weakref.ref(array))
        total = Tensor(array, FUSED) * 2 if total is None else total + Tensor(array, FUSED)
        del array
    assert sum(r() is not None for r in alive) <= 10
    assert total is not None and total.numpy()[0] == 41


def test_dropping_a_value_frees_what_it_was_made_from():
    array = np.ones(100, np.float32)
    alive = weakref.ref(array)
    y = Tensor(array, FUSED) * 2 + 1
    del array
    assert alive() is not None
    y.numpy()
    assert alive() is None
    gc.disable()
    try:
        array = np.ones(100, np.float32)
        alive = weakref.ref(array)
        y = Tensor(array, FUSED) * 2 + 1
        del array, y
        assert alive() is None  # without the garbage collector: there are no cycles
    finally:
        gc.enable()


def test_too_large_a_region_is_divided():
    arrays = draw(*[(70,)] * 40)
    tensors = on(FUSED, *arrays)
    while len(tensors) > 1:
        tensors = [a + b for a, b in zip(tensors[::2], tensors[1::2], strict=False)] + tensors[len(tensors) // 2 * 2 :]
    close(tensors[0], np.sum([a.astype(np.float64) for a in arrays], axis=0), 200)
    held = [ops.exp(t) for t in on(FUSED, *arrays[:12])]  # more results than the interpreter has
    total = held[0]
    for h in held[1:]:
        total = total + h
    close(total, sum(np.exp(a.astype(np.float64)) for a in arrays[:12]), 200)
    for h, a in zip(held, arrays, strict=False):
        close(h, np.exp(a.astype(np.float64)))


def test_several_threads_force_one_record():
    (x,) = draw((20000,))
    for _ in range(20):
        (a,) = on(FUSED, x)
        h = ops.exp(a) + 1
        values = [h * k for k in range(1, 7)]
        found: list[Any] = [None] * 6
        start = threading.Barrier(6)

        def work(k: int, values: Any = values, found: Any = found, start: Any = start) -> None:
            start.wait()
            found[k] = values[k].numpy()

        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        for k in range(6):
            np.testing.assert_allclose(found[k], (np.exp(x.astype(np.float64)) + 1) * (k + 1), rtol=1e-6)


def test_views_of_what_waits():
    (x,) = draw((6, 4, 5))
    (t,) = on(FUSED, x)
    y = t * 2 + 1
    w = x * np.float32(2) + np.float32(1)
    for found, wanted in (
        (y[1:, ::2], w[1:, ::2]),
        (y.permute_dims(2, 0, 1), w.transpose(2, 0, 1)),
        (y.reshape(24, 5), w.reshape(24, 5)),
        (ops.expand((y * 1)[:1], (6, 4, 5)), np.broadcast_to(w[:1], w.shape)),
        (ops.flip(y, axis=0), w[::-1]),
    ):
        np.testing.assert_array_equal((found + 0).numpy(), wanted)
    s = ops.sum(y, axis=-1)
    np.testing.assert_allclose(
        (y - ops.expand(s.reshape(6, 4, 1), (6, 4, 5)) + s.reshape(6, 4, 1)).numpy(), w, rtol=1e-5, atol=1e-5
    )
    square = draw((5, 5))[0]
    (q,) = on(FUSED, square)
    r = ops.sum(q * 1, axis=-1)  # (5,): as a row and as a column of the same space
    np.testing.assert_allclose(
        (q + r + r.reshape(5, 1)).numpy(), square + square.sum(1) + square.sum(1)[:, None], rtol=1e-5, atol=1e-5
    )


# ---- with gradients


@pytest.mark.parametrize("inner", ["cpu", "numpy"])
def test_gradients_and_second_order(inner):
    def loss(x, w):
        return ops.sum(ops.tanh(x * w + ops.softmax(x)) ** 2)

    x, w = draw((6, 9), (9,))

    def both(device):
        once, twice = zoo.Autodiff(device), zoo.Autodiff(zoo.Autodiff(device))
        a, b = (t.to(once).to(twice) for t in on(device, x, w))
        found = loss(a, b).backward()
        first = [found[a].numpy(), found[b].numpy()]
        outer = ops.sum(found[a] * found[a])
        inside = [Tensor(t.handle.value, once) for t in (a, b)]
        second = outer.backward()
        return [*first, *(second[t].numpy() for t in inside)]

    for found, wanted in zip(both(Fusion(inner)), both(device_of("numpy")), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_fusion_around_autodiff_keeps_gradients():
    (x,) = draw((5, 6))
    device = zoo.Autodiff(CPU)
    (a,) = (t.to(device) for t in on(CPU, x))
    outer = Tensor(a.handle, Fusion(device))
    y = Tensor(Fusion(device).value(ops.sum(ops.exp(outer) * 2).handle), device)
    np.testing.assert_allclose(y.backward()[a].numpy(), 2 * np.exp(x), rtol=1e-6)


# ---- fused, and the off switch


def test_fused_leaves_nothing_waiting():
    @fused
    def blend(a, b, share):
        c = a + (b - a) * share
        return c, c * 2

    a, b = on(CPU, *draw((60, 60), (60, 60)))
    with runs(1):
        c, d = blend(a, b, 0.25)
    assert c.device is CPU and type(c.handle) is type(d.handle) is np.ndarray
    np.testing.assert_allclose(c.numpy(), (a + (b - a) * 0.25).numpy(), rtol=1e-6)
    with runs(0):
        e, _ = blend(*on(device_of("numpy"), a.numpy(), b.numpy()), 0.25)
        assert e.device is device_of("numpy")
    autodiff = zoo.Autodiff(CPU)
    v = a.to(autodiff)
    np.testing.assert_allclose(ops.sum(blend(v, v * 0, 0.25)[0]).backward()[v].numpy(), 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        zoo.train.SGD(0.9, weight_decay=0.1),
        zoo.train.SGD(0.9, nesterov=True),
        zoo.train.SGD(),
        zoo.train.RMSprop(momentum=0.9, centered=True),
        zoo.train.RMSprop(),
    ],
    ids=lambda o: str(o.describe()),
)
def test_optimizers_take_one_pass_for_each_step(optimizer):
    """And move as they do where nothing is fused."""
    arrays = draw((30, 20), (30, 20), (30, 20))

    def moved(device):
        (p, *gradients), memory = on(device, *arrays), {}
        for g in gradients:
            p = optimizer.move(p, g, memory, 0.01, 0.1)
        return [p.numpy(), *(memory[name].numpy() for name in sorted(memory))]

    with runs(2):
        found = moved(CPU)
    for a, b in zip(found, moved(device_of("numpy")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


PROGRAM = """
import numpy as np, zoo
from zoo.core.testing.devices import recording_all
with recording_all() as d:
    x = zoo.Tensor(np.arange(12, dtype=np.float32), d)
    print(zoo.ops.sum(zoo.ops.exp(x * 0.1) + 1, axis=-1).item(), zoo.stats().get("fusion.runs", 0))
"""


@pytest.mark.parametrize("mode, passes", [("", "1"), ("interpret", "0"), ("off", None)])
def test_the_off_switch(mode, passes):
    env = {**os.environ, "ZOO_FUSE": mode}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    if passes is None:
        assert "ZOO_FUSE=off cannot be used" in done.stderr
        return
    value, ran = done.stdout.split()
    assert ran == passes and abs(float(value) - (np.exp(np.arange(12) * 0.1) + 1).sum()) < 1e-4
