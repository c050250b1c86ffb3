"""Tensor: operators, indexing against numpy, how dtypes meet, how devices do not."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import zoo
from zoo.core import ops
from zoo.core.dtype import (
    ALL,
    FLOATS,
    bfloat16,
    bool_,
    dtype,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    promote,
    uint8,
    uint32,
)
from zoo.core.errors import DeviceError, DtypeError, ShapeError
from zoo.core.tensor import Tensor
from zoo.core.testing.devices import device_names, opened

DEVICES, MISSING = device_names()
HOST = [d for d in DEVICES if d == "numpy" or d.startswith("cpu")]


def t(values: Any, d: Any = None) -> Tensor:
    return zoo.tensor(values, d, device="numpy")


# making


@pytest.mark.parametrize(
    "data, expected",
    [
        (1.5, float32), ([1.0, 2], float32), (3, int32), ([[1], [2]], int32), (True, bool_), ([], float32),
        (np.float64(1), float64), (np.int8(1), int8), (np.arange(3), int64), (np.ones(2, ">f4"), float32),
        (np.ones(2, bfloat16), bfloat16), (np.ones(2, np.float16), float16), (range(3), int32),
    ],
)  # fmt: skip
def test_dtype_of_what_is_given(data: Any, expected: np.dtype) -> None:
    x = t(data)
    assert x.dtype == expected
    assert np.array_equal(x.numpy().astype(float), np.asarray(data, float))


def test_dtype_that_is_asked() -> None:
    assert [t([1, 2], d).dtype for d in ("f16", "bf16", np.int8, zoo.uint8, "bool", float)] == [
        float16, bfloat16, int8, uint8, bool_, float64,
    ]  # fmt: skip
    assert t([2**40], "int64").tolist() == [2**40]


def test_what_is_not_a_tensor() -> None:
    with pytest.raises(DtypeError, match="beyond int32"):
        t([2**40])
    with pytest.raises(ShapeError, match="one length"):
        t([[1, 2], [3]])
    for data in ("text", [None], np.ones(2, np.complex64), np.ones(2, np.uint16)):
        with pytest.raises(DtypeError, match="unknown dtype"):
            t(data)
    with pytest.raises(DtypeError, match="Known: bool"):
        t([1], "float8")


def test_a_tensor_owns_its_values() -> None:
    array = np.zeros(3, np.float32)
    x = t(array)
    array[:] = 1
    assert x.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        x.numpy()[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(x)[0] = 1
    copied = np.array(x)
    copied[0] = 1
    assert x.tolist() == [0, 0, 0]


def test_into_numpy_without_a_copy() -> None:
    x = t(np.arange(6.0))
    assert np.shares_memory(x.numpy(), x.handle)
    assert np.shares_memory(np.asarray(x[2:]), x.handle)
    assert np.asarray(x, np.float16).dtype == np.float16


# being


def test_size_and_shape() -> None:
    x = t(np.zeros((2, 3, 4), np.float16))
    assert (x.shape, x.ndim, x.size, x.nbytes, len(x)) == ((2, 3, 4), 3, 24, 48, 2)
    assert x.mT.shape == (2, 4, 3)
    assert [row.shape for row in x] == [(3, 4), (3, 4)]
    with pytest.raises(TypeError, match="no length"):
        len(t(1.0))


def test_numbers_out_of_tensors() -> None:
    assert (t(2.5).item(), float(t([2.5])), int(t(3)), bool(t(False)), [10, 20, 30][t(1)]) == (2.5, 2.5, 3, False, 20)
    assert t([[1, 2]]).tolist() == [[1, 2]]
    with pytest.raises(ValueError):
        t([1, 2]).item()
    with pytest.raises(ValueError):
        bool(t([1, 2]))


def test_repr_shows_values_dtype_shape_and_device() -> None:
    assert repr(t([[1.0, 2.5]], bfloat16)) == "Tensor([[1.  2.5]], bfloat16 (1, 2), numpy)"
    assert repr(t(3)) == "Tensor(3, int32 (), numpy)"
    assert len(repr(t(np.zeros((100, 100))))) < 300


def test_tensors_are_told_apart_by_identity() -> None:
    x, y = t([1.0]), t([1.0])
    assert len({x, y, x}) == 2
    assert (x == y).tolist() == [True]


# operators

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.mod, operator.pow, operator.eq,
          operator.ne, operator.lt, operator.le, operator.gt, operator.ge]  # fmt: skip


@pytest.mark.parametrize("op", BINARY, ids=lambda f: f.__name__)
def test_operators_are_numpys(op: Any) -> None:
    a, b = np.array([[1.0, 2.5, 3.0]], np.float32), np.array([[2.0], [3.0]], np.float32)
    assert np.allclose(op(t(a), t(b)).numpy(), op(a, b), rtol=1e-6)
    assert np.allclose(op(t(a), 2).numpy(), op(a, 2), rtol=1e-6)
    assert np.allclose(op(t(a), np.float32(2)).numpy(), op(a, 2), rtol=1e-6)
    assert np.allclose(op(2.0, t(a)).numpy(), op(2.0, a), rtol=1e-6)


def test_other_operators() -> None:
    x, yes = t([-1.0, 2.0]), t([True, False])
    assert ((-x).tolist(), abs(x).tolist(), (~yes).tolist()) == ([1, -2], [1, 2], [False, True])
    assert ((yes & t([True, True])).tolist(), (yes | t([False, False])).tolist()) == ([True, False], [True, False])
    assert (t([[1.0, 2.0]]) @ t([[3.0], [4.0]])).tolist() == [[11]]
    assert (x**2).tolist() == [1, 4]
    assert ((7 % t([4, 5])).tolist(), (t([4, 5]) % 3).tolist()) == ([3, 2], [1, 2])


def test_methods_are_the_ops() -> None:
    x = t([[1.0, 4.0], [3.0, 2.0]])
    assert (x.sum(0).tolist(), x.mean().item(), x.max(1).tolist(), x.min().item()) == ([4, 6], 2.5, [4, 3], 1)
    assert (x.argmax(0).tolist(), x.sum(-1, keepdims=True).shape) == ([1, 0], (2, 1))
    assert x.reshape(4).shape == x.reshape((4,)).shape == x.reshape(-1).shape == (4,)
    assert x.reshape([2, -1, 1]).shape == (2, 2, 1)
    assert x.permute_dims(1, 0).tolist() == x.permute_dims((-1, 0)).tolist() == x.mT.tolist() == [[1, 3], [4, 2]]


def test_python_numbers_take_the_dtype_they_meet() -> None:
    for d in FLOATS:
        assert (t([1], d) * 2.5).dtype == (1 + t([1], d)).dtype == d
    assert (t([1], int8) + 2).dtype == int8
    assert (t([1], int8) + 2.5).dtype == float32
    assert (t([True]) + 1).dtype == int32
    assert (t([1, 2]) / 2).tolist() == [0.5, 1.0]
    assert (t([1], bfloat16) * np.float64(2.0)).dtype == bfloat16


PROMOTED = {
    (bool_, bool_): bool_, (bool_, int8): int8, (bool_, bfloat16): bfloat16, (uint8, int8): int16,
    (uint8, int16): int16,
    (int8, int32): int32, (uint32, int32): int64, (int32, int64): int64, (int64, float16): float16,
    (int64, bfloat16): bfloat16,
    (int32, float32): float32, (float16, bfloat16): float32, (float16, float32): float32, (bfloat16, float64): float64,
    (float32, float64): float64,
}  # fmt: skip


@pytest.mark.parametrize("pair", PROMOTED, ids=str)
def test_promotion(pair: tuple[np.dtype, np.dtype]) -> None:
    a, b = pair
    assert promote(a, b) == promote(b, a) == PROMOTED[pair]
    if PROMOTED[pair] != bool_:
        assert (t([1], a) + t([1], b)).dtype == PROMOTED[pair]


@pytest.mark.parametrize("a", ALL, ids=str)
@pytest.mark.parametrize("b", ALL, ids=str)
def test_promotion_is_symmetric_and_within_the_zoo(a: np.dtype, b: np.dtype) -> None:
    common = promote(a, b)
    assert common == promote(b, a) and common in ALL
    assert promote(common, a) == common == promote(common, b)


def test_dtypes_by_name() -> None:
    assert [dtype(n) for n in ("float32", "f32", "bf16", "f16", "f64", "bool")] == [
        float32, float32, bfloat16, float16, float64, bool_,
    ]  # fmt: skip
    assert dtype(np.float32) == dtype(np.dtype("f4")) == zoo.float32
    with pytest.raises(DtypeError, match="unknown dtype 'fp32'"):
        dtype("fp32")


# indexing


@st.composite
def indexed(draw: Any) -> tuple[tuple[int, ...], Any]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return shape, index


@given(indexed())
def test_indexing_is_numpys(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    got, want = t(array)[index], array[index]
    assert got.shape == want.shape
    assert np.array_equal(got.numpy(), want)


@given(indexed())
def test_the_gradient_of_indexing_goes_where_the_values_came_from(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    x = ops.zeros(shape, device="numpy").to(zoo.Autodiff(zoo.device("numpy")))
    flow = np.arange(1, 1 + np.zeros(shape)[index].size, dtype=np.float32).reshape(np.zeros(shape)[index].shape)
    expected = np.zeros(shape, np.float32)
    expected[index] = flow
    assert np.array_equal(x[index].backward(t(flow)).__getitem__(x).numpy(), expected)


def test_indexing_by_tensors_takes_rows() -> None:
    x = t([[1, 2], [3, 4], [5, 6]])
    assert x[t([2, 0])].tolist() == [[5, 6], [1, 2]]
    assert x[t([[1]])].tolist() == [[[3, 4]]]
    assert x[t(1)].tolist() == [3, 4]


def test_indices_that_do_not_exist() -> None:
    x = t([[1, 2], [3, 4]])
    for index in (2, -3, (0, 2), (0, 0, 0)):
        with pytest.raises(IndexError):
            x[index]
    with pytest.raises(TypeError):
        x[1.5]


def test_views_share_memory_where_the_device_can() -> None:
    x = t(np.arange(12.0).reshape(3, 4))
    for view in (x[1:], x[:, ::2], x[::-1], x.mT, x.reshape(4, 3), ops.expand(x[:, :1], (3, 9))):
        assert np.shares_memory(view.handle, x.handle)


# devices


def test_devices_by_name() -> None:
    assert zoo.device("numpy") is zoo.device("numpy")
    assert zoo.device(zoo.device("numpy")) is zoo.device("numpy")
    assert zoo.device().name == ("numpy" if "cpu" in MISSING else "cpu")
    assert repr(zoo.device("numpy")) == "device('numpy')"
    for name in ("gpu", "cuda:x", "numpy:1", "cpu:avx2", ""):
        with pytest.raises(DeviceError, match="unknown device"):
            zoo.device(name)
    with pytest.raises(DeviceError, match="Did you mean 'numpy'"):
        zoo.device("nunpy")


@pytest.mark.parametrize("name", DEVICES)
def test_there_and_back(name: str) -> None:
    for d in ALL:
        values = t([[0, 1], [1, 1]], d)
        with opened(name) as device:
            there = values.to(device)
            assert (there.device, there.dtype) == (device, d)
            back = there.to("numpy")
        assert back.device is zoo.device("numpy")
        assert np.array_equal(back.numpy(), values.numpy())
        assert back.to("numpy") is back


@pytest.mark.skipif("cpu" in MISSING, reason=MISSING.get("cpu", ""))
def test_devices_do_not_mix() -> None:
    a, b = t([1.0]), zoo.tensor([1.0], device="cpu")
    with pytest.raises(DeviceError) as caught:
        a + b
    assert str(caught.value).splitlines() == [
        "tensors of numpy and cpu in one op",
        "  an op runs on one device",
        "  Move one of them: x.to(device).",
    ]
    variable = a.to(zoo.Autodiff(zoo.device("numpy")))
    for wrong in (b, b.to(zoo.Autodiff(zoo.device("cpu")))):
        with pytest.raises(DeviceError, match="in one op"):
            variable * wrong
    assert (b.to("numpy") + a).item() == 2


def test_an_autodiff_device_takes_tensors_of_its_inner_one_as_constants() -> None:
    inner = zoo.device("numpy")
    outer = zoo.Autodiff(inner)
    x, c = t([2.0]).to(outer), t([3.0])
    y = x * c
    assert y.device is outer
    assert y.backward()[x].item() == 3
    assert zoo.Autodiff(inner) is outer
    assert (x.to(inner).device, x.to(inner).item(), x.to("numpy").item()) == (inner, 2, 2)
    assert x.to(zoo.Autodiff(outer)).to(inner).item() == 2


@pytest.mark.parametrize("name", HOST)
def test_the_same_model_on_every_device(name: str) -> None:
    """A few layers, forward and backward: what a port does, without a word about the device in it."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 8, 8, 3), (4, 3, 3, 3), (4,)))

    def gradient(device: Any) -> list[np.ndarray]:
        on = zoo.Autodiff(device)
        image = zoo.tensor(x, device=device)
        weight, bias = (zoo.tensor(v, device=device).to(on) for v in (w, b))
        y = ops.max_pool(ops.conv(image, weight, bias, padding=1, activation="relu"), 2)
        loss = ops.cross_entropy(y.reshape(2, -1), zoo.tensor([3, 5], device=device)).mean()
        found = loss.backward()
        return [np.asarray(loss), found[weight].numpy(), found[bias].numpy()]

    with opened(name) as device:
        ours = gradient(device)
    for got, want in zip(ours, gradient(zoo.device("numpy")), strict=True):
        assert np.allclose(got, want, rtol=1e-4, atol=1e-6)
