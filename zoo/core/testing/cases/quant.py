"""Cases of quantised weights. Codes and scales are exact; products are compared with those of the dequantised
weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core import ops, windows
from zoo.core.dtype import bfloat16, float16, float32, int8, uint8
from zoo.core.testing import ref
from zoo.core.testing.case import Case
from zoo.core.testing.cases.nn import ATTENTION_GRAD
from zoo.core.testing.tol import EXACT, QUANTISED, ROUNDED, Tol, nmse

STORED = {"int8": (int8, float32), "int4": (uint8, float16)}
# gradients pass through the weight itself, which is exact, not through 8-bit activations
BACKWARD = nmse(1e-11, 2.5e-6, 1.5e-4, 1e-11, "a product with the dequantised weight, which is made in float32")


def _weight(r: Any, n: int, k: int) -> np.ndarray:
    w = r.f(n, k)
    if n:
        w[n // 2] = 0  # an output that nothing feeds: its scale is 0
    return w


def _rows(format: str) -> list[Case]:
    def stored(r: Any, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        return ref.quantize(_weight(r, n, k), format)

    def product(x: np.ndarray, q: np.ndarray, scale: np.ndarray, bias: Any = None) -> np.ndarray:
        y = np.einsum("...k,nk->...n", x, ref.dequantize(q, scale, format))
        return y if bias is None else y + bias

    def matmul(label: str, rows: tuple[int, ...], n: int, k: int, tol: Tol = QUANTISED) -> Case:
        return Case(f"qmatmul[{format}, {label}]", lambda x, q, s: ops.qmatmul(x, q, s, format),
                    lambda r: (r.f(*rows, k), *stored(r, n, k)),
                    product, tol, grad=(0,), gradient=BACKWARD, nan=(0,))  # fmt: skip

    return [
        Case(f"quantize[{format}]", lambda w: ops.quantize(w, format), lambda r: (_weight(r, 5, 64),),
             lambda w: ref.quantize(w, format), EXACT,
             grad=False, result=STORED[format], nan=False, dtypes=(float32, float16, bfloat16)),
        Case(f"quantize[{format}, empty]", lambda w: ops.quantize(w, format), lambda r: (r.f(0, 64),),
             lambda w: ref.quantize(w, format), EXACT,
             grad=False, result=STORED[format], dtypes=(float32,)),
        *[
            Case(f"dequantize[{format}, to {to.name}]", lambda q, s, d=to: ops.dequantize(q, s, format, dtype=d),
                 lambda r: stored(r, 4, 96),
                 lambda q, s: ref.dequantize(q, s, format), ROUNDED, grad=False, result=to, dtypes=(float32,))
            for to in (float32, float16, bfloat16)
        ],
        Case(f"dequantize[{format}, empty]", lambda q, s: ops.dequantize(q, s, format), lambda r: stored(r, 0, 32),
             lambda q, s: ref.dequantize(q, s, format), EXACT, grad=False, result=float32, dtypes=(float32,)),
        matmul("one row", (1,), 9, 64),
        matmul("several rows", (2, 5), 17, 96),
        matmul("many rows", (37,), 40, 128),
        matmul("no batch", (), 33, 64),
        matmul("empty", (0,), 4, 32, EXACT),
        Case(f"qlinear[{format}]", lambda x, q, s, b: ops.qlinear(x, q, s, format, b, activation="relu"),
             lambda r: (r.f(3, 64), *stored(r, 6, 64), r.f(6)), lambda *a: ref.ACTIVATIONS["relu"](product(*a)),
             QUANTISED, grad=(0, 3),
             gradient=BACKWARD, nan=(0,)),
        Case(f"qlinear[{format}, no bias]", lambda x, q, s: ops.qlinear(x, q, s, format),
             lambda r: (r.f(2, 3, 32), *stored(r, 6, 32)),
             product, QUANTISED, grad=(0,), gradient=BACKWARD, nan=(0,)),
        Case(f"qlinears[{format}]", lambda x, q, s, q2, s2, b: ops.qlinears(x, [(q, s, None), (q2, s2, b)], format),
             lambda r: (r.f(2, 64), *stored(r, 40, 64), *stored(r, 6, 64), r.f(6)),
             lambda x, q, s, q2, s2, b: (product(x, q, s), product(x, q2, s2, b)), QUANTISED, grad=(0, 5),
             gradient=BACKWARD, nan=(0,)),
        Case(f"qlinears[{format}, empty]", lambda x, q, s: ops.qlinears(x, [(q, s, None), (q, s, None)], format),
             lambda r: (r.f(0, 64), *stored(r, 6, 64)), lambda x, q, s: (product(x, q, s),) * 2, EXACT, grad=(0,)),
        Case(f"qlinear[{format}, empty]", lambda x, q, s, b: ops.qlinear(x, q, s, format, b),
             lambda r: (r.f(0, 32), *stored(r, 6, 32), r.f(6)),
             product, EXACT, grad=(0, 3)),
    ]  # fmt: skip


def _conv(label: str, x: tuple[int, ...], w: tuple[int, ...], *, extra: bool = False, activation: Any = None,
          tol: Tol = QUANTISED, **settings: Any) -> Case:  # fmt: skip
    """extra: with bias and residual."""

    def args(r: Any) -> tuple[Any, ...]:
        q, scale = ref.quantize(_weight(r, w[0], int(np.prod(w[1:]))), "int8")
        codes = q.reshape(w)
        if not extra:
            return r.f(*x), codes, scale
        return r.f(*x), codes, scale, r.f(w[0]), r.f(*ref.conv(np.zeros(x), codes, **full).shape)

    def product(x: np.ndarray, q: np.ndarray, scale: np.ndarray, bias: Any = 0.0, residual: Any = 0.0) -> np.ndarray:
        wide = ref.dequantize(q.reshape(len(q), -1), scale, "int8").reshape(q.shape)
        y = ref.conv(x, wide, **full) + bias + residual
        return ref.ACTIVATIONS[activation](y) if activation else y

    rank = len(x) - 2
    full: dict[str, Any] = {
        "stride": windows.each_axis(settings.get("stride", 1), rank, "stride"), "groups": 1, "flip": False,
        "padding": windows.pairs(settings.get("padding", 0), rank), "input_dilation": (1,) * rank,
        "dilation": windows.each_axis(settings.get("dilation", 1), rank, "dilation"),
    }  # fmt: skip

    def op(x: Any, q: Any, scale: Any, bias: Any = None, residual: Any = None) -> Any:
        return ops.qconv(x, q, scale, bias, residual=residual, activation=activation, **settings)

    grad = (0, 3, 4) if extra else (0,)
    return Case(f"qconv[{label}]", op, args, product, tol, grad=grad, gradient=BACKWARD, nan=(0,))


def _embedding(label: str, ids: tuple[int, ...]) -> Case:
    def args(r: Any) -> tuple[Any, ...]:
        return *ref.quantize(_weight(r, 37, 24), "int8"), (np.arange(np.prod(ids)) * 7 % 37).reshape(ids).astype(
            np.int32
        )

    return Case(f"qembedding[{label}]", ops.qembedding, args,
                lambda q, scale, ids: ref.dequantize(q, scale, "int8")[ids], ROUNDED, grad=False, result=float32,
                dtypes=(float32,))  # fmt: skip


EMBEDDINGS = [_embedding("one", (1,)), _embedding("batch", (3, 5)), _embedding("empty", (0,))]

CONVS = [
    _conv("1x1", (2, 3, 5, 8), (6, 1, 1, 8)),
    _conv("1x1, stride", (2, 5, 4, 8), (6, 1, 1, 8), stride=2, extra=True),
    _conv("3x3", (2, 7, 6, 16), (9, 3, 3, 16), padding=1, extra=True, activation="relu"),
    _conv("stride, uneven padding", (1, 6, 9, 4), (5, 3, 2, 4), stride=(2, 3), padding=((0, 2), (3, 1))),
    _conv("dilation, negative padding", (1, 9, 8, 12), (3, 2, 3, 12), dilation=(3, 2), padding=((-1, 1), (2, -1))),
    _conv("channels not in fours", (1, 5, 5, 6), (4, 3, 3, 6)),
    _conv("1-D", (1, 9, 8), (4, 3, 8)),
    _conv("empty", (0, 5, 5, 8), (4, 3, 3, 8), tol=EXACT),
]

# values in 10 bits: 2e-3 relative L2 (nmse 4e-6), whatever the instruction set; other dtypes go through the body
ROUNDED_ATTENTION = nmse(3e-5, 3e-5, 8e-5, 1e-27, "queries, keys, values and weights may be rounded to 10 bits")

BF16_ATTENTION = nmse(
    1e-4, 1e-6, 5e-5, 1e-27, "of float32: 2^-9 of each value, so 0.005 of scores about 3, and of weights"
)


def _attention(label: str, q: tuple[int, ...], kv: tuple[int, ...], Dv: int = 0, beside: str = "int8", tol: Tol =
               ROUNDED_ATTENTION, **settings: Any) -> Case:  # fmt: skip
    return Case(f"qattention{label}", lambda q, k, v: ops.qattention(q, k, v, beside, **settings),
                lambda r: (r.f(*q), r.f(*kv), r.f(*kv[:3], Dv or kv[3])),
                lambda q, k, v: ref.attention(q, k, v, None, **settings), tol, gradient=ATTENTION_GRAD)  # fmt: skip


ATTENTIONS = [
    _attention("", (2, 3, 2, 4), (2, 5, 2, 4)),
    _attention("[Dv, scale]", (1, 17, 2, 5), (1, 9, 2, 5), Dv=19, scale=0.3),
    _attention("[grouped]", (1, 3, 6, 4), (1, 5, 2, 4)),
    _attention("[one key]", (1, 3, 1, 4), (1, 1, 1, 4)),
    _attention("[empty]", (0, 3, 2, 4), (0, 5, 2, 4)),
    _attention("[beside bfloat16]", (1, 17, 2, 8), (1, 9, 2, 8), beside="bfloat16", tol=BF16_ATTENTION),
]

CASES: list[Case] = [*_rows("int8"), *_rows("int4"), *EMBEDDINGS, *CONVS, *ATTENTIONS]
