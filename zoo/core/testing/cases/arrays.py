"""Cases of the ops that make, reduce, move and look up values."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.dtype import FLOATS, bfloat16, bool_, float32, float64, int8, int16, int32, int64, uint8
from zoo.core.prims import TABLE
from zoo.core.tensor import bind
from zoo.core.testing import ref
from zoo.core.testing.case import Case
from zoo.core.testing.tol import CONTRACTION, EXACT, SUM, Tol, ulp

NUMBERS = (*FLOATS, int32, int64, int8)
ANY = (*FLOATS, int32, int64, uint8, bool_)


def _none(r: Any) -> tuple[()]:
    return ()


def _source(name: str, fn: Any, want: Any, tol: Any = EXACT, result: Any = float32) -> Case:
    return Case(name, fn, _none, want, tol, grad=False, dtypes=(float32,), result=result, source=True)


BOX_MULLER = ulp(1, "worked out in float64; two libraries' logarithms may round to neighbouring float32 values")

SOURCE = [
    _source("full", lambda device: ops.full((2, 3), 1.5, device=device), lambda: np.full((2, 3), 1.5)),
    _source("full[scalar int]", lambda device: ops.full((), 7, dtype=int64, device=device), lambda: np.array(7),
            result=int64),
    _source("full[bfloat16]", lambda device: ops.ones((3,), dtype=bfloat16, device=device), lambda: np.ones(3),
            result=bfloat16),
    _source("full[-inf]", lambda device: ops.full((3,), float("-inf"), device=device), lambda: np.full(3, -np.inf)),
    _source("full[empty]", lambda device: ops.zeros((0, 3), device=device), lambda: np.zeros((0, 3))),
    _source("full[bool]", lambda device: ops.full((2,), True, dtype=bool_, device=device), lambda: np.full(2, True),
            result=bool_),
    _source("iota", lambda device: ops.arange(7, device=device), lambda: np.arange(7), result=int32),
    _source("iota[axis 1]", lambda device: ops.iota((2, 3, 2), axis=1, dtype=float32, device=device),
            lambda: np.array([[[float(j)] * 2 for j in range(3)]] * 2)),
    _source("iota[last]", lambda device: ops.iota((2, 3), axis=-1, device=device), lambda: np.array([[0, 1, 2]] * 2),
            result=int32),
    _source("iota[scalar]", lambda device: ops.iota((), device=device), lambda: np.array(0), result=int32),
    _source("iota[empty]", lambda device: ops.iota((3, 0), axis=1, device=device), lambda: np.zeros((3, 0), int),
            result=int32),
    _source("uniform", lambda device: ops.uniform((3, 7), seed=2**40 + 5, offset=2**32 - 2, device=device),
            lambda: ref.uniform((3, 7), 2**40 + 5, 2**32 - 2)),
    _source("uniform[empty]", lambda device: ops.uniform((0, 2), seed=1, device=device), lambda: np.zeros((0, 2))),
    _source("uniform[scalar]", lambda device: ops.uniform((), seed=1, device=device), lambda: ref.uniform((), 1, 0)),
    _source("normal", lambda device: ops.normal((5, 5), seed=3, offset=9, device=device),
            lambda: ref.normal((5, 5), 3, 9), BOX_MULLER),
    _source("normal[empty]", lambda device: ops.normal((0,), seed=3, device=device), lambda: np.zeros(0)),
]  # fmt: skip


def _counted(d: np.dtype) -> np.dtype:
    return int32 if d in (bool_, int8) else d


def _truth(name: str, **settings: Any) -> Case:
    face, want = getattr(ops, name.split("[")[0]), getattr(np, name.split("[")[0])
    return Case(name, lambda x: face(x, **settings),
                lambda r: ((r.f(4, 5) > 1.5) if r.dtype == bool_ else np.trunc(r.f(4, 5)),),
                lambda x: want(x, **settings), EXACT, grad=False, result=bool_,
                dtypes=(float32, bfloat16, int32, bool_))  # fmt: skip


LOGSUM = ulp(8, "log of a sum of exponentials, of values of order 1", floor=1.0)
AXES: tuple[tuple[str, Any, bool], ...] = (
    ("", None, False),
    ("[axis 0]", 0, False),
    ("[last, keepdims]", -1, True),
    ("[two axes]", (0, -1), False),
    ("[all, keepdims]", None, True),
)


def _along(name: str, want: Any, tol: Tol, distinct: bool = False, **rest: Any) -> list[Case]:
    """A reduction of (4, 3, 5) along each choice of axes."""
    face = getattr(ops, name)

    def row(label: str, axis: Any, keepdims: bool) -> Case:
        return Case(
            f"{name}{label}",
            lambda x: face(x, axis=axis, keepdims=keepdims),
            lambda r: (r.distinct(4, 3, 5) if distinct else r.f(4, 3, 5),),
            lambda x: want(x, axis=axis, keepdims=keepdims),
            tol,
            **rest,
        )

    return [row(*a) for a in AXES]


def _arg(name: str) -> list[Case]:
    face, want = getattr(ops, name), getattr(np, name)
    whole = (*FLOATS, int32, uint8)
    return [
        Case(f"{name}[axis {axis}{', keepdims' if keep else ''}]", lambda x, a=axis,
             k=keep: face(x, axis=a, keepdims=k),
             lambda r: (np.trunc(r.f(4, 3, 7)),), lambda x, a=axis, k=keep: want(x, axis=a, keepdims=k), EXACT,
             grad=False,
             result=int32, dtypes=whole)  # whole numbers from -2 to 2: ties in every row, of which the first must win
        for axis, keep in ((-1, False), (0, False), (1, True))
    ] + [Case(f"{name}[empty]", lambda x: face(x, axis=1), lambda r: (r.f(0, 3),), lambda x: want(x, axis=1), EXACT,
              grad=False,
              result=int32)]  # fmt: skip


REDUCE = [
    *_along("sum", np.sum, SUM, result=_counted, dtypes=(*NUMBERS, bool_)),
    *_along("mean", np.mean, SUM),
    *_along("var", np.var, SUM),
    *_along("max", np.max, EXACT, distinct=True, dtypes=(*FLOATS, int32, int64)),
    *_along("min", np.min, EXACT, distinct=True, dtypes=(*FLOATS, int32, int64)),
    *_along("logsumexp", ref.logsumexp, LOGSUM),
    *_arg("argmax"), *_arg("argmin"),
    Case("sum[empty]", lambda x: ops.sum(x, axis=0), lambda r: (r.f(0, 3),), lambda x: np.sum(x, axis=0), EXACT,
         result=_counted, dtypes=NUMBERS),
    Case("sum[beyond int8]", ops.sum, lambda r: (np.full(300, 100, np.int8),),
         lambda x: np.sum(x, dtype=np.int64), EXACT, result=_counted, dtypes=(int8,)),
    Case("sum[kept empty]", lambda x: ops.sum(x, axis=1), lambda r: (r.f(0, 3),), lambda x: np.sum(x, axis=1), EXACT),
    Case("sum[no axis]", lambda x: ops.sum(x, axis=()), lambda r: (r.f(2, 3),), lambda x: x, EXACT),
    Case("sum[scalar]", ops.sum, lambda r: (r.f(),), np.sum, EXACT),
    Case("sum[many]", ops.sum, lambda r: (np.ones(3000),), np.sum, EXACT, second=False),
     # a bfloat16 sum would stop at 256
    Case("mean[empty]", lambda x: ops.mean(x, axis=1), lambda r: (r.f(0, 3),), lambda x: np.mean(x, axis=1), EXACT),
    Case("mean[over nothing]", lambda x: ops.mean(x, axis=0), lambda r: (r.f(0, 3),), lambda x: np.full(3, np.nan),
         EXACT, grad=False),
    Case("mean[many]", ops.mean, lambda r: (np.full(3000, 2.0),), np.mean, EXACT, second=False),
    Case("var[empty]", lambda x: ops.var(x, axis=1), lambda r: (r.f(0, 3),), lambda x: np.var(x, axis=1), EXACT),
    Case("var[off centre]", lambda x: ops.var(x, axis=1), lambda r: (r.f(3, 8, low=99, high=101),),
         lambda x: np.var(x, axis=1),
         ulp(64, "the mean of values near 100 is off by an ulp of 100: 2^6 ulp of their variance"),
         dtypes=(float32, float64)),
    Case("max[ties]", lambda x: ops.max(x, axis=1), lambda r: (np.array([[1.0, 3, 3], [2, 2, 2]]),),
         lambda x: np.max(x, axis=1), EXACT,
         grad=False),
    Case("max[empty]", lambda x: ops.max(x, axis=1), lambda r: (r.f(0, 3),), lambda x: np.max(x, axis=1), EXACT),
    Case("min[empty]", lambda x: ops.min(x, axis=1), lambda r: (r.f(0, 3),), lambda x: np.min(x, axis=1), EXACT),
    Case("max[bool]", ops.max, lambda r: (r.b(5),), np.max, EXACT, grad=False, result=bool_, dtypes=(float32,)),
    *[
        Case(f"cumsum[axis {axis}]", lambda x, a=axis: ops.cumsum(x, axis=a), lambda r: (r.f(3, 4, 5),), lambda x,
             a=axis: np.cumsum(x, axis=a),
             SUM, result=_counted, dtypes=(*NUMBERS, bool_))
        for axis in (-1, 0, 1)
    ],
    Case("cumsum[many]", ops.cumsum, lambda r: (np.ones(3000),), np.cumsum, EXACT, second=False),
    Case("cumsum[empty]", ops.cumsum, lambda r: (r.f(3, 0),), lambda x: x, EXACT),
    _truth("any", axis=1), _truth("any[all axes]"), _truth("all", axis=0, keepdims=True), _truth("all[all axes]"),
    Case("any[empty]", lambda x: ops.any(x, axis=1), lambda r: (r.f(3, 0),), lambda x: np.any(x, axis=1), EXACT,
         grad=False, result=bool_),
    Case("all[empty]", lambda x: ops.all(x, axis=1), lambda r: (r.f(3, 0),), lambda x: np.all(x, axis=1), EXACT,
         grad=False, result=bool_),
    Case("logsumexp[large]", ops.logsumexp, lambda r: (r.f(3, 4) + 600,), ref.logsumexp, LOGSUM,
         dtypes=(float32, float64)),
    Case("logsumexp[-inf]", ops.logsumexp, lambda r: (np.array([[-np.inf, 1.0, 2.0], [-np.inf] * 3]),), ref.logsumexp,
         LOGSUM, grad=False,
         nan=False),
    Case("logsumexp[empty]", ops.logsumexp, lambda r: (r.f(0, 3),), ref.logsumexp, EXACT),
]  # fmt: skip


def _move(name: str, fn: Any, shape: tuple[int, ...], want: Any, dtypes: Any = ANY, **rest: Any) -> Case:
    return Case(name, fn, lambda r: (r.f(*shape),), want, EXACT, dtypes=dtypes, **rest)


def _pad(pads: Any, value: float = 0) -> dict[str, Any]:
    return {"fn": lambda x: bind(TABLE["pad"], x, pads=pads, value=value), "want": lambda x: ref.pad(x, pads, value)}


VIEW = [
    _move("reshape", lambda x: x.reshape(4, -1), (2, 6, 3), lambda x: x.reshape(4, 9)),
    _move("reshape[to scalar]", lambda x: ops.reshape(x, ()), (1, 1), lambda x: x.reshape(())),
    _move("reshape[empty]", lambda x: x.reshape(0, 5), (3, 0), lambda x: x.reshape(0, 5)),
    _move("permute_dims", lambda x: ops.permute_dims(x, (2, 0, 1)), (2, 3, 4), lambda x: np.einsum("abc->cab", x)),
    _move("permute_dims[negative]", lambda x: x.permute_dims(0, -1, 1), (2, 3, 4), lambda x: np.einsum("abc->acb", x)),
    _move("permute_dims[scalar]", lambda x: x.permute_dims(()), (), lambda x: x),
    _move("permute_dims[empty]", lambda x: x.mT, (2, 0, 4), lambda x: np.swapaxes(x, 1, 2)),
    _move("expand", lambda x: ops.expand(x, (2, 3, 4)), (3, 1), lambda x: np.array([[[v] * 4 for v in x[:, 0]]] * 2),
          (*FLOATS, int32)),
    _move("expand[scalar]", lambda x: ops.expand(x, (2, 2)), (), lambda x: np.full((2, 2), x), (*FLOATS, int32)),
    _move("expand[empty]", lambda x: ops.expand(x, (0, 3)), (1, 3), lambda x: np.zeros((0, 3)), FLOATS),
    _move("slice", lambda x: x[1:5:2, ..., 3], (6, 2, 4), lambda x: np.stack([x[1, :, 3], x[3, :, 3]])),
    _move("slice[backwards]", lambda x: x[::-2, None, -1], (5, 3),
          lambda x: np.array([[x[4, 2]], [x[2, 2]], [x[0, 2]]])),
    _move("slice[nothing]", lambda x: x[3:1], (5, 3), lambda x: np.zeros((0, 3)), FLOATS),
    _move("slice[empty]", lambda x: x[:, 1], (0, 3), lambda x: np.zeros(0), FLOATS),
    _move("slice[step over the end]", lambda x: x[2::7], (12,), lambda x: np.array([x[2], x[9]])),
    _move("pad", lambda x: ops.pad(x, [(1, 2), (0, 1)]), (3, 2), lambda x: ref.pad(x, ((1, 2, 0), (0, 1, 0)), 0)),
    _move("pad[value]", lambda x: ops.pad(x, [(2, 1)], value=-1), (3,), lambda x: ref.pad(x, ((2, 1, 0),), -1),
          (*FLOATS, int32)),
    _move("pad[-inf]", lambda x: ops.pad(x, [(1, 1)], value=float("-inf")), (3,),
          lambda x: ref.pad(x, ((1, 1, 0),), -np.inf), FLOATS, smooth=False),
    _move("pad[crop]", lambda x: ops.pad(x, [(-1, -2), (-1, 3)]), (5, 3),
          lambda x: ref.pad(x, ((-1, -2, 0), (-1, 3, 0)), 0)),
    _move("pad[interior]", shape=(3, 4), **_pad(((1, 0, 2), (0, 2, 1)), 5.0), dtypes=FLOATS),
    _move("pad[interior, crop]", shape=(5, 4), **_pad(((-2, -1, 1), (-1, -4, 3)))),
    _move("pad[crop all]", shape=(3, 2), **_pad(((-4, 1, 0), (0, 0, 0)))),
    _move("pad[crop from between]", shape=(4,), **_pad(((-1, -1, 2),), 9.0), dtypes=FLOATS),
    _move("pad[nothing]", shape=(3,), **_pad(((0, 0, 0),))),
    _move("pad[empty]", shape=(0, 2), **_pad(((1, 1, 3), (0, 0, 0)))),
    _move("flip", lambda x: ops.flip(x, axis=1), (2, 3, 2), lambda x: np.stack([x[:, 2], x[:, 1], x[:, 0]], axis=1)),
    _move("flip[all]", ops.flip, (2, 3), lambda x: x.reshape(-1)[::-1].reshape(2, 3)),
    _move("flip[empty]", lambda x: ops.flip(x, axis=0), (0, 3), lambda x: x),
    Case("concat", lambda *xs: ops.concat(xs, axis=1), lambda r: (r.f(2, 3), r.f(2, 1), r.f(2, 2)),
         lambda *xs: np.hstack(xs), EXACT,
         dtypes=ANY),
    Case("concat[one]", lambda x: ops.concat([x], axis=-1), lambda r: (r.f(2, 3),), lambda x: x, EXACT, dtypes=ANY),
    Case("concat[empty]", lambda *xs: ops.concat(xs), lambda r: (r.f(0, 3), r.f(2, 3)), lambda a, b: b, EXACT,
         dtypes=ANY),
    Case("concat[stack]", lambda *xs: ops.stack(xs, axis=-1), lambda r: (r.f(2, 3), r.f(2, 3)),
         lambda *xs: np.stack(xs, axis=-1), EXACT),
    Case("concat[of a split]", lambda x: ops.concat(ops.split(x, [1, 2, 1])[::-1], axis=-1), lambda r: (r.f(2, 4),),
         lambda x: x[:, [3, 1, 2, 0]], EXACT),
    Case("reshape[squeeze]", lambda x: ops.squeeze(ops.expand_dims(x, -1), 0), lambda r: (r.f(1, 3),),
         lambda x: x.reshape(3, 1), EXACT),
]  # fmt: skip


INDEX = [
    Case("take", ops.take, lambda r: (r.f(5, 3), r.i(2, 4, below=5)), lambda x,
         i: np.array([[x[k] for k in row] for row in i]), EXACT,
         dtypes=ANY),
    Case("take[scalar]", ops.take, lambda r: (r.f(5, 3), r.i(below=5)), lambda x, i: x[int(i)], EXACT),
    Case("take[int64, from the end]", lambda x, i: x[i], lambda r: (r.f(4), np.array([3, 0, 3], np.int64)),
         lambda x, i: np.array([x[3], x[0], x[3]]), EXACT),
    Case("take[empty]", ops.take, lambda r: (r.f(5, 3), r.i(0, below=5)), lambda x, i: np.zeros((0, 3)), EXACT),
    Case("gather", ops.gather, lambda r: (r.f(3, 5), r.i(3, 4, below=5)), lambda x, i: ref.gather(x, i, 1), EXACT,
         dtypes=ANY),
    Case("gather[axis 0]", lambda x, i: ops.gather(x, i, axis=0), lambda r: (r.f(3, 2, 4), r.i(6, 2, 4, below=3)),
         lambda x, i: ref.gather(x, i, 0), EXACT),
    Case("gather[middle]", lambda x, i: ops.gather(x, i, axis=-2),
         lambda r: (r.f(3, 2, 4), r.i(3, 3, 4, below=2, dtype=np.uint8)),
         lambda x, i: ref.gather(x, i, 1), EXACT),
    Case("gather[empty]", ops.gather, lambda r: (r.f(3, 5), r.i(3, 0, below=5)), lambda x, i: np.zeros((3, 0)), EXACT),
    Case("scatter_add", ops.scatter_add, lambda r: (r.f(4, 3), np.array([1, 3, 1, 1]), r.f(4, 3)), ref.scatter_add,
         CONTRACTION,
         dtypes=(*FLOATS, int32)),
    Case("scatter_add[grid of indices]", ops.scatter_add, lambda r: (r.f(3), r.i(2, 5, below=3), r.f(2, 5)),
         ref.scatter_add, CONTRACTION),
    Case("scatter_add[many]", ops.scatter_add,
         lambda r: (np.zeros((1, 2)), np.zeros(600, np.int64), np.ones((600, 2))), ref.scatter_add,
         EXACT, grad=False, nan=False),  # a bfloat16 sum would stop at 256
    Case("scatter_add[empty]", ops.scatter_add, lambda r: (r.f(4, 3), r.i(0, below=4), r.f(0, 3)), ref.scatter_add,
         EXACT),
    Case("update_slice", lambda x, u: ops.update_slice(x, u, (1, 0)), lambda r: (r.f(4, 3), r.f(2, 2)),
         lambda x,
         u: np.array([[u[i - 1, j] if 1 <= i < 3 and j < 2 else x[i, j] for j in range(3)] for i in range(4)]), EXACT,
         dtypes=(*FLOATS, int32, bool_)),
    Case("update_slice[empty]", lambda x, u: ops.update_slice(x, u, (2, 0)), lambda r: (r.f(4, 3), r.f(0, 3)),
         lambda x, u: x, EXACT),
    Case("update_rows", ops.update_rows, lambda r: (r.f(2, 5, 3, 2), r.f(2, 2, 3, 2), np.array([1, 3], np.int32)),
         ref.update_rows, EXACT, dtypes=(*FLOATS, int32)),
    Case("update_rows[one]", ops.update_rows, lambda r: (r.f(1, 5, 3), r.f(1, 1, 3), np.array([4], np.int32)),
         ref.update_rows, EXACT),
    Case("update_rows[outside]", ops.update_rows, lambda r: (r.f(3, 4), r.f(3, 2), np.array([-1, 3, 9], np.int64)),
         ref.update_rows, EXACT),
    Case("update_rows[empty]", ops.update_rows, lambda r: (r.f(2, 4, 3), r.f(2, 0, 3), np.array([1, 3], np.int32)),
         lambda x, u, p: x, EXACT, grad=(0,)),
    Case("topk", lambda x: ops.topk(x, 3), lambda r: (r.distinct(2, 3, 7),), lambda x: ref.topk(x, 3), EXACT,
         result=(None, int32),
         dtypes=(*FLOATS, int32, int16), nan=False),  # where NaN comes is said in test_special.py
    Case("topk[ties]", lambda x: ops.topk(x, 4), lambda r: (np.trunc(r.f(5, 9)),), lambda x: ref.topk(x, 4), EXACT,
         grad=False,
         result=(None, int32), dtypes=(*FLOATS, int32, uint8), nan=False),
    Case("topk[bool]", lambda x: ops.topk(x, 2), lambda r: (r.b(3, 5),), lambda x: ref.topk(x, 2), EXACT, grad=False,
         result=(bool_, int32), dtypes=(float32,), nan=False),
    Case("topk[empty]", lambda x: ops.topk(x, 2), lambda r: (r.f(0, 5),), lambda x: ref.topk(x, 2), EXACT, grad=False,
         result=(None, int32)),
    Case("sort", ops.sort, lambda r: (r.distinct(3, 6),), lambda x: np.array([sorted(row) for row in x]), EXACT,
         dtypes=(*FLOATS, int32),
         nan=False),
    Case("sort[descending]", lambda x: ops.sort(x, descending=True), lambda r: (r.distinct(3, 6),),
         lambda x: np.array([sorted(row, reverse=True) for row in x]), EXACT, dtypes=(*FLOATS, int32), nan=False),
    Case("sort[empty]", ops.sort, lambda r: (r.f(3, 0),), lambda x: x, EXACT),
]  # fmt: skip

CASES: list[Case] = [*SOURCE, *REDUCE, *VIEW, *INDEX]
