"""Contractions: matmul, convolution, and pooling windows. Half precision is accumulated in float32.

One convolution serves forward, both gradients, and transposed convolution (as in MLX): `input_dilation` puts zeros
between input pixels, `flip` turns the kernel round. `conv_weight_grad` is a row of its own only so that a backend may
have a kernel for it: as a convolution it has a kernel as large as the image, which suits few.
    y[n, p, o] = sum over k, c of  X[n, p*stride + k*dilation - lo, c] * w[o, k, c],    X = x with input_dilation - 1
zeros between Shapes: x (N, *S, C), w (O, *K, C/groups), y (N, *S', O); any number of spatial axes; all settings one
entry per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from zoo.core.dtype import bool_, promote
from zoo.core.errors import DtypeError, ShapeError
from zoo.core.prim import Kind, Meta, Prim, composite
from zoo.core.prims import infer
from zoo.core.prims.view import sum_to

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def _matmul_infer(a: Any, b: Any, *, transpose_a: bool, transpose_b: bool) -> Meta:
    infer.floats(a, b)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ShapeError("both need at least two axes", "Insert an axis of size 1.")
    m, k = (a.shape[-1], a.shape[-2]) if transpose_a else (a.shape[-2], a.shape[-1])
    j, n = (b.shape[-1], b.shape[-2]) if transpose_b else (b.shape[-2], b.shape[-1])
    if k != j:
        raise ShapeError(
            f"the inner sizes are {k} and {j}; they must be equal",
            "Transpose one of them, or check the layer sizes that made them.",
        )
    return Meta((*infer.broadcast([a.shape[:-2], b.shape[:-2]]), m, n), promote(a.dtype, b.dtype))


def _matmul_vjp(o: Any, g: Any, a: Any, b: Any, y: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    def da() -> Any:
        if transpose_a:
            return o.matmul(b, g, transpose_a=transpose_b, transpose_b=True)
        return o.matmul(g, b, transpose_b=not transpose_b)

    def db() -> Any:
        if transpose_b:
            return o.matmul(g, a, transpose_a=True, transpose_b=transpose_a)
        return o.matmul(a, g, transpose_a=not transpose_a)

    # the axes over which a batch was broadcast are summed here, where they are known
    return lambda: sum_to(o, da(), tuple(a.shape)), lambda: sum_to(o, db(), tuple(b.shape))


def window_out(n: int, k: int, stride: int, lo: int, hi: int, dilation: int = 1, input_dilation: int = 1) -> int:
    """Number of positions of a window of k on an axis of n."""
    spanned = (n - 1) * input_dilation + 1 if n else 0
    return (spanned + lo + hi - dilation * (k - 1) - 1) // stride + 1


def conv_infer(
    x: Any, w: Any, *, stride: Ints, padding: Pairs, dilation: Ints, input_dilation: Ints, groups: int, flip: bool
) -> Meta:
    infer.floats(x, w)
    shape = conv_shape(tuple(x.shape), tuple(w.shape), stride, padding, dilation, input_dilation, groups)
    return Meta(shape, x.dtype)


@lru_cache(maxsize=4096)  # a network asks for the same few shapes again and again: 10 us each
def conv_shape(
    x: Ints, w: Ints, stride: Ints, padding: Pairs, dilation: Ints, input_dilation: Ints, groups: int
) -> Ints:
    """The shape of a convolution's result, from those of x and w. Raises ShapeError where they do not fit."""
    rank = len(x) - 2
    if rank < 1 or len(w) != rank + 2:
        raise ShapeError("x needs shape (N, *S, C) and w (O, *K, C/groups), with as many spatial axes in both")
    if not all(len(v) == rank for v in (stride, padding, dilation, input_dilation)):
        raise ShapeError(f"stride, padding and dilation need one entry for each of the {rank} spatial axes")
    if min(stride) < 1 or min(dilation) < 1 or min(input_dilation) < 1:
        raise ShapeError("stride and dilation start at 1")
    if groups < 1 or x[-1] != w[-1] * groups or w[0] % groups:
        raise ShapeError(
            f"x has {x[-1]} channels in {groups} groups, w takes {w[-1]} per group and gives {w[0]}",
            "Layout is channels-last: x (N, *S, C), w (O, *K, C/groups).",
        )
    settings = zip(x[1:-1], w[1:-1], stride, padding, dilation, input_dilation, strict=True)
    out = tuple(window_out(n, k, s, lo, hi, d, i) for n, k, s, (lo, hi), d, i in settings)
    if any(n < 1 for n in out) and x[0] and all(x[1:-1]):
        raise ShapeError(f"the kernel {w[1:-1]} is larger than the padded input {x[1:-1]}")
    return (x[0], *(max(n, 0) for n in out), w[0])


def conv_vjp(
    o: Any,
    g: Any,
    x: Any,
    w: Any,
    y: Any,
    *,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    input_dilation: Ints,
    groups: int,
    flip: bool,
) -> Any:
    rank = len(stride)
    spatial = range(rank)
    spanned = [(n - 1) * i + 1 for n, i in zip(x.shape[1:-1], input_dilation, strict=True)]
    g_spanned = [(n - 1) * s + 1 for n, s in zip(g.shape[1:-1], stride, strict=True)]
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[1:-1], strict=True)]
    O, I = w.shape[0], w.shape[-1]

    def dx() -> Any:
        """The same convolution run backwards: kernel turned round, stride and input dilation changed places."""
        turned = o.reshape(w, shape=(groups, O // groups, *w.shape[1:-1], I))
        turned = o.permute_dims(turned, axes=(0, rank + 2, *range(2, rank + 2), 1))
        turned = o.reshape(turned, shape=(groups * I, *w.shape[1:-1], O // groups))
        lo = [reach[a] - padding[a][0] for a in spatial]
        pads = tuple((lo[a], spanned[a] + reach[a] - g_spanned[a] - lo[a]) for a in spatial)
        return o.conv(g, turned, stride=input_dilation, padding=pads, dilation=dilation, input_dilation=stride,
                      groups=groups, flip=not flip)  # fmt: skip

    def dw() -> Any:
        return o.conv_weight_grad(x, g, kernel=tuple(w.shape[1:-1]), stride=stride, padding=padding, dilation=dilation,
                                  input_dilation=input_dilation, groups=groups, flip=flip)  # fmt: skip

    return dx, dw


def _conv_weight_grad_infer(x: Any, g: Any, *, kernel: Ints, groups: int, flip: bool, **settings: Any) -> Meta:
    if len(x.shape) != len(kernel) + 2 or len(g.shape) != len(kernel) + 2:
        raise ShapeError(f"x {tuple(x.shape)} and g {tuple(g.shape)} must have {len(kernel) + 2} axes: (N, *space, C)")
    if groups < 1 or x.shape[-1] % groups:
        raise ShapeError(f"the {x.shape[-1]} channels of x do not divide into {groups} groups")
    w = Meta((g.shape[-1], *kernel, x.shape[-1] // groups), x.dtype)
    infer.need_shape("g", g, conv_infer(x, w, groups=groups, flip=flip, **settings).shape)
    infer.floats(g)
    return w


@composite(_conv_weight_grad_infer)
def conv_weight_grad(o, x, g, *, kernel, stride, padding, dilation, input_dilation, groups, flip):
    """Gradient of conv in its weight.  x (N, *S, C), g (N, *S', O) -> (O, *kernel, C/groups), dtype of x.

    A convolution over the batch: channels are the batch, the batch the channels, g the kernel."""
    rank, N, I = len(stride), x.shape[0], x.shape[-1] // groups
    xt = o.reshape(x, shape=(N, *x.shape[1:-1], groups, I))
    xt = o.permute_dims(xt, axes=(rank + 2, *range(1, rank + 1), rank + 1, 0))
    xt = o.reshape(xt, shape=(I, *x.shape[1:-1], groups * N))
    gt = o.permute_dims(g, axes=(rank + 1, *range(1, rank + 1), 0))
    pads = []
    for a, (n, m, k) in enumerate(zip(x.shape[1:-1], g.shape[1:-1], kernel, strict=True)):
        spanned, g_spanned = (n - 1) * input_dilation[a] + 1, (m - 1) * stride[a] + 1
        pads.append((padding[a][0], dilation[a] * (k - 1) + g_spanned - spanned - padding[a][0]))
    d = o.conv(xt, gt, stride=dilation, padding=tuple(pads), dilation=stride, input_dilation=input_dilation,
               groups=groups, flip=False)  # fmt: skip
    d = o.permute_dims(d, axes=(rank + 1, *range(1, rank + 1), 0))
    return o.flip(d, axis=tuple(range(1, rank + 1))) if flip else d


def _window_infer(x: Any, *, window: Ints, stride: Ints, padding: Pairs) -> Meta:
    if x.dtype == bool_:
        raise DtypeError("windows are taken over numbers, not bool", "Cast it: x.astype(zoo.int32).")
    rank = len(x.shape) - 2
    if rank < 1 or not len(window) == len(stride) == len(padding) == rank:
        raise ShapeError("x needs shape (N, *S, C); window, stride and padding one entry for each spatial axis")
    if (
        min(stride) < 1
        or min(window) < 1
        or any(not 0 <= p < w for ps, w in zip(padding, window, strict=True) for p in ps)
    ):
        raise ShapeError("window and stride start at 1; padding is at least 0 and smaller than the window")
    out = [window_out(n, k, s, *p) for n, k, s, p in zip(x.shape[1:-1], window, stride, padding, strict=True)]
    if min(out) < 1 and x.shape[0] and all(x.shape[1:-1]):
        raise ShapeError(f"the window {window} is larger than the padded input {tuple(x.shape[1:-1])}")
    return Meta((x.shape[0], *(max(n, 0) for n in out), x.shape[-1]), x.dtype)


def offsets(window: Ints) -> list[Ints]:
    """Every position within a window, row by row."""
    found: list[Ints] = [()]
    for k in window:
        found = [(*f, i) for f in found for i in range(k)]
    return found


def window_slice(shape: Ints, out: Sequence[int], at: Ints, stride: Ints) -> dict[str, Ints]:
    """slice() attributes for the values at offset `at` of every window, from a padded (N, *S, C)."""
    stop = tuple(a + (n - 1) * s + 1 if n else a for a, n, s in zip(at, out, stride, strict=True))
    return {"start": (0, *at, 0), "stop": (shape[0], *stop, shape[-1]), "step": (1, *stride, 1)}


def _grad_infer(x: Any, y: Any, g: Any, *, window: Ints, stride: Ints, padding: Pairs) -> Meta:
    infer.floats(x, g)
    out = _window_infer(x, window=window, stride=stride, padding=padding).shape
    infer.need_shape("y", y, out)
    infer.need_shape("g", g, out)
    return Meta(tuple(x.shape), g.dtype)


@composite(_grad_infer)
def window_max_grad(o, x, y, g, *, window, stride, padding):
    """Gradient of window_max: g goes to the first place of each window that holds its maximum.  x (N, *S, C), y and g
    (N, *S', C) -> (N, *S, C)."""
    pads = ((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0))
    px = o.pad(x, pads=pads, value=float("-inf"))
    out, total, free = y.shape[1:-1], None, None
    for at in offsets(window):
        part = window_slice(px.shape, out, at, stride)
        hit = o.equal(o.slice(px, **part), y)
        hit, free = (hit, o.logical_not(hit)) if free is None else (o.logical_and(hit, free), free)
        free = o.logical_and(free, o.logical_not(hit))
        spread = [
            (b, n - e, s - 1) for b, e, s, n in zip(part["start"], part["stop"], part["step"], px.shape, strict=True)
        ]
        piece = o.pad(o.where(hit, g, 0.0), pads=tuple(spread), value=0)
        total = piece if total is None else o.add(total, piece)
    return o.pad(total, pads=tuple((-lo, -hi, 0) for lo, hi, _ in pads), value=0)


def _window_sum_vjp(o: Any, g: Any, x: Any, y: Any, *, window: Ints, stride: Ints, padding: Pairs) -> Any:
    """Each input value is in the windows that reach it: a sum over g, spread by the stride."""
    pads = [(0, 0, 0)]
    for n, k, s, (lo, _), m in zip(x.shape[1:-1], window, stride, padding, g.shape[1:-1], strict=True):
        before = k - 1 - lo
        pads.append((before, n + k - 1 - before - ((m - 1) * s + 1), s - 1))
    wide = o.pad(g, pads=(*pads, (0, 0, 0)), value=0)
    ones, zeros = (1,) * len(window), ((0, 0),) * len(window)
    return o.window_sum(wide, window=window, stride=ones, padding=zeros)


CONTRACT = [
    # a (..., m, k) @ b (..., k, n) -> (..., m, n); batch axes broadcast; transpose_* swaps the last two axes first
    Prim("matmul", Kind.CONTRACT, _matmul_infer, _matmul_vjp, keep="x",
         attrs={"transpose_a": False, "transpose_b": False}),
    Prim("conv", Kind.CONTRACT, conv_infer, conv_vjp, keep="x"),
    # (N, *S, C) -> (N, *S', C); padding counts as -inf for max and 0 for sum
    Prim("window_max", Kind.CONTRACT, _window_infer,
         lambda o, g, x, y, **attrs: o.window_max_grad(x, y, g, **attrs)),
    Prim("window_sum", Kind.CONTRACT, _window_infer, _window_sum_vjp, keep=""),
]  # fmt: skip
