"""Tensors and other libraries: numpy, DLPack both ways, torch where it is installed."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.dtype import bfloat16, float16, float32, float64, int8, int32, int64, uint8
from zoo.core.errors import DtypeError
from zoo.core.testing.devices import device_names, opened

HOST = [d for d in device_names()[0] if d == "numpy" or d.startswith("cpu")]
EXCHANGED = [float16, float32, float64, int8, uint8, int32, int64]  # numpy's DLPack knows no bfloat16


@pytest.fixture(params=HOST)
def device(request: Any) -> Any:
    with opened(request.param) as found:
        yield found


@pytest.mark.parametrize("dtype", EXCHANGED, ids=str)
def test_numpy_takes_tensors_without_a_copy(device: Any, dtype: np.dtype) -> None:
    x = zoo.tensor(np.arange(6).reshape(2, 3), dtype, device)
    for view in (np.from_dlpack(x), np.asarray(x)):
        assert np.shares_memory(view, x.handle)
        assert (view.dtype, view.tolist()) == (dtype, [[0, 1, 2], [3, 4, 5]])


def test_views_are_exchanged_as_they_lie(device: Any) -> None:
    x = zoo.tensor(np.arange(12.0).reshape(3, 4), device=device)
    for view in (x.mT, x[::2, 1:], ops.expand(x[:1], (5, 4))):
        assert np.array_equal(np.from_dlpack(view), view.numpy())


def test_numbers_are_exchanged(device: Any) -> None:
    """The sum of all is an array without axes, whatever numpy would make of it."""
    total = ops.sum(zoo.tensor([1.0, 2.0], device=device))
    assert np.from_dlpack(total).shape == () and float(np.from_dlpack(total)) == 3
    assert total.__dlpack_device__()[0] == 1  # kDLCPU


@pytest.mark.parametrize("dtype", EXCHANGED, ids=str)
def test_the_zoo_takes_numpy_without_a_copy(device: Any, dtype: np.dtype) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    x = zoo.from_dlpack(array, device)
    assert np.shares_memory(x.handle, array)
    assert (x.device, x.dtype, x.tolist()) == (device, dtype, array.tolist())


def test_a_variable_is_exchanged_as_its_value(device: Any) -> None:
    x = zoo.tensor([1.0, 2.0], device=device).to(zoo.Autodiff(device))
    assert np.from_dlpack(x).tolist() == np.asarray(x).tolist() == [1, 2]


def test_bfloat16_cannot_be_exchanged_through_numpy_and_says_so() -> None:
    x = zoo.tensor([1.0], bfloat16, "numpy")
    with pytest.raises(DtypeError, match="bfloat16"):
        np.from_dlpack(x)
    assert np.asarray(x).dtype == bfloat16


def test_what_the_zoo_has_no_dtype_for() -> None:
    for array in (np.ones(2, np.complex64), np.ones(2, np.uint16)):
        with pytest.raises(DtypeError, match="unknown dtype"):
            zoo.from_dlpack(array)


def test_stats_count_what_ran() -> None:
    zoo.stats(reset=True)
    assert zoo.stats() == {}
    from zoo.core.stats import count

    count("test.one")
    count("test.one", 2)
    assert zoo.stats(reset=True)["test.one"] == 3
    assert "test.one" not in zoo.stats()


# torch


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'zoo-models[reference]'")


def test_torch_takes_tensors_without_a_copy(torch: Any, device: Any) -> None:
    for dtype in EXCHANGED:
        x = zoo.tensor([[1, 2], [3, 4]], dtype, device)
        shared = torch.from_dlpack(x)
        assert shared.data_ptr() == x.handle.ctypes.data
        assert shared.tolist() == [[1, 2], [3, 4]]
    assert torch.from_dlpack(zoo.tensor([[1, 2], [3, 4]], device=device).mT).tolist() == [[1, 3], [2, 4]]


def test_the_zoo_takes_torch_tensors_without_a_copy(torch: Any, device: Any) -> None:
    given = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    x = zoo.from_dlpack(given, device)
    assert x.handle.ctypes.data == given.data_ptr()
    given[0, 0] = 7
    assert x.tolist() == [[7, 1, 2], [3, 4, 5]]
    assert zoo.from_dlpack(given.T, device).shape == (3, 2)


def test_torch_tensors_that_cannot_be_shared_say_why(torch: Any) -> None:
    with pytest.raises(DtypeError, match="gradient") as caught:
        zoo.from_dlpack(torch.ones(2, requires_grad=True))
    assert "detach" in str(caught.value)
    with pytest.raises(DtypeError):
        zoo.from_dlpack(torch.ones(2, dtype=torch.bfloat16))


def test_torch_tensors_come_in_as_data_too(torch: Any) -> None:
    assert zoo.tensor(torch.tensor([1, 2]).numpy()).dtype == int64
    assert zoo.tensor(np.asarray(torch.ones(2))).tolist() == [1, 1]


def test_the_ops_agree_with_torch(torch: Any) -> None:
    """A look from outside at what the references of this repository share: conventions of padding, groups, masks."""
    f = torch.nn.functional
    rng = np.random.default_rng(4)

    def both(*shape: int) -> tuple[Any, Any]:
        a = rng.standard_normal(shape).astype(np.float32)
        return zoo.tensor(a), torch.tensor(a)

    (x, tx), (w, tw), (b, tb) = both(2, 9, 8, 6), both(4, 3, 3, 3), both(4)
    first = lambda t: t.permute(0, 3, 1, 2)  # noqa: E731  channels first, as torch has them
    last = lambda t: t.permute(0, 2, 3, 1)  # noqa: E731
    pairs = [
        (ops.conv(x, w, b, stride=2, padding=1, groups=2), last(f.conv2d(first(tx), first(tw), tb, 2, 1, 1, 2))),
        (ops.max_pool(x, 3, stride=2, padding=1), last(f.max_pool2d(first(tx), 3, 2, 1))),
        (ops.avg_pool(x, 3, stride=2, padding=1), last(f.avg_pool2d(first(tx), 3, 2, 1))),
        (ops.upsample(x, 2), last(f.interpolate(first(tx), scale_factor=2))),
        (ops.gelu(x), f.gelu(tx)), (ops.gelu_tanh(x), f.gelu(tx, approximate="tanh")), (ops.silu(x), f.silu(tx)),
        (ops.softmax(x), f.softmax(tx, -1)), (ops.log_softmax(x, axis=1), f.log_softmax(tx, 1)),
        (ops.var(x, axis=-1), tx.var(-1, correction=0)), (ops.layer_norm(x, None, None), f.layer_norm(tx, (6,))),
        (ops.group_norm(x, None, None, 3), last(f.group_norm(first(tx), 3))),
    ]  # fmt: skip
    up, tup = both(4, 3, 3, 6)
    pairs.append((
        ops.conv_transpose(x, up, stride=2, padding=1, output_padding=1),
        last(f.conv_transpose2d(first(tx), tup.permute(3, 0, 1, 2), None, 2, 1, 1)),
    ))  # fmt: skip
    (q, tq), (k, tk), (v, tv) = both(2, 5, 4, 8), both(2, 5, 2, 8), both(2, 5, 2, 8)
    heads = lambda t: t.transpose(1, 2)  # noqa: E731
    pairs.append((
        ops.attention(q, k, v, causal=True),
        heads(f.scaled_dot_product_attention(heads(tq), heads(tk), heads(tv), is_causal=True, enable_gqa=True)),
    ))  # fmt: skip
    for ours, theirs in pairs:
        assert np.allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_arrays_out_of_pickles_are_taken_by_the_kernels(device: Any) -> None:
    """Their dtypes are copies of numpy's own, equal and not the same object."""
    x = pickle.loads(pickle.dumps(np.linspace(-2, 2, 24, dtype=np.float32).reshape(1, 12, 2)))
    assert x.dtype is not float32
    t = zoo.Tensor(device.from_host(x), device)
    assert t.dtype is float32 and np.shares_memory(t.handle, x)
    assert np.allclose(ops.gelu(t), ops.gelu(zoo.tensor(x.tolist(), float32, device)), rtol=0, atol=1e-7)
