"""Cases of the composites that models are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.dtype import FLOATS, bfloat16, float16, float32, float64, int32
from zoo.core.prims import TABLE
from zoo.core.tensor import bind
from zoo.core.testing import ref
from zoo.core.testing.case import Case
from zoo.core.testing.tol import ACTIVATED, CONTRACTION, EXACT, GRADIENT, Tol, nmse, ulp

ACTIVATION = ulp(8, "1 + erf and the like cancel below 0: a few ulp of 1, times x", floor=1.0)
SHARES = ulp(16, "exp(x - max): the ulp of a difference up to 6, then a sum and a quotient")
NORMALISED = ulp(
    16, "a mean over tens of values, a root, two products; cancellation where x is near the mean", floor=1.0
)
# as transformers' LlamaRMSNorm: the normalised value is rounded to the dtype of x, then multiplied by the weight
TWICE = ulp(16, "rounded to the dtype of x before the weight and after it", halves=1.5)
HALVES_TWICE = ulp(
    8, "silu(gate) is rounded to the dtype of the values, as in transformers, then the product", halves=1.5, floor=1.0
)
# weights of attention are near 1/S and their errors independent: a mean of values that were each rounded
ATTENTION = nmse(
    1e-11, 1e-6, 5e-5, 1e-27, "two products and a softmax in float32; fast kernels may round weights to the dtype of v"
)
ATTENTION_GRAD = nmse(
    1e-11, 1e-6, 5e-5, 1e-27, "four products and a softmax in float32, and a difference from a mean that may cancel"
)


def _unary(name: str) -> Case:
    return Case(name, getattr(ops, name), lambda r: (r.f(5, 7, low=-6, high=6),), ref.ACTIVATIONS[name], ACTIVATION)


def _unary_empty(name: str) -> Case:
    return Case(f"{name}[empty]", getattr(ops, name), lambda r: (r.f(3, 0),), lambda x: x, EXACT)


ACTIVATIONS = [
    *[_unary(n) for n in ("gelu", "gelu_tanh", "quick_gelu")], *[_unary_empty(n) for n in ("gelu", "gelu_tanh",
    "quick_gelu")], Case("swiglu", ops.swiglu, lambda r: (r.f(3, 9), r.f(3, 9)), lambda a, b:
    ref.ACTIVATIONS["silu"](a) * b,
         HALVES_TWICE),
    Case("geglu", ops.geglu, lambda r: (r.f(3, 18),), lambda x: x[..., :9] * ref.ACTIVATIONS["gelu"](x[..., 9:]),
         HALVES_TWICE),
    Case("geglu[empty]", ops.geglu, lambda r: (r.f(0, 18),), lambda x: x[..., :9], EXACT),
    Case("swiglu[empty]", ops.swiglu, lambda r: (r.f(0, 9), r.f(0, 9)), lambda a, b: a, EXACT),
]  # fmt: skip

SOFTMAX = [
    Case("softmax", ops.softmax, lambda r: (r.f(4, 9),), ref.softmax, SHARES),
    Case("softmax[axis 1]", lambda x: ops.softmax(x, axis=1), lambda r: (r.f(2, 5, 3),), lambda x: ref.softmax(x, 1),
         SHARES),
    Case("softmax[large]", ops.softmax, lambda r: (r.f(3, 8, low=-300, high=300),), ref.softmax,
         ulp(600, "an ulp of differences up to 600 is one of their exponent", floor=2**-20), second=False,
         dtypes=(float32, float64)),
    Case("softmax[one value]", ops.softmax, lambda r: (r.f(3, 1),), ref.softmax, EXACT),
    Case("softmax[-inf]", ops.softmax, lambda r: (np.array([[0.0, -np.inf, 1, -np.inf]]),), ref.softmax, SHARES,
         grad=False),
    Case("softmax[empty]", ops.softmax, lambda r: (r.f(0, 9),), lambda x: x, EXACT),
    Case("softmax[over nothing]", ops.softmax, lambda r: (r.f(3, 0),), lambda x: x, EXACT),
    Case("log_softmax", ops.log_softmax, lambda r: (r.f(4, 9),), lambda x: np.log(ref.softmax(x)),
         ulp(8, "a difference of values of order 1",
         floor=1.0)),
    Case("log_softmax[axis 0]", lambda x: ops.log_softmax(x, axis=0), lambda r: (r.f(4, 3),),
         lambda x: np.log(ref.softmax(x, 0)),
         ulp(8, "a difference of values of order 1", floor=1.0)),
    Case("log_softmax[far]", ops.log_softmax, lambda r: (r.f(3, 8, low=-80, high=80),),
         lambda x: np.log(ref.softmax(x)),
         ulp(8, "a difference of values up to 80", floor=80.0), dtypes=(float32, float64)),
    Case("log_softmax[empty]", ops.log_softmax, lambda r: (r.f(0, 9),), lambda x: x, EXACT),
    Case("cross_entropy", ops.cross_entropy, lambda r: (r.f(6, 5), r.i(6, below=5)), ref.cross_entropy,
         ulp(8, "a difference of values of order 1", floor=1.0), result=lambda d: float64 if d == float64 else float32),
    Case("cross_entropy[grid, int64]", ops.cross_entropy, lambda r: (r.f(2, 3, 4), r.i(2, 3, below=4, dtype=np.int64)),
         ref.cross_entropy,
         ulp(8, "a difference of values of order 1", floor=1.0), result=lambda d: float64 if d == float64 else float32),
    Case("cross_entropy[empty]", ops.cross_entropy, lambda r: (r.f(0, 5), r.i(0, below=5)), ref.cross_entropy, EXACT,
         result=lambda d: float64 if d == float64 else float32),
]  # fmt: skip


def _norm(
    name: str, label: str, args: Any, want: Any, tol: Tol = NORMALISED, gradient: Tol = GRADIENT, **settings: Any
) -> Case:
    face = getattr(ops, name)
    return Case(
        f"{name}{label}",
        lambda *a: face(*a, **settings),
        args,
        want,
        tol,
        gradient=gradient,
        spread=name != "layer_norm",
    )


# an ulp of 200 is 2^-16, a hundred times that of the deviations
FAR = nmse(1e-9, 1e-3, 1e-1, 1e-22, "values near 200: an ulp of 200 over a deviation of 2", floor=0.01)


NORMS = [
    _norm("rms_norm", "", lambda r: (r.f(3, 5, 16), r.f(16)), lambda x, w: ref.rms_norm(x, w, 1e-6), TWICE, eps=1e-6),
    _norm("rms_norm", "[float32 weight]", lambda r: (r.f(3, 16), r.f(16, dtype=float32)), lambda x,
          w: ref.rms_norm(x, w, 1e-5),
          ulp(16, "the weight is rounded to the dtype of x too", halves=2.0)),
    _norm("rms_norm", "[tiny]", lambda r: (r.f(2, 8) * 1e-3, r.f(8)), lambda x, w: ref.rms_norm(x, w, 1e-5), TWICE),
    _norm("rms_norm", "[empty]", lambda r: (r.f(0, 8), r.f(8)), lambda x, w: x, EXACT),
    _norm("layer_norm", "", lambda r: (r.f(3, 4, 12), r.f(12), r.f(12)), lambda x, w,
          b: ref.standardised(x, -1, 1e-5) * w + b),
    _norm("layer_norm", "[no affine]", lambda r: (r.f(5, 12), None, None), lambda x, w,
          b: ref.standardised(x, -1, 1e-5)),
    _norm("layer_norm", "[weight alone]", lambda r: (r.f(5, 12), r.f(12), None), lambda x, w,
          b: ref.standardised(x, -1, 1e-5) * w),
    _norm("layer_norm", "[far from 0]", lambda r: (r.f(3, 12) + 200, r.f(12), r.f(12)), lambda x, w,
          b: ref.standardised(x, -1, 1e-5) * w + b,
          ulp(16, "values near 200: an ulp of 200 over a deviation of 2", floor=256.0), FAR),
    _norm("layer_norm", "[empty]", lambda r: (r.f(0, 12), r.f(12), r.f(12)), lambda x, w, b: x, EXACT),
    _norm("group_norm", "", lambda r: (r.f(2, 3, 4, 6), r.f(6), r.f(6), 3), lambda x, w, b,
          g: ref.group_norm(x, w, b, g, 1e-5)),
    _norm("group_norm", "[one group, 1-D]", lambda r: (r.f(2, 5, 4), r.f(4), r.f(4), 1), lambda x, w, b,
          g: ref.group_norm(x, w, b, 1, 1e-6),
          eps=1e-6),
    _norm("group_norm", "[silu]", lambda r: (r.f(2, 3, 3, 4), r.f(4), r.f(4), 2),
          lambda x, w, b, g: ref.ACTIVATIONS["silu"](ref.group_norm(x, w, b, 2, 1e-5)), activation="silu"),
    _norm("group_norm", "[no affine, no space]", lambda r: (r.f(3, 8), None, None, 2), lambda x, w, b,
          g: ref.group_norm(x, w, b, 2, 1e-5)),
    _norm("group_norm", "[empty]", lambda r: (r.f(0, 3, 4), r.f(4), r.f(4), 2), lambda x, w, b, g: x, EXACT),
    _norm("batch_norm", "", lambda r: (r.f(2, 3, 4, 5), r.f(5), r.f(5, low=0.1), r.f(5), r.f(5)),
          lambda x, m, v, w, b: (x - m) / np.sqrt(v + 1e-5) * w + b,
          ulp(24, "differences and products of values up to 30", floor=32.0)),
    _norm("batch_norm", "[no affine]", lambda r: (r.f(6, 5), r.f(5), r.f(5, low=0.5), None, None),
          lambda x, m, v, w, b: (x - m) / np.sqrt(v + 1e-3), eps=1e-3),
    _norm("batch_norm", "[empty]", lambda r: (r.f(0, 5), r.f(5), r.f(5, low=0.1), r.f(5), r.f(5)), lambda x, m, v, w,
          b: x, EXACT),
]  # fmt: skip


def _own_moments(x: np.ndarray, w: Any, b: Any) -> tuple[np.ndarray, ...]:
    axes = tuple(range(x.ndim - 1))
    return ref.affine(ref.standardised(x, axes, 1e-5), w, b), x.mean(axes), x.var(axes)


def _moments_dtype(d: Any) -> Any:
    return float64 if d == float64 else float32


TRAINED = [
    Case(f"batch_norm_train{label}", lambda *a: ops.batch_norm_train(*a), args, _own_moments, NORMALISED,
         result=(None, _moments_dtype, _moments_dtype), spread=False)
    for label, args in (
        ("", lambda r: (r.f(3, 2, 4, 5), r.f(5), r.f(5))),
        ("[no affine]", lambda r: (r.f(20, 5), None, None)),
    )
] + [
    Case("batch_norm_train[no channels, empty]", lambda *a: ops.batch_norm_train(*a),
         lambda r: (r.f(5, 0), r.f(0), r.f(0)), _own_moments, EXACT,
         result=(None, _moments_dtype, _moments_dtype), second=False),
]  # fmt: skip


def _linear(label: str, args: Any, activation: str | None = None, tol: Tol = CONTRACTION, **rest: Any) -> Case:
    def want(x: np.ndarray, w: np.ndarray, b: Any = None) -> np.ndarray:
        y = np.einsum("...k,nk->...n", x, w)
        return ref.ACTIVATIONS[activation](y if b is None else y + b)

    return Case(
        f"linear{label}", lambda x, w, b=None: ops.linear(x, w, b, activation=activation), args, want, tol, **rest
    )


LINEAR = [
    _linear("", lambda r: (r.f(4, 7), r.f(5, 7), r.f(5))),
    _linear("[no bias]", lambda r: (r.f(2, 3, 7), r.f(5, 7))),
    _linear("[one row]", lambda r: (r.f(1, 1, 40), r.f(37, 40), r.f(37))),
    _linear("[vector]", lambda r: (r.f(7), r.f(5, 7), r.f(5))),
    *[_linear(f"[{a}]", lambda r: (r.f(4, 7), r.f(5, 7), r.f(5)), a, ACTIVATED) for a in ref.ACTIVATIONS if a],
    _linear("[bfloat16 weight]", lambda r: (r.f(4, 7), r.f(5, 7, dtype=bfloat16), r.f(5, dtype=bfloat16)),
            dtypes=(float32, bfloat16)),
    _linear("[float16 weight, float32 bias]", lambda r: (r.f(4, 7), r.f(5, 7, dtype=float16), r.f(5, dtype=float32)),
            dtypes=(float32, float16)),
    # more rows than kernels for few of them take
    _linear("[12 rows, silu]", lambda r: (r.f(12, 33), r.f(19, 33), r.f(19)), "silu", ACTIVATED),
    *[
        _linear(f"[12 rows, {d.name} weight]", lambda r, d=d: (r.f(3, 4, 33), r.f(19, 33, dtype=d), r.f(19)),
                dtypes=(float32, d))
        for d in (bfloat16, float16)
    ],
    _linear("[many terms]", lambda r: (np.ones((2, 3000)), np.ones((1, 3000))), tol=EXACT, second=False),
    _linear("[empty]", lambda r: (r.f(0, 7), r.f(5, 7), r.f(5)), tol=EXACT),
    _linear("[empty sum]", lambda r: (r.f(2, 0), r.f(5, 0), r.f(5)), tol=EXACT),
]  # fmt: skip


def _attention(
    label: str, q: Any, kv: Any, Dv: int | None = None, bias: Any = None, tol: Tol = ATTENTION, **settings: Any
) -> Case:
    B, S, Hkv, D = kv

    def args(r: Any) -> tuple[Any, ...]:
        return r.f(*q), r.f(*kv), r.f(B, S, Hkv, Dv or D), bias(r) if bias else None

    rest = {k: settings.pop(k) for k in ("nan", "grad") if k in settings}
    return Case(f"attention{label}", lambda q, k, v, b: ops.attention(q, k, v, b, **settings), args,
                lambda q, k, v, b: ref.attention(q, k, v, b, **settings), tol, **rest)  # fmt: skip


def _attention_of(label: str, q: Any, kv: Any, lengths: Sequence[int], bias: Any = None, **settings: Any) -> Case:
    """With fewer keys than there is room for: what is behind them says nothing."""

    def args(r: Any) -> tuple[Any, ...]:
        return r.f(*q), r.f(*kv), r.f(*kv), bias(r) if bias else None, np.array(lengths, np.int32)

    def reference(q: Any, k: Any, v: Any, b: Any, n: Any) -> Any:
        return ref.attention(q, k, v, b, **settings, lengths=n)

    name = f"attention[lengths, {label}]"
    return Case(name, lambda *args: ops.attention(*args, **settings), args, reference, ATTENTION, nan=False)


def _padding_mask(r: Any) -> np.ndarray:
    """(B, 1, 1, S): the first sequence sees 3 of 5 keys, the second none."""
    mask = np.zeros((2, 1, 1, 5))
    mask[0, ..., 3:] = mask[1] = -np.inf
    return mask.astype(np.float32)


# the reference leaves unseen keys out; a kernel multiplies them by zero, which turns NaN in them into NaN
HIDDEN: dict[str, Any] = {"nan": False}
ATTENTIONS = [
    _attention("", (2, 3, 2, 4), (2, 5, 2, 4)),
    _attention("[grouped]", (1, 3, 6, 4), (1, 5, 2, 4)),
    _attention("[one key head]", (2, 3, 4, 4), (2, 4, 1, 4)),
    _attention("[Dv]", (1, 3, 2, 4), (1, 5, 2, 4), Dv=7),
    _attention("[scale]", (1, 3, 2, 4), (1, 5, 2, 4), scale=0.3),
    _attention("[causal]", (2, 5, 2, 4), (2, 5, 2, 4), causal=True, **HIDDEN),
    _attention("[causal, grouped, cached keys]", (1, 2, 4, 4), (1, 7, 2, 4), causal=True, **HIDDEN),
    _attention("[causal, more queries than keys]", (1, 6, 2, 4), (1, 3, 1, 4), causal=True, **HIDDEN),
    _attention("[one query]", (1, 1, 4, 8), (1, 9, 2, 8), causal=True),
    _attention("[one query, many keys]", (1, 1, 4, 8), (1, 133, 2, 8), causal=True),
    _attention("[bias]", (2, 3, 2, 4), (2, 5, 2, 4), bias=lambda r: r.f(2, 2, 3, 5)),
    _attention("[bias by head]", (2, 3, 2, 4), (2, 5, 2, 4), bias=lambda r: r.f(2, 1, 5)),
    _attention("[bias, causal]", (1, 3, 2, 4), (1, 3, 2, 4), bias=lambda r: r.f(1, 1, 3, 3), causal=True, **HIDDEN),
    _attention(
        "[masked, one row sees nothing]", (2, 3, 2, 4), (2, 5, 2, 4), bias=_padding_mask, grad=(0, 1, 2), **HIDDEN
    ),
    _attention("[long, over tiles]", (1, 70, 2, 8), (1, 133, 1, 8), causal=True, **HIDDEN),
    _attention_of("one query", (2, 1, 4, 4), (2, 9, 2, 4), (4, 4), causal=True),
    _attention_of("of their own", (3, 2, 2, 4), (3, 8, 2, 4), (3, 8, 0), causal=True),
    _attention_of("not causal", (2, 3, 4, 4), (2, 7, 2, 4), (5, 2)),
    _attention_of("long", (2, 20, 2, 8), (2, 133, 1, 8), (131, 20), causal=True),
    _attention_of("bias", (2, 3, 2, 4), (2, 7, 2, 4), (5, 3), lambda r: r.f(2, 1, 1, 7), causal=True),
    _attention("[empty queries]", (1, 0, 2, 4), (1, 5, 2, 4), tol=EXACT),
    _attention("[empty keys]", (1, 3, 2, 4), (1, 0, 2, 4), tol=EXACT, grad=False),
    _attention("[empty batch]", (0, 3, 2, 4), (0, 5, 2, 4), tol=EXACT),
]


def _attention_grad(label: str, q: Any, kv: Any, Dv: int, causal: bool = False) -> Case:
    B, S, Hkv, _ = kv

    def grad(q: Any, k: Any, v: Any, g: Any) -> Any:
        return bind(TABLE["attention_grad"], g, q, k, v, None, causal=causal, scale=None)

    return Case(
        f"attention_grad{label}", grad, lambda r: (r.f(*q), r.f(*kv), r.f(B, S, Hkv, Dv), r.f(*q[:3], Dv)),
        lambda q, k, v, g: ref.attention_grad(q, k, v, g, causal), ATTENTION_GRAD, nan=False, second=False,
        spread=False,
    )  # fmt: skip


ATTENTION_GRADS = [
    _attention_grad("", (2, 3, 2, 4), (2, 5, 2, 4), 7),
    _attention_grad("[causal, grouped]", (1, 4, 4, 4), (1, 6, 2, 4), 4, causal=True),
    _attention_grad("[causal, more queries than keys]", (1, 5, 2, 4), (1, 3, 1, 4), 4, causal=True),
    _attention_grad("[empty queries]", (1, 0, 2, 4), (1, 3, 1, 4), 4),
]


def _rope(label: str, x: tuple[int, ...], angles: tuple[int, ...], interleaved: bool = False) -> Case:
    def args(r: Any) -> tuple[Any, ...]:
        turn = r.rng.uniform(0, 6, angles)
        return r.f(*x), np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)

    return Case(f"rope{label}", lambda x, c, s: ops.rope(x, c, s, interleaved=interleaved), args,
                lambda x, c, s: ref.rope(x, c, s, interleaved),
                ulp(2, "a difference of two products", floor=4.0))  # fmt: skip


ROPE = [
    _rope("", (2, 3, 2, 8), (3, 4)),
    _rope("[interleaved]", (2, 3, 2, 8), (3, 4), True),
    _rope("[by sample]", (2, 3, 2, 6), (2, 3, 3)),
    _rope("[one row of angles for all]", (2, 3, 2, 6), (1, 3, 3), True),
    _rope("[partial]", (1, 3, 2, 8), (3, 2)),
    _rope("[partial, interleaved]", (1, 3, 2, 8), (3, 3), True),
    _rope("[empty]", (1, 0, 2, 8), (0, 4)),
]


def _dropped(x: np.ndarray) -> np.ndarray:
    return np.where(ref.uniform(x.shape, 11, 3) >= 0.3, x / 0.7, 0.0)


_ADAMW: dict[str, Any] = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}


def _adamw_args(r: Any, dtype: Any = None) -> tuple[Any, ...]:
    shape = (3, 5)
    return (r.f(*shape), r.f(*shape), *(r.f(*shape, low=0.01, high=1, dtype=dtype) for _ in range(2)))


OTHERS = [
    Case("embedding", ops.embedding, lambda r: (r.f(7, 3), r.i(2, 4, below=7)), lambda t,
         i: np.array([[t[k] for k in row] for row in i]), EXACT),
    Case("embedding[empty]", ops.embedding, lambda r: (r.f(7, 3), r.i(2, 0, below=7)), lambda t,
         i: np.zeros((2, 0, 3)), EXACT),
    Case("upsample", lambda x: ops.upsample(x, 2), lambda r: (r.f(2, 3, 2, 2),),
         lambda x: np.kron(x, np.ones((1, 2, 2, 1))), EXACT,
         dtypes=(*FLOATS, int32), nan=False),  # kron multiplies by one: a NaN stays in its block
    Case("upsample[1-D]", lambda x: ops.upsample(x, 3), lambda r: (r.f(2, 4, 2),),
         lambda x: x[:, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]], EXACT),
    Case("upsample[uneven]", lambda x: ops.upsample(x, (1, 3)), lambda r: (r.f(1, 2, 2, 1),),
         lambda x: x[:, :, [0, 0, 0, 1, 1, 1]], EXACT),
    Case("upsample[empty]", lambda x: ops.upsample(x, 2), lambda r: (r.f(0, 3, 2, 2),),
         lambda x: np.zeros((0, 6, 4, 2)), EXACT),
    Case("dropout", lambda x: ops.dropout(x, 0.3, seed=11, offset=3), lambda r: (r.f(5, 9),), _dropped,
         ulp(1, "times 1 / 0.7, which is rounded to float32 first"), nan=False),
          # a value that is dropped may be the NaN
    Case("dropout[start]", lambda x, start: ops.dropout(x, 0.3, seed=11, offset=1, start=start),
         lambda r: (r.f(5, 9), np.array([2], np.int64)), lambda x, start: _dropped(x),
         ulp(1, "times 1 / 0.7, which is rounded to float32 first"), nan=False),
    Case("dropout[p = 0]", lambda x: ops.dropout(x, 0.0, seed=1, offset=0), lambda r: (r.f(5),), lambda x: x, EXACT),
    Case("dropout[empty]", lambda x: ops.dropout(x, 0.5, seed=1, offset=0), lambda r: (r.f(0, 3),), lambda x: x, EXACT),
    Case("adamw_step", lambda *a: ops.adamw_step(*a, **_ADAMW), _adamw_args, lambda *a: ref.adamw(*a, **_ADAMW),
         ulp(8, "sums of values of order 1", floor=1.0), dtypes=(float32, float64)),
    Case("adamw_step[half-precision parameters]", lambda *a: ops.adamw_step(*a, **_ADAMW),
         lambda r: _adamw_args(r, float32),
         lambda *a: ref.adamw(*a, **_ADAMW), ulp(8, "sums of values of order 1", floor=1.0), grad=False,
         result=(None, float32, float32),
         dtypes=(float16, bfloat16)),
    Case("adamw_step[empty]", lambda *a: ops.adamw_step(*a, **_ADAMW), lambda r: (r.f(0), r.f(0), r.f(0), r.f(0)),
         lambda *a: ref.adamw(*a, **_ADAMW), EXACT, dtypes=(float32,), grad=False),
]  # fmt: skip

CASES: list[Case] = [*ACTIVATIONS, *SOFTMAX, *NORMS, *TRAINED, *LINEAR, *ATTENTIONS, *ATTENTION_GRADS, *ROPE, *OTHERS]
