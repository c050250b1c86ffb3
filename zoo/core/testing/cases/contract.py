"""Cases of matrix products, convolutions and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core import ops, windows
from zoo.core.dtype import FLOATS, bfloat16, float16, float32, int32
from zoo.core.prims import TABLE
from zoo.core.prims.contract import conv_shape
from zoo.core.tensor import bind
from zoo.core.testing import ref
from zoo.core.testing.case import Case
from zoo.core.testing.tol import CONTRACTION, CONVOLUTION, EXACT, SUM, ulp

Shape = tuple[int, ...]


def _product(a: np.ndarray, b: np.ndarray, transpose_a: bool = False, transpose_b: bool = False) -> np.ndarray:
    return np.einsum(f"...{'ki' if transpose_a else 'ik'},...{'jk' if transpose_b else 'kj'}->...ij", a, b)


def _matmul(label: str, a: Shape, b: Shape, **transposes: bool) -> Case:
    return Case(f"matmul[{label}]", lambda x, y: ops.matmul(x, y, **transposes), lambda r: (r.f(*a), r.f(*b)),
                lambda x, y: _product(x, y, **transposes), CONTRACTION)  # fmt: skip


MATMUL = [
    _matmul("3x5x7", (3, 5), (5, 7)),
    _matmul("1x1x1", (1, 1), (1, 1)),
    _matmul("vector by matrix", (1, 33), (33, 17)),
    _matmul("matrix by vector", (19, 33), (33, 1)),
    _matmul("outer product", (6, 1), (1, 9)),
    # sizes around the tiles of native kernels (6 x 16 to 14 x 32), not multiples of them
    _matmul("over several tiles", (31, 70), (70, 67)),
    _matmul("ta", (5, 3), (5, 7), transpose_a=True),
    _matmul("tb", (3, 5), (7, 5), transpose_b=True),
    _matmul("ta, tb", (5, 3), (7, 5), transpose_a=True, transpose_b=True),
    _matmul("batch", (4, 3, 5), (4, 5, 2)),
    _matmul("batch, one weight", (2, 4, 3, 5), (5, 2)),
    _matmul("batch broadcast both ways", (2, 1, 3, 5), (3, 5, 2)),
    _matmul("batch broadcast, ta, tb", (1, 2, 5, 3), (3, 1, 4, 5), transpose_a=True, transpose_b=True),
    _matmul("empty rows", (0, 5), (5, 2)),
    _matmul("empty columns", (2, 5), (5, 0)),
    _matmul("empty batch", (0, 2, 5), (5, 3)),
    _matmul("empty sum", (2, 0), (0, 3)),
    # accumulated in float32: 3000 ones in float16 would stop at 2048, in bfloat16 at 256
    Case("matmul[many terms]", ops.matmul, lambda r: (np.ones((2, 3000)), np.ones((3000, 1))), _product, EXACT,
         second=False),
    Case("matmul[float32 @ bfloat16]", ops.matmul, lambda r: (r.f(4, 9), r.f(9, 3, dtype=bfloat16)), _product,
         CONTRACTION,
         dtypes=(float32,)),
    Case("matmul[float16 @ bfloat16]", ops.matmul, lambda r: (r.f(4, 9, dtype=float16), r.f(9, 3, dtype=bfloat16)),
         _product,
         CONTRACTION, dtypes=(float32,)),
]  # fmt: skip


def _conv(label: str, x: Shape, w: Shape, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
          input_dilation: Any = 1,
          groups: int = 1, flip: bool = False, dtypes: Any = FLOATS) -> Case:  # fmt: skip
    """Straight at the op: all its settings, not only those of the two faces."""
    rank = len(x) - 2
    each = [v if isinstance(v, tuple) else (v,) * rank for v in (stride, dilation, input_dilation)]
    settings: dict[str, Any] = {"stride": each[0], "dilation": each[1], "input_dilation": each[2]}
    settings |= {"padding": windows.pairs(padding, rank), "groups": groups, "flip": flip}
    return Case(f"conv[{label}]", lambda a, b: bind(TABLE["conv"], a, b, **settings), lambda r: (r.f(*x), r.f(*w)),
                lambda a, b: ref.conv(a, b, **settings), CONVOLUTION, dtypes=dtypes, nan=(0,))  # fmt: skip


# NaN in a weight: kernels multiply it with the zeros of the padding too, the reference never looks at padding
CONV = [
    _conv("1-D", (2, 7, 3), (4, 3, 3)),
    _conv("1-D, stride, pad", (1, 9, 2), (3, 4, 2), stride=2, padding=((1, 2),)),
    _conv("2-D", (2, 5, 6, 3), (4, 3, 2, 3)),
    _conv("2-D, 1x1", (2, 4, 3, 5), (6, 1, 1, 5)),
    _conv("2-D, 1x1, stride", (1, 5, 5, 3), (2, 1, 1, 3), stride=2),
    _conv("2-D, 3x3 same", (1, 7, 9, 4), (5, 3, 3, 4), padding=1),  # what Winograd kernels take
    _conv("2-D, 3x3 same, wide", (1, 13, 11, 17), (35, 3, 3, 17), padding=1, dtypes=(float32, bfloat16)),
    _conv("2-D, one channel in", (2, 8, 8, 1), (6, 5, 5, 1)),  # the first layer of mnist_cnn
    _conv("2-D, stride", (1, 7, 8, 2), (3, 3, 3, 2), stride=(2, 3)),
    _conv("2-D, uneven padding", (1, 4, 4, 2), (3, 3, 3, 2), padding=((0, 2), (3, 1))),
    _conv("2-D, negative padding", (1, 7, 6, 2), (3, 2, 2, 2), padding=((-1, -2), (2, -1))),
    _conv("2-D, dilation", (1, 8, 7, 2), (3, 3, 2, 2), dilation=(2, 3), padding=1),
    _conv("2-D, groups", (1, 5, 5, 6), (4, 3, 3, 3), groups=2),
    _conv("2-D, depthwise", (1, 6, 5, 6), (6, 3, 3, 1), groups=6, padding=1),
    _conv("2-D, depthwise, multiplier 2, stride", (1, 6, 5, 3), (6, 3, 3, 1), groups=3, padding=1, stride=2),
    _conv("2-D, input dilation", (1, 3, 4, 2), (3, 3, 3, 2), input_dilation=(2, 3), padding=2),
    _conv("2-D, flip", (1, 5, 4, 2), (3, 3, 2, 2), flip=True, padding=1),
    _conv("2-D, all at once", (2, 5, 4, 4), (6, 3, 2, 2), stride=(2, 1), padding=((2, 1), (0, 3)), dilation=(1, 2),
          input_dilation=(3, 2),
          groups=2, flip=True),
    _conv("2-D, stride over the kernel", (1, 9, 9, 2), (2, 2, 2, 2), stride=4),
    _conv("2-D, kernel as large as the image", (1, 3, 4, 2), (5, 3, 4, 2)),
    _conv("3-D", (1, 4, 3, 4, 2), (3, 2, 2, 3, 2), padding=((0, 1), (1, 0), (1, 1)), stride=(1, 2, 1)),
    _conv("3-D, groups, dilation", (1, 5, 3, 4, 4), (2, 2, 2, 2, 2), groups=2, dilation=(2, 1, 1)),
    _conv("empty batch", (0, 5, 5, 2), (3, 3, 3, 2)),
    _conv("empty, no outputs", (1, 5, 5, 2), (0, 3, 3, 2)),
    _conv("empty, no channels", (1, 5, 5, 0), (3, 3, 3, 0)),
    Case("conv[many terms]", ops.conv, lambda r: (np.ones((1, 30, 10, 10)), np.ones((1, 30, 10, 10))),
         lambda x, w: np.full((1, 1, 1, 1), 3000.0), EXACT, second=False, nan=False),
    Case("conv[bfloat16 weight]", ops.conv, lambda r: (r.f(1, 5, 5, 3), r.f(2, 3, 3, 3, dtype=bfloat16)),
         lambda x, w: ref.conv(x, w, stride=(1, 1), padding=((0, 0), (0, 0))), CONVOLUTION),
]  # fmt: skip


def _weight_grad(label: str, x: Shape, w: Shape, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                 input_dilation: Any = 1, groups: int = 1, flip: bool = False) -> Case:  # fmt: skip
    rank, size, kernel = len(x) - 2, x[1:-1], w[1:-1]
    each = [v if isinstance(v, tuple) else (v,) * rank for v in (stride, dilation, input_dilation)]
    settings: dict[str, Any] = {"stride": each[0], "dilation": each[1], "input_dilation": each[2]}
    settings |= {"padding": windows.pairs(padding, rank), "groups": groups}
    out = conv_shape((1, *size, x[-1]), w, **settings)[1:]
    settings |= {"kernel": kernel, "flip": flip}
    return Case(f"conv_weight_grad[{label}]", lambda a, g: bind(TABLE["conv_weight_grad"], a, g, **settings),
                lambda r: (r.f(*x), r.f(x[0], *out)), lambda a, g: ref.conv_weight_grad(a, g, **settings), CONVOLUTION,
                nan=False)  # fmt: skip


# a NaN meets the zeros that lie between and around pixels in some kernels, and not in others: it is not compared
WEIGHT_GRAD = [
    _weight_grad("1-D, stride, pad", (3, 9, 2), (3, 4, 2), stride=2, padding=((1, 2),)),
    _weight_grad("2-D", (2, 5, 6, 3), (4, 3, 2, 3)),
    _weight_grad("2-D, 1x1", (2, 4, 3, 5), (6, 1, 1, 5)),
    _weight_grad("2-D, stride, uneven padding", (2, 7, 8, 8), (9, 3, 3, 8), stride=(2, 3), padding=((0, 2), (3, 1))),
    _weight_grad("2-D, depthwise", (2, 6, 5, 6), (6, 3, 3, 1), groups=6, padding=1),
    _weight_grad("2-D, all at once", (2, 5, 4, 4), (6, 3, 2, 2), stride=(2, 1), padding=((2, 1), (0, 3)),
                 dilation=(1, 2), input_dilation=(3, 2), groups=2, flip=True),
    _weight_grad("3-D", (1, 4, 3, 4, 2), (3, 2, 2, 3, 2), padding=((0, 1), (1, 0), (1, 1)), stride=(1, 2, 1)),
    _weight_grad("empty batch", (0, 5, 5, 2), (3, 3, 3, 2)),
]  # fmt: skip


def _transposed(label: str, x: Shape, w: Shape, bias: bool = False, groups: int = 1, **settings: Any) -> Case:
    rank = len(x) - 2
    full: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, **settings}
    want: dict[str, Any] = {
        k: windows.pairs(v, rank) if k == "padding" else v if isinstance(v, tuple) else (v,) * rank
        for k, v in full.items()
    }
    return Case(
        f"conv[transposed, {label}]",
        lambda a, b, c=None: ops.conv_transpose(a, b, c, groups=groups, **settings),
        lambda r: (r.f(*x), r.f(*w), r.f(w[0])) if bias else (r.f(*x), r.f(*w)),
        lambda a, b, c=0.0: ref.conv_transpose(a, b, groups=groups, **want) + c,
        CONVOLUTION,
        nan=(0,),
    )


TRANSPOSED = [
    _transposed("plain", (1, 3, 4, 2), (3, 2, 3, 2)),
    _transposed("stride 2", (2, 3, 4, 2), (3, 4, 4, 2), stride=2, padding=1, bias=True),
    _transposed(
        "output padding", (1, 3, 3, 2), (3, 3, 3, 2), stride=(2, 3), padding=((1, 0), (0, 1)), output_padding=(1, 2)
    ),
    _transposed("groups, dilation", (1, 3, 4, 4), (6, 3, 2, 2), groups=2, dilation=2, stride=2),
    _transposed("1-D", (2, 5, 3), (4, 4, 3), stride=2, padding=1),
]


def _fused(label: str, bias: bool, residual: bool, activation: str | None, padding: Any = 1, **settings: Any) -> Case:
    def args(r: Any) -> tuple[Any, ...]:
        return (r.f(2, 5, 4, 4), r.f(6, 3, 3, 4 // settings.get("groups", 1)), r.f(6) if bias else None,
                r.f(2, 5, 4, 6) if residual else None)  # fmt: skip

    def want(x: Any, w: Any, b: Any, added: Any) -> np.ndarray:
        y = ref.conv(x, w, stride=(1, 1), padding=((1, 1), (1, 1)), **settings)
        y = y if b is None else y + b
        return ref.ACTIVATIONS[activation](y if added is None else y + added)

    return Case(f"conv_bias_act[{label}]",
                lambda x, w, b,
                added: ops.conv(x, w, b, padding=padding, activation=activation, residual=added, **settings),
                args, want, CONVOLUTION, nan=(0, 2, 3))  # fmt: skip


FUSED = [
    _fused("bias", True, False, None),
    _fused("bias, relu", True, False, "relu"),
    _fused("residual", False, True, None),
    _fused("bias, residual, relu", True, True, "relu", groups=2),
    _fused("bias, silu", True, False, "silu"),
    _fused("gelu alone", False, False, "gelu"),
    Case("conv_bias_act[empty]", lambda x, w, b: ops.conv(x, w, b, activation="relu"),
         lambda r: (r.f(0, 4, 4, 2), r.f(3, 3, 3, 2), r.f(3)),
         lambda x, w, b: np.zeros((0, 2, 2, 3)), EXACT),
]  # fmt: skip


def _pools(label: str, shape: Shape, window: Any, stride: Any = None, padding: Any = 0) -> list[Case]:
    rank = len(shape) - 2
    k = window if isinstance(window, tuple) else (window,) * rank
    s = k if stride is None else stride if isinstance(stride, tuple) else (stride,) * rank
    pads = windows.pairs(padding, rank)
    return [
        Case(f"window_max[{label}]", lambda x: ops.max_pool(x, window, stride=stride, padding=padding),
             lambda r: (r.distinct(*shape),),
             lambda x: ref.pool(x, np.max, k, s, pads), EXACT, dtypes=(*FLOATS, int32)),
        Case(f"window_sum[{label}]", lambda x: ops.avg_pool(x, window, stride=stride, padding=padding),
             lambda r: (r.f(*shape),),
             lambda x: ref.pool(x, np.sum, k, s, pads) / np.prod(k), SUM),
    ]  # fmt: skip


POOL = [
    *_pools("2x2", (2, 4, 6, 3), 2),
    *_pools("2x2 of an odd size", (1, 5, 7, 2), 2),
    *_pools("3x3, stride 2, pad 1", (1, 7, 6, 2), 3, 2, 1),
    *_pools("overlapping", (1, 5, 5, 1), (3, 2), 1, ((1, 0), (1, 1))),
    *_pools("gaps between windows", (1, 8, 9, 2), 2, 3),
    *_pools("1-D", (2, 9, 2), 3, 2, 1),
    *_pools("3-D", (1, 4, 3, 4, 2), 2, 1),
    *_pools("empty", (0, 4, 4, 2), 2),
    Case("window_sum[many terms]", lambda x: ops.avg_pool(x, 600), lambda r: (np.ones((1, 600, 1)),),
         lambda x: np.ones((1, 1, 1)), ulp(1, "times 1 / 600, which is rounded to float32 first"), second=False,
         nan=False),
]  # fmt: skip


def _max_grad(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """2x2 windows: each g to the first place, row by row, that holds the maximum."""
    y = np.zeros_like(x)
    for n, i, j, c in np.ndindex(g.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        first = int(np.argmax(window))
        y[n, 2 * i + first // 2, 2 * j + first % 2, c] += g[n, i, j, c]
    return y


def _window_max_grad(x: Any, g: Any) -> Any:
    settings: dict[str, Any] = {"window": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    return bind(TABLE["window_max_grad"], x, bind(TABLE["window_max"], x, **settings), g, **settings)


GRADIENT_OF_POOL = [
    # ties in most windows; linear in g alone, and x only chooses
    Case(
        "window_max_grad",
        _window_max_grad,
        lambda r: (np.trunc(r.f(2, 4, 6, 3) / 2), r.f(2, 2, 3, 3)),
        _max_grad,
        EXACT,
        grad=(1,),
        nan=False,
    ),
    Case(
        "window_max_grad[empty]",
        _window_max_grad,
        lambda r: (r.f(0, 4, 6, 3), r.f(0, 2, 3, 3)),
        _max_grad,
        EXACT,
        grad=(1,),
    ),
]

CASES: list[Case] = [*MATMUL, *CONV, *WEIGHT_GRAD, *TRANSPOSED, *FUSED, *POOL, *GRADIENT_OF_POOL]
