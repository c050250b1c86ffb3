"""Autodiff: who owns the record, when it is freed, what is asked wrongly, and gradients of whole programs.

Gradients of single ops are in test_ops.py."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.core import ops
from zoo.core.autodiff import Node
from zoo.core.dtype import bfloat16, float32, int32
from zoo.core.errors import DeviceError, NotDifferentiable, ShapeError, ZooError
from zoo.core.prim import composite
from zoo.core.prims import infer
from zoo.core.tensor import Tensor, bind

INNER = zoo.device("numpy")
AD = zoo.Autodiff(INNER)


def var(values: Any, dtype: Any = None) -> Tensor:
    return zoo.tensor(values, dtype, device=INNER).to(AD)


def const(values: Any, dtype: Any = None) -> Tensor:
    return zoo.tensor(values, dtype, device=INNER)


# what is recorded, and what it costs


def test_gradients_are_plain_tensors_of_the_inner_device() -> None:
    x = var([3.0])
    g = (x * x).backward()
    assert (g[x].device, g[x].tolist()) == (INNER, [6])
    assert x in g and const([1.0]) not in g and len(g) == 1
    with pytest.raises(TypeError, match="looked up by the variable"):
        list(g)


def test_one_gradient_for_each_variable_the_value_depends_on() -> None:
    x, y, unused = var([2.0]), var([3.0]), var([4.0])
    g = (x * y + x).backward()
    assert (g[x].item(), g[y].item()) == (4, 2)
    assert unused not in g
    with pytest.raises(KeyError, match="does not depend on it"):
        g[unused]
    with pytest.raises(KeyError):
        g[x * y]


def test_plain_tensors_and_integers_are_constants() -> None:
    x, c, i = var([[1.0, 2.0]]), const([[3.0], [4.0]]), var([0, 1])
    y = ops.take(x @ c, i[:1])
    assert y.backward()[x].tolist() == [[3, 4]]
    assert i.dtype == int32
    for plain in (ops.argmax(x), x > 1, ops.sign(x), ops.floor(x), x.astype(int32), ops.zeros((2,), device=AD)):
        with pytest.raises(NotDifferentiable, match="does not depend on any variable"):
            plain.astype(float32).sum().backward()


def test_what_depends_on_no_variable_is_not_recorded() -> None:
    c = zoo.tensor([1.0], device=AD)
    y = ops.exp(c) * 2 + c
    assert isinstance(y.handle, np.ndarray | np.generic)


def test_a_value_used_several_times_gathers_all_its_gradients() -> None:
    x = var([2.0])
    y = x * x  # 2x
    z = y * x + y  # x^3 + x^2
    assert z.backward()[x].item() == 3 * 4 + 2 * 2


def test_broadcast_arguments_get_gradients_of_their_own_shape() -> None:
    a, b, c = var(np.ones((2, 1, 3))), var(np.ones((4, 1))), var(2.0, "float64")
    g = (a * b * c).sum().backward()
    assert (g[a].shape, g[b].shape, g[c].shape) == ((2, 1, 3), (4, 1), ())
    assert (g[a].numpy() == 8).all() and (g[b].numpy() == 12).all() and g[c].item() == 24


def test_the_gradient_that_flows_in() -> None:
    x = var([1.0, 2.0])
    assert (x * 3).backward(const([10.0, 100.0]))[x].tolist() == [30, 300]
    half = var([1.0, 2.0], bfloat16)
    assert (half * 3).backward(const([10.0, 100.0]))[half].dtype == bfloat16
    assert x.sum().backward()[x].tolist() == [1, 1]
    scalar = var(5.0)
    assert scalar.backward()[scalar].item() == 1


def test_mixed_precision_gradients_have_the_dtype_of_their_argument() -> None:
    weight, x = var(np.ones((2, 3), np.float32)), var(np.ones((1, 3)), bfloat16)
    g = ops.linear(x, weight.astype(bfloat16)).sum().backward()
    assert (g[weight].dtype, g[x].dtype) == (float32, bfloat16)
    g = (weight * x).sum().backward()
    assert (g[weight].dtype, g[x].dtype) == (float32, bfloat16)


def test_results_of_an_op_with_several() -> None:
    x = var([[3.0, 1.0, 2.0]])
    values, places = ops.topk(x, 2)
    assert (values * const([[10.0, 1.0]])).sum().backward()[x].tolist() == [[10, 0, 1]]
    assert isinstance(places.handle, np.ndarray)
    p, g, m, v = (var([1.0]) for _ in range(4))
    settings: dict[str, Any] = {"lr": 0.5, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0, "step": 1}
    _, moment, _ = ops.adamw_step(p, g, m, v, **settings)  # the second result alone is used
    found = moment.backward()
    assert np.allclose([found[m].item(), found[g].item()], [0.9, 0.1])
    assert p not in found


def test_memory_is_freed_with_the_value() -> None:
    """The record hangs on the values: no tape, no cycles, so reference counts free it at once."""
    gc.collect()
    gc.disable()
    try:
        x = var(np.ones((100,)))
        y = ops.exp(x) * x
        watched = [
            weakref.ref(y.handle),
            weakref.ref(y.handle.node.args[0]),
        ]  # y's record, and the array exp(x) it keeps
        assert all(w() is not None for w in watched)
        del y
        assert all(w() is None for w in watched)
    finally:
        gc.enable()


def test_backward_frees_what_was_kept() -> None:
    x = var(np.ones((100,)))
    hidden = ops.exp(x)
    kept = weakref.ref(hidden.handle.value)
    loss = (hidden * hidden).sum()
    del hidden
    assert kept() is not None
    loss.backward()
    assert kept() is None
    assert loss.item() == pytest.approx(100 * np.e**2)


def test_only_what_the_rule_reads_is_kept() -> None:
    """add and sum keep shapes, exp its result, mul its arguments."""
    x = var(np.ones((1000, 1000)))
    tracemalloc.start()
    y = x
    for _ in range(20):
        y = y + 1.0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * x.nbytes, "20 additions keep no arrays"
    assert y.sum().backward()[x].numpy().max() == 1


def test_training_for_many_steps_takes_no_more_memory_than_for_one() -> None:
    rng = np.random.default_rng(0)
    x, target = const(rng.standard_normal((64, 128)).astype(np.float32)), const(rng.integers(0, 10, 64))

    def step(w: Tensor) -> Tensor:
        v = w.to(AD)
        loss = ops.cross_entropy(ops.linear(ops.relu(x), v), target).mean()
        return w - loss.backward()[v] * 0.1

    w = const(rng.standard_normal((10, 128)).astype(np.float32))
    w = step(w)
    gc.collect()
    tracemalloc.start()
    w = step(w)
    after_one = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for _ in range(30):
        w = step(w)
    after_many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert after_many < 1.2 * after_one + 20_000


def test_a_long_chain_is_walked_and_freed_without_recursion() -> None:
    x = var([1.0])
    y = x
    for _ in range(30_000):  # far beyond Python's recursion limit
        y = y + 1.0
    assert y.backward()[x].item() == 1
    y = x
    for _ in range(30_000):
        y = y + 1.0
    del y  # unused, so freed as one chain


def test_donated_memory_is_not_reused_while_gradients_may_need_it() -> None:
    x = var([[1.0, 2.0]])
    y = x * x  # keeps x
    ops.update_slice(x, const([[50.0]]), (0, 0), donate=True)
    assert y.sum().backward()[x].tolist() == [[2, 4]]


# asked wrongly


def test_a_value_without_variables_has_no_backward() -> None:
    with pytest.raises(DeviceError, match="no gradients on device 'numpy'"):
        const([1.0]).backward()
    with pytest.raises(NotDifferentiable, match="does not depend on any variable"):
        zoo.tensor([1.0], device=AD).backward()


def test_backward_starts_at_a_number() -> None:
    x = var([1.0, 2.0])
    with pytest.raises(ShapeError, match="starts at a single number"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match="wrong shape"):
        (x * 2).backward(const([1.0]))


@pytest.mark.skipif(zoo.device() is INNER, reason="the cpu device is not built here")
def test_the_gradient_that_flows_in_is_of_the_same_device() -> None:
    x = var([1.0])
    with pytest.raises(DeviceError, match="in one op"):
        (x * 2).backward(zoo.tensor([1.0], device="cpu"))


def test_backward_twice_over_the_same_values() -> None:
    x = var([1.0])
    y = x * x
    y.backward()
    with pytest.raises(ZooError, match="ran twice") as caught:
        y.backward()
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(ZooError, match="ran twice"):
        (y * 2).backward()  # another value over the same record
    assert (x * x).backward()[x].item() == 2  # the variable itself is as good as new


def test_backward_twice_over_values_of_their_own() -> None:
    x = var([3.0])
    a, b = x * x, x * 2
    assert (a.backward()[x].item(), b.backward()[x].item()) == (6, 2)


# composites


@composite(infer.like(0))
def cubed(o, x):
    return o.mul(o.mul(x, x), x)


@composite(lambda x: (infer.like(0)(x), infer.like(0)(x)))
def both(o, x):
    return o.square(x), o.mul(x, 3.0)


def test_a_composite_without_a_rule_is_differentiated_through_its_body() -> None:
    x = var([2.0])
    assert bind(cubed, x).backward()[x].item() == 12
    square, triple = bind(both, x)
    assert (square + triple).backward()[x].item() == 7
    square, triple = bind(both, x)
    assert triple.backward()[x].item() == 3


def test_the_body_is_run_again_backward_so_that_nothing_within_is_kept() -> None:
    x = var(np.ones((50,)))
    y = bind(cubed, x)
    node: Node = y.handle.node
    assert node.prim is cubed and node.args[0] is x.handle.value
    assert [p[0].prim for p in node.parents if p] == [None]


# higher order


def test_third_derivatives() -> None:
    a1, a2, a3 = AD, zoo.Autodiff(AD), zoo.Autodiff(zoo.Autodiff(AD))
    x1 = const([0.7], "float64").to(a1)
    x2 = x1.to(a2)
    x3 = x2.to(a3)
    y = ops.sin(x3) * x3
    first = y.backward()[x3]
    second = first.backward()[x2]
    third = second.backward()[x1]
    assert (first.device, second.device, third.device) == (a2, a1, INNER)
    x = 0.7
    assert first.item() == pytest.approx(np.sin(x) + x * np.cos(x))
    assert second.item() == pytest.approx(2 * np.cos(x) - x * np.sin(x))
    assert third.item() == pytest.approx(-3 * np.sin(x) - x * np.cos(x))


def test_hessian_vector_product_of_a_small_network() -> None:
    """Against differences of gradients: through linear with an activation, softmax cross entropy, layer norm."""
    rng = np.random.default_rng(2)
    x, w, v = (rng.standard_normal(s) for s in ((4, 6), (5, 6), (5, 6)))
    target, twice = const(rng.integers(0, 5, 4)), zoo.Autodiff(AD)

    def loss(weight: Tensor) -> Tensor:
        h = ops.layer_norm(ops.linear(const(x), weight, activation="gelu"), None, None)
        return ops.cross_entropy(h, target).mean()

    def gradient(weight: np.ndarray) -> np.ndarray:
        inner = const(weight).to(AD)
        return loss(inner).backward()[inner].numpy()

    outer = const(w).to(AD)
    inner = outer.to(twice)
    slope = loss(inner).backward()[inner]
    product = (slope * const(v)).sum().backward()[outer].numpy()
    h = 1e-6
    assert np.allclose(product, (gradient(w + h * v) - gradient(w - h * v)) / (2 * h), atol=1e-7)


# whole programs, at random

SMOOTH = [
    ops.tanh, ops.sin, ops.cos, ops.sigmoid, ops.silu, ops.gelu, ops.erf, ops.softmax, ops.log_softmax,
    lambda x: ops.exp(x * 0.3), lambda x: ops.log(ops.square(x) + 1.0), lambda x: ops.rsqrt(ops.square(x) + 2.0),
    lambda x: ops.layer_norm(x, None, None, eps=0.1), lambda x: ops.mean(x, axis=0, keepdims=True) - x,
    lambda x: ops.expand(ops.logsumexp(x, axis=1, keepdims=True), x.shape), lambda x: ops.flip(x, axis=1),
    lambda x: ops.concat([x[1:], x[:1] * 0.5]), lambda x: ops.cumsum(x, axis=1) * 0.4,
    lambda x: ops.pad(x[:, :-1], [(0, 0), (1, 0)]), lambda x: x[:, ::-1].reshape(4, 3).mT,
    lambda x: ops.take(x, const([2, 0, 0])), lambda x: ops.topk(x, 4)[0],
]  # fmt: skip
JOINED = [
    lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b * 0.5, lambda a, b: a / (ops.square(b) + 1.0),
    lambda a, b: a @ b.mT @ b * 0.2, lambda a, b: ops.swiglu(a, b), lambda a, b: ops.linear(a, b)[:, :1] * b,
    lambda a, b: ops.where(const(np.eye(3, 4) > 0), a, b), lambda a, b: ops.scatter_add(a, const([1, 1]), b[:2]),
]  # fmt: skip


def program(choices: list[tuple[int, int, int]], variables: list[Tensor]) -> Tensor:
    """Each choice makes one more (3, 4) value out of two that there are."""
    values = list(variables)
    for op, i, j in choices:
        a, b = values[i % len(values)], values[j % len(values)]
        y = SMOOTH[op](a) if op < len(SMOOTH) else JOINED[op - len(SMOOTH)](a, b)
        values.append(ops.tanh(y) if len(values) % 4 == 0 else y)  # so that nothing grows beyond bounds
    return sum((v.mean() * (k + 1) for k, v in enumerate(values[-4:])), start=const(0.0, "float64"))


STEPS = st.tuples(st.integers(0, len(SMOOTH) + len(JOINED) - 1), st.integers(0, 50), st.integers(0, 50))


@given(st.lists(STEPS, min_size=20, max_size=20), st.integers(0, 2**16))
def test_the_gradient_of_a_random_program_of_twenty_ops(choices: list[tuple[int, int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = [rng.uniform(-1, 1, (3, 4)) for _ in range(3)]
    moves = [rng.uniform(-1, 1, (3, 4)) for _ in range(3)]
    variables = [const(x).to(AD) for x in start]
    loss = program(choices, variables)
    if loss.device is not AD or not hasattr(loss.handle, "node"):
        return
    found = loss.backward()
    claimed = sum(float((found[v].numpy() * m).sum()) for v, m in zip(variables, moves, strict=True) if v in found)

    def at(h: float) -> float:
        return program(choices, [const(x + h * m) for x, m in zip(start, moves, strict=True)]).item()

    h = 1e-5
    measured = (at(h) - at(-h)) / (2 * h)
    assert claimed == pytest.approx(measured, rel=1e-5, abs=1e-6)


def test_only_what_a_rule_reads_is_kept():
    """A result that its own gradient does not need is free as soon as nobody else holds it."""
    shapes = (3, 4), (2, 4), (1, 5, 5, 2), (3, 3, 3, 2), (3,)
    inner = zoo.device("numpy")
    x, w, picture, kernel, bias = (ops.ones(shape, device=inner).to(zoo.Autodiff(inner)) for shape in shapes)
    for activation, kept in ((None, False), ("relu", True)):
        product, convolved = (
            ops.linear(x, w, activation=activation),
            ops.conv(picture, kernel, bias, activation=activation),
        )
        for y in (product, convolved):
            assert isinstance(y.handle.node.y, np.ndarray) is kept
            assert all(isinstance(a, np.ndarray) for a in y.handle.node.args[:2])
