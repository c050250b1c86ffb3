"""What one row of a table does not say: infinities, NaN, signed zeros, ties, rows that are masked altogether, donated
memory, wrong arguments."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.dtype import bfloat16, float16, float32, float64, int32
from zoo.core.errors import DtypeError, ShapeError, ZooError
from zoo.core.tensor import Tensor
from zoo.core.testing.case import Case
from zoo.core.testing.cases import CASES

INF, NAN = math.inf, math.nan


def same(got: Any, want: Any) -> bool:
    """Equal values; NaN where NaN is wanted; zeros of the same sign."""
    a, b = np.asarray(got, float64), np.asarray(want, float64)
    return bool(np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[b == 0]), np.signbit(b[b == 0])))


ONE = {
    "neg": {INF: -INF, -INF: INF, 0.0: -0.0, NAN: NAN},
    "abs": {INF: INF, -INF: INF, -0.0: 0.0, NAN: NAN},
    "sign": {INF: 1, -INF: -1, 0.0: 0, NAN: NAN},
    "exp": {INF: INF, -INF: 0.0, 800: INF, -800: 0.0, 0.0: 1, NAN: NAN},
    "log": {INF: INF, 0.0: -INF, -1: NAN, 1: 0.0, NAN: NAN},
    "sqrt": {INF: INF, 0.0: 0.0, -1: NAN, NAN: NAN},
    "rsqrt": {INF: 0.0, 0.0: INF, -1: NAN, NAN: NAN},
    "sin": {INF: NAN, 0.0: 0.0, NAN: NAN},
    "cos": {INF: NAN, 0.0: 1, NAN: NAN},
    "tanh": {INF: 1, -INF: -1, 50: 1, -0.0: -0.0, NAN: NAN},
    "erf": {INF: 1, -INF: -1, 9: 1, 0.0: 0.0, NAN: NAN},
    "sigmoid": {INF: 1, -INF: 0.0, 0.0: 0.5, 100: 1, NAN: NAN},
    "floor": {INF: INF, -0.5: -1, 2.0: 2, NAN: NAN},
    "round": {0.5: 0.0, 1.5: 2, 2.5: 2, -0.5: -0.0, -2.5: -2, INF: INF, NAN: NAN},
    "square": {INF: INF, -INF: INF, NAN: NAN},
    "relu": {INF: INF, -INF: 0.0, NAN: NAN},
    "silu": {INF: INF, 0.0: 0.0, NAN: NAN},
    "gelu": {INF: INF, 0.0: 0.0, NAN: NAN},
    "isnan": {INF: 0.0, NAN: 1, 0.0: 0.0},
}
TWO = {
    "add": {(INF, -INF): NAN, (INF, 1): INF, (NAN, 1): NAN},
    "mul": {(INF, 0): NAN, (INF, -1): -INF, (0, NAN): NAN},
    "div": {(1, 0.0): INF, (-1, 0.0): -INF, (0, 0): NAN, (1, INF): 0.0, (INF, INF): NAN},
    "remainder": {(5.5, 2): 1.5, (-5.5, 2): 0.5, (5.5, -2): -0.5, (1, 0): NAN},
    "pow": {(0, 0): 1, (2, -1): 0.5, (-2, 3): -8, (-2, 0.5): NAN, (INF, 0): 1, (0.0, -1): INF},
    "maximum": {(NAN, 1): NAN, (1, NAN): NAN, (-INF, INF): INF, (2, 1): 2},
    "minimum": {(NAN, 1): NAN, (1, NAN): NAN, (-INF, INF): -INF, (2, 1): 1},
    "equal": {(NAN, NAN): 0.0, (INF, INF): 1, (0.0, -0.0): 1},
    "not_equal": {(NAN, NAN): 1, (INF, INF): 0.0},
    "less": {(NAN, 1): 0.0, (1, NAN): 0.0, (-INF, INF): 1},
    "greater_equal": {(NAN, 1): 0.0, (1, NAN): 0.0, (INF, INF): 1},
}


@pytest.mark.parametrize("dtype", [float32, float16, bfloat16, float64], ids=str)
@pytest.mark.parametrize("name", ONE)
def test_limits_of_one_argument(device: Any, name: str, dtype: np.dtype) -> None:
    x = zoo.tensor(np.array(list(ONE[name]), float64), dtype, device)
    assert same(getattr(ops, name)(x).numpy(), list(ONE[name].values()))


@pytest.mark.parametrize("dtype", [float32, float16, bfloat16, float64], ids=str)
@pytest.mark.parametrize("name", TWO)
def test_limits_of_two_arguments(device: Any, name: str, dtype: np.dtype) -> None:
    a, b = (zoo.tensor(np.array(v, float64), dtype, device) for v in zip(*TWO[name], strict=True))
    assert same(getattr(ops, name)(a, b).numpy(), list(TWO[name].values()))


def test_casts_round_and_saturate_as_ieee_does(device: Any) -> None:
    x = zoo.tensor(np.array([1e10, -1e10, 65504, 65520, 1 + 2**-11, 1 + 3 * 2**-11, 1e-9]), device=device)
    assert same(x.astype(float16).numpy(), [INF, -INF, 65504, INF, 1, 1 + 2**-9, 0.0])
    assert x.astype(bfloat16).numpy()[4:6].astype(float).tolist() == [1, 1]
    assert zoo.tensor([2.9, -2.9], device=device).astype(int32).tolist() == [2, -2]


def test_comparisons_where_and_relu_keep_nan_out_of_the_branch_not_taken(device: Any) -> None:
    x = zoo.tensor([NAN, 1.0, -1.0], device=device)
    assert ops.where(ops.isnan(x), 0.0, x).tolist() == [0, 1, -1]


def test_topk_and_sort_with_nan_and_infinities(device: Any) -> None:
    """NaN is below every number, so that it is never among the likeliest."""
    x = zoo.tensor([1.0, NAN, INF, -INF, 2.0], device=device)
    values, places = ops.topk(x, 5)
    assert same(values.numpy(), [INF, 2, 1, -INF, NAN])
    assert places.tolist() == [2, 4, 0, 3, 1]


def test_argmax_of_nan(device: Any) -> None:
    """As numpy has it: the first NaN is the maximum, so that it cannot hide."""
    x = zoo.tensor([1.0, NAN, 3.0], device=device)
    assert (ops.argmax(x).item(), ops.argmin(x).item()) == (1, 1)


def test_softmax_of_a_row_of_minus_infinity_is_nan_and_attention_gives_zeros(device: Any) -> None:
    x = zoo.tensor(np.full((1, 3), -INF, np.float32), device=device)
    assert np.isnan(ops.softmax(x).numpy()).all()
    assert same(ops.logsumexp(x).numpy(), [-INF])
    q, bias = ops.ones((1, 2, 1, 4), device=device), ops.full((2, 3), -INF, device=device)
    k = ops.ones((1, 3, 1, 4), device=device)
    assert same(ops.attention(q, k, k, bias).numpy(), np.zeros((1, 2, 1, 4)))


def test_gradient_of_fully_masked_attention_is_zero(device: Any) -> None:
    autodiff = zoo.Autodiff(device)
    q = ops.ones((1, 4, 1, 2), device=device).to(autodiff)
    k = ops.ones((1, 2, 1, 2), device=device).to(autodiff)
    loss = ops.attention(q, k, k, causal=True).sum()  # queries 0 and 1 come before every key
    g = loss.backward()
    assert same(np.abs(g[q].numpy()[0, :2]), np.zeros((2, 1, 2)))
    assert np.isfinite(g[k].numpy()).all()


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_gradient_of_an_extreme_is_shared_by_equals(device: Any, name: str) -> None:
    x = zoo.tensor([[2.0, 2.0, 1.0], [1.0, 1.0, 1.0]], device=device).to(zoo.Autodiff(device))
    y = getattr(ops, name)(x, axis=1)
    shares = y.sum().backward()[x].numpy()
    expected = {"max": [[0.5, 0.5, 0], [1 / 3] * 3], "min": [[0, 0, 1], [1 / 3] * 3]}[name]
    assert np.allclose(shares, expected)


def test_gradients_at_kinks(device: Any) -> None:
    autodiff = zoo.Autodiff(device)
    x = zoo.tensor([0.0, 1.0], device=device).to(autodiff)
    assert ops.relu(x).sum().backward()[x].tolist() == [0, 1]
    assert ops.abs(x).sum().backward()[x].tolist() == [0, 1]
    first, second = zoo.tensor([1.0], device=device).to(autodiff), zoo.tensor([1.0], device=device).to(autodiff)
    found = ops.maximum(first, second).sum().backward()
    assert (found[first].item(), found[second].item()) == (1, 0)


def test_donated_memory_is_written_to(device: Any) -> None:
    """update_slice(donate=True) makes no copy of the cache, and only then."""
    cache = zoo.tensor(np.zeros((4, 2), np.float32), device=device)
    row = zoo.tensor(np.ones((1, 2), np.float32), device=device)
    kept = ops.update_slice(cache, row, (1, 0))
    assert cache.numpy().sum() == 0 and kept.numpy().sum() == 2
    written = ops.update_slice(cache, row, (2, 0), donate=True)
    assert written.handle is cache.handle
    assert written.numpy()[2].tolist() == [1, 1]


def test_dropout_keeps_the_share_it_says_and_the_mean() -> None:
    x = ops.ones((200, 100))
    y = ops.dropout(x, 0.25, seed=5, offset=0).numpy()
    kept = (y != 0).mean()
    assert abs(kept - 0.75) < 4 * math.sqrt(0.75 * 0.25 / y.size)  # four standard deviations
    assert np.unique(y).tolist() == [0, np.float32(1 / 0.75)]
    assert not np.array_equal(y, ops.dropout(x, 0.25, seed=5, offset=10_000).numpy())


def test_dropout_drops_the_same_values_backward() -> None:
    x = ops.ones((50,)).to(zoo.Autodiff(zoo.device()))
    y = ops.dropout(x, 0.5, seed=1, offset=2)
    assert np.array_equal(y.sum().backward()[x].numpy(), y.numpy())


# wrong arguments


def wrong_calls() -> list[Any]:
    def t(*shape: int, dtype: Any = float32) -> Tensor:
        return ops.zeros(shape, dtype=dtype, device="numpy")

    i = {"dtype": int32}
    return [
        (lambda: t(2, 3) + t(4, 3), ShapeError, ["add(float32 (2, 3), float32 (4, 3)) on numpy", "equal or 1"]),
        (lambda: t(2, 3) @ t(2, 3), ShapeError, ["matmul", "inner sizes are 3 and 2"]),
        (lambda: t(3) @ t(3), ShapeError, ["at least two axes"]),
        (lambda: t(2, 3, **i) @ t(3, 2, **i), DtypeError, ["int32 is not of floating point", "Cast it"]),
        (lambda: ops.sum(t(2, 3), axis=2), ShapeError, ["axis 2 does not exist", "-2 to 1"]),
        (lambda: ops.sum(t(2, 3), axis=(0, 0)), ShapeError, ["twice"]),
        (lambda: ops.max(t(0, 3), axis=0), ShapeError, ["size 0"]),
        (lambda: t(2, 3).reshape(4), ShapeError, ["6", "4"]),
        (lambda: t(2, 3).reshape(-1, 4), ShapeError, ["-1"]),
        (lambda: t(2, 3).permute_dims(0, 0), ShapeError, ["each of the 2 axes once"]),
        (lambda: t(2, 3).permute_dims(0, 3), ShapeError, ["each of the 2 axes once"]),
        (lambda: ops.expand(t(2, 3), (3, 3)), ShapeError, ["Only axes of size 1"]),
        (lambda: ops.expand_dims(t(2), 3), ShapeError, ["expand_dims(float32 (2,))", "axis 3"]),
        (lambda: ops.stack([t(2), t(2)], axis=2), ShapeError, ["axis 2"]),
        (lambda: ops.stack([t(2), t(3)]), ShapeError, ["concat"]),
        (lambda: ops.split(t(2, 4), 3), ShapeError, ["does not divide by 3"]),
        (lambda: ops.split(t(2, 4), 2, axis=2), ShapeError, ["axis 2"]),
        (lambda: ops.split(t(2, 4), [1, 2]), ShapeError, ["3", "4"]),
        (lambda: ops.concat([]), ShapeError, ["nothing to join"]),
        (lambda: ops.concat([t(2), t(2, dtype=float16)]), DtypeError, ["float16, float32"]),
        (lambda: ops.concat([t(2, 3), t(3, 2)]), ShapeError, ["axis 0"]),
        (lambda: ops.pad(t(3), [(1, 1), (0, 0)]), ShapeError, ["2 pads for 1 axes"]),
        (lambda: ops.pad(t(3), [(-2, -2)]), ShapeError, ["more"]),
        (lambda: ops.flip(t(3), axis=1), ShapeError, ["flip(float32 (3,)) on numpy", "axis 1"]),
        (lambda: ops.take(t(3), t(2)), DtypeError, ["indices are float32"]),
        (lambda: ops.take(t(3, 2), zoo.tensor([3], device="numpy")), ShapeError, ["run from 3 to 3", "0 to 2", "take"]),
        (lambda: ops.take(t(3, 2), zoo.tensor([-1], device="numpy")), ShapeError, ["from -1"]),
        (lambda: ops.gather(t(3, 2), t(2, 2, **i)), ShapeError, ["every axis but 1"]),
        (lambda: ops.scatter_add(t(3, 2), t(4, **i), t(4, 3)), ShapeError, ["(4, 2) was expected"]),
        (lambda: ops.update_slice(t(3, 2), t(2, 2), (2, 0)), ShapeError, ["does not lie within"]),
        (lambda: ops.topk(t(3), 4), ShapeError, ["k = 4"]),
        (lambda: ops.linear(t(2, 3), t(4, 5)), ShapeError, ["x has 3 inputs", "takes 5"]),
        (lambda: ops.linear(t(2, 3), t(4, 3), t(3)), ShapeError, ["bias is (3,); (4,) was expected"]),
        (lambda: ops.linear(t(2, 3), t(4, 3), activation="rleu"), DtypeError, ["rleu", "relu"]),
        (lambda: ops.conv(t(1, 5, 5, 3), t(4, 3, 3, 2)), ShapeError, ["channels-last"]),
        (lambda: ops.conv(t(1, 2, 2, 3), t(4, 3, 3, 3)), ShapeError, ["larger than the padded input"]),
        (lambda: ops.conv(t(1, 5, 5, 3), t(4, 3, 3, 3), stride=(1, 1, 1)), ShapeError, ["stride", "2 spatial axes"]),
        (lambda: ops.conv(t(1, 5, 5, 3), t(4, 3, 3, 3), stride=0), ShapeError, ["start at 1"]),
        (lambda: ops.conv_transpose(t(1, 5, 3), t(4, 3, 3, 3)), ShapeError, ["kernel", "1 spatial axes"]),
        (lambda: ops.max_pool(t(1, 5, 5, 3), 2, padding=2), ShapeError, ["smaller than the window"]),
        (lambda: ops.max_pool(t(1, 5, 5, 3, dtype=zoo.bool_), 2), DtypeError, ["bool"]),
        (
            lambda: ops.attention(t(1, 2, 3, 4), t(1, 2, 2, 4), t(1, 2, 2, 4)),
            ShapeError,
            ["3 query heads", "2 key heads"],
        ),
        (lambda: ops.attention(t(1, 2, 2, 4), t(1, 2, 2, 3), t(1, 2, 2, 4)), ShapeError, ["k is (1, 2, 2, 3)"]),
        (lambda: ops.rope(t(1, 2, 1, 4), t(3, 2), t(3, 2)), ShapeError, ["cos is (3, 2)"]),
        (lambda: ops.cross_entropy(t(2, 3), t(3, **i)), ShapeError, ["targets is (3,); (2,) was expected"]),
        (lambda: ops.cross_entropy(t(2, 3), ops.full((2,), 3, dtype=int32, device="numpy")), ShapeError, ["0 to 2"]),
        (lambda: ops.layer_norm(t(2, 3), t(2), None), ShapeError, ["weight is (2,); (3,) was expected"]),
        (lambda: ops.group_norm(t(1, 2, 6), None, None, 4), ShapeError, ["6 channels", "4 groups"]),
        (lambda: ops.quantize(t(2, 33), "int4"), ShapeError, ["33 inputs", "groups of 32"]),
        (lambda: ops.quantize(t(2, 32), "int3"), DtypeError, ["int3", "int8, int4"]),
        (lambda: ops.where(t(2), t(2), t(2)), DtypeError, ["must be bool"]),
        (lambda: ops.where(True, t(2), t(2)), DtypeError, ["must be a bool tensor"]),
        (lambda: ops.logical_and(t(2), t(2)), DtypeError, ["float32 is not bool"]),
        (lambda: ops.add(1, 2), DtypeError, ["none of the arguments is a tensor"]),
        (lambda: ops.matmul(t(2, 2), 3.0), DtypeError, ["argument is 3.0", "zoo.tensor"]),
        (lambda: ops.matmul(t(2, 2), None), DtypeError, ["argument is None"]),
        (lambda: t(2) + None, DtypeError, ["argument is None"]),
        (lambda: t(2) + "x", DtypeError, ["argument is a str"]),
        (lambda: t(2) + np.ones(2), DtypeError, ["numpy array (2,)", "zoo.tensor"]),
        (lambda: np.ones(2) * t(2), DtypeError, ["numpy array (2,)"]),
        (lambda: t(2)[t(2) > 0], ShapeError, ["mask", "where"]),
        (lambda: ops.full((2, -1), 0), ShapeError, ["negative size"]),
        (lambda: ops.full((2,), NAN, dtype=int32), DtypeError, ["int32 cannot hold nan"]),
        (lambda: ops.full((2,), 300, dtype=zoo.uint8), DtypeError, ["uint8 cannot hold 300"]),
        (lambda: t(2, dtype=zoo.int8) + 300, DtypeError, ["300", "int8", "wider dtype"]),
        (lambda: ops.pad(t(2, **i), [(1, 0)], value=INF), DtypeError, ["int32 cannot hold inf"]),
        (lambda: ops.iota((2, 3), axis=2), ShapeError, ["axis 2"]),
        (lambda: ops.dropout(t(2), 1.0, seed=0, offset=0), ShapeError, ["p = 1.0"]),
    ]


@pytest.mark.parametrize("call, error, words", wrong_calls())
def test_errors_say_what_why_and_what_to_do(call: Any, error: type[ZooError], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert [w for w in words if w not in said] == [], said
    assert caught.value.what and caught.value.why, said


@pytest.mark.parametrize("case", [c for c in CASES if not c.source], ids=str)
def test_wrong_tensors_are_refused_in_the_zoos_words(case: Case) -> None:
    """One argument at a time is replaced by a tensor of another shape or dtype. The op takes it, or raises a ZooError
    (an IndexError from indexing); nothing of numpy's comes through."""
    device = zoo.device("numpy")

    def tensor(a: np.ndarray) -> Tensor:
        return Tensor(device.from_host(a), device)

    args = case.draw(case.main_dtype)
    for i, a in enumerate(args):
        if not isinstance(a, np.ndarray):
            continue
        wrong = [np.ones(a.shape, d) for d in (np.bool_, np.int32, float64, bfloat16)]
        wrong += [a[None], np.ones((), a.dtype)]
        if a.ndim:
            wrong += [np.concatenate([a, a]), np.concatenate([a, a], axis=-1), a[:0]]
        if a.dtype.kind in "iu":
            wrong += [np.full(a.shape, 100, a.dtype), a.astype(np.int64) - 100]
        for replaced in wrong:
            given = [tensor(replaced if j == i else x) if isinstance(x, np.ndarray) else x for j, x in enumerate(args)]
            try:
                case.fn(*given)
            except ZooError as e:
                assert e.what and e.why, e
            except IndexError:
                assert case.op in ("slice", "take")


def test_infinities_come_without_warnings_even_where_warnings_are_errors() -> None:
    code = (
        "import numpy as np, zoo\n"
        "x = zoo.tensor(np.full(9, 3e38, np.float32), device='numpy')\n"
        "o = zoo.ops\n"
        "y = [x.sum(), x.mean(), o.var(x), x * x, x.astype('f16'), o.cumsum(x), o.log(x - x), o.exp(x)]\n"
        "print(sum(bool(np.isinf(t.numpy()).any()) for t in y))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("8", "")
