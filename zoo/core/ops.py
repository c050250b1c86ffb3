"""The face of every op: signature, shapes, errors, source. The only door from models to the backends.

Shapes use N batch, C channels, *S spatial axes; activations are channels-last, linear weights (outputs, inputs),
convolution weights (outputs, *kernel, inputs / groups). Python numbers take the dtype of the tensor they meet.
Every function raises ShapeError or DtypeError at the call, naming op, shapes, dtypes and device.
Ops of weights stored as int8 or int4 are written in rounded.py, those of pictures in windows.py, and offered here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoo.core.device import device as device_of
from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import float32, int32
from zoo.core.errors import ShapeError
from zoo.core.prims import TABLE as P
from zoo.core.prims.infer import axes_tuple
from zoo.core.rounded import dequantize as dequantize
from zoo.core.rounded import qattention as qattention
from zoo.core.rounded import qconv as qconv
from zoo.core.rounded import qembedding as qembedding
from zoo.core.rounded import qlinear as qlinear
from zoo.core.rounded import qlinears as qlinears
from zoo.core.rounded import qmatmul as qmatmul
from zoo.core.rounded import quantize as quantize
from zoo.core.tensor import Scalar, Tensor, bind
from zoo.core.windows import avg_pool as avg_pool
from zoo.core.windows import conv as conv
from zoo.core.windows import conv_transpose as conv_transpose
from zoo.core.windows import max_pool as max_pool
from zoo.core.windows import upsample as upsample

Axis = int | Sequence[int] | None


def _named(name: str, doc: str, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    op.__name__, op.__qualname__, op.__doc__ = name, name, doc
    return op


def unary(name: str, doc: str) -> Callable[[Tensor], Tensor]:
    prim = P[name]
    return _named(name, doc, lambda x: bind(prim, x))


def binary(name: str, doc: str) -> Callable[[Tensor | Scalar, Tensor | Scalar], Tensor]:
    prim = P[name]
    return _named(name, doc, lambda a, b: bind(prim, a, b))


# elementwise; two arguments broadcast

neg = unary("neg", "-x.")
abs = unary("abs", "|x|.")
sign = unary("sign", "-1, 0 or 1.")
exp = unary("exp", "e to the x.")
log = unary("log", "Natural logarithm; -inf at 0, NaN below.")
sqrt = unary("sqrt", "Square root; NaN below 0.")
rsqrt = unary("rsqrt", "1 / sqrt(x).")
sin = unary("sin", "Sine of x in radians.")
cos = unary("cos", "Cosine of x in radians.")
tanh = unary("tanh", "Hyperbolic tangent.")
erf = unary("erf", "Error function.")
sigmoid = unary("sigmoid", "1 / (1 + exp(-x)), without overflow.")
floor = unary("floor", "The largest whole number not above x.")
round = unary("round", "The nearest whole number; halves go to the even one.")
square = unary("square", "x * x.")
relu = unary("relu", "max(x, 0).")
silu = unary("silu", "x * sigmoid(x) (Elfwing et al. 2018).")
gelu = unary("gelu", "x * Phi(x), exact (Hendrycks & Gimpel 2016).")
gelu_tanh = unary("gelu_tanh", "gelu by its tanh approximation, as GPT-2 has it.")
quick_gelu = unary("quick_gelu", "x * sigmoid(1.702 x), as OpenAI's CLIP has it.")
isnan = unary("isnan", "Where x is NaN.")
logical_not = unary("logical_not", "Not x, for bool.")
add = binary("add", "a + b.")
sub = binary("sub", "a - b.")
mul = binary("mul", "a * b.")
div = binary("div", "a / b; integers become float32.")
remainder = binary("remainder", "a - floor(a / b) * b, with the sign of b.")
pow = binary("pow", "a to the b; integers become float32.")
maximum = binary("maximum", "The larger; NaN if either is.")
minimum = binary("minimum", "The smaller; NaN if either is.")
equal = binary("equal", "a == b.")
not_equal = binary("not_equal", "a != b.")
less = binary("less", "a < b.")
less_equal = binary("less_equal", "a <= b.")
greater = binary("greater", "a > b.")
greater_equal = binary("greater_equal", "a >= b.")
logical_and = binary("logical_and", "a and b, for bool.")
logical_or = binary("logical_or", "a or b, for bool.")


def where(condition: Tensor, a: Tensor | Scalar, b: Tensor | Scalar) -> Tensor:
    """a where the condition (bool) holds, else b; all three broadcast."""
    return bind(P["where"], condition, a, b)


def clip(x: Tensor, low: Scalar, high: Scalar) -> Tensor:
    """x, kept within [low, high]."""
    return minimum(maximum(x, low), high)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype; to a narrower one by rounding to nearest, to integers by truncation."""
    return bind(P["cast"], x, dtype=dtype_of(dtype))


# making tensors


def full(shape: Sequence[int], value: Scalar, *, dtype: Any = float32, device: Any = None) -> Tensor:
    return bind(P["full"], shape=tuple(shape), value=value, dtype=dtype_of(dtype), device=device_of(device))


def zeros(shape: Sequence[int], *, dtype: Any = float32, device: Any = None) -> Tensor:
    return full(shape, 0, dtype=dtype, device=device)


def ones(shape: Sequence[int], *, dtype: Any = float32, device: Any = None) -> Tensor:
    return full(shape, 1, dtype=dtype, device=device)


def iota(shape: Sequence[int], *, axis: int = 0, dtype: Any = int32, device: Any = None) -> Tensor:
    """0, 1, 2, ... along `axis`, repeated along the others."""
    return bind(P["iota"], shape=tuple(shape), axis=axis, dtype=dtype_of(dtype), device=device_of(device))


def arange(n: int, *, dtype: Any = int32, device: Any = None) -> Tensor:
    """0, 1, ..., n - 1."""
    return iota((n,), dtype=dtype, device=device)


def uniform(shape: Sequence[int], *, seed: int, offset: int = 0, device: Any = None) -> Tensor:
    """float32 in [0, 1), a pure function of seed, offset and position. For a stream use zoo.random.Generator."""
    return bind(P["uniform"], shape=tuple(shape), seed=seed, offset=offset, dtype=float32, device=device_of(device))


def normal(shape: Sequence[int], *, seed: int, offset: int = 0, device: Any = None) -> Tensor:
    """Standard normal float32, a pure function of seed, offset and position."""
    return bind(P["normal"], shape=tuple(shape), seed=seed, offset=offset, dtype=float32, device=device_of(device))


def _axes(name: str, x: Tensor, axis: Axis, extra: int = 0) -> tuple[int, ...]:
    """Axes of x, or of what will have `extra` more of them, as numbers from 0."""
    try:
        return axes_tuple(axis, x.ndim + extra)
    except ShapeError as e:
        raise e.at(f"{name}({x.dtype.name} {x.shape}) on {x.device.name} cannot be done") from None


# reductions: axis is one, several, or None for all


def sum(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum; booleans and integers narrower than int32 are summed in int32, half precision accumulates in float32."""
    return bind(P["sum"], x, axis=axis, keepdims=keepdims)


def mean(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return bind(P["mean"], x, axis=axis, keepdims=keepdims)


def var(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Population variance (divided by n)."""
    return bind(P["var"], x, axis=axis, keepdims=keepdims)


def max(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest value; the gradient is shared evenly by all places that hold it."""
    return bind(P["max"], x, axis=axis, keepdims=keepdims)


def min(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return bind(P["min"], x, axis=axis, keepdims=keepdims)


def any(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return bind(P["any"], x, axis=axis, keepdims=keepdims)


def all(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return bind(P["all"], x, axis=axis, keepdims=keepdims)


def argmax(x: Tensor, *, axis: int = -1, keepdims: bool = False) -> Tensor:
    """Place of the largest value along one axis, int32; of equals the first."""
    return bind(P["argmax"], x, axis=axis, keepdims=keepdims)


def argmin(x: Tensor, *, axis: int = -1, keepdims: bool = False) -> Tensor:
    return bind(P["argmin"], x, axis=axis, keepdims=keepdims)


def cumsum(x: Tensor, *, axis: int = -1) -> Tensor:
    return bind(P["cumsum"], x, axis=axis)


def logsumexp(x: Tensor, *, axis: Axis = -1, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow."""
    return bind(P["logsumexp"], x, axis=axis, keepdims=keepdims)


# views


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape(tuple(shape))


def permute_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.permute_dims(tuple(axes))


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x stretched to `shape` by the broadcasting rules, without a copy where the backend can."""
    return bind(P["expand"], x, shape=tuple(shape))


def squeeze(x: Tensor, axis: Axis = None) -> Tensor:
    """Without the axes of size 1 (all of them, or those named)."""
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axis is None else _axes("squeeze", x, axis)
    return x.reshape(tuple(n for i, n in enumerate(x.shape) if i not in axes))


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """With a new axis of size 1 at `axis` of the result."""
    (at,) = _axes("expand_dims", x, axis, extra=1)
    return x.reshape((*x.shape[:at], 1, *x.shape[at:]))


def flip(x: Tensor, *, axis: Axis = None) -> Tensor:
    return bind(P["flip"], x, axis=_axes("flip", x, axis))


def concat(tensors: Sequence[Tensor], *, axis: int = 0) -> Tensor:
    """Joined along an axis that exists."""
    return bind(P["concat"], *tensors, axis=axis)


def stack(tensors: Sequence[Tensor], *, axis: int = 0) -> Tensor:
    """Joined along a new axis."""
    return concat([expand_dims(t, axis) for t in tensors], axis=axis)


def split(x: Tensor, sizes: int | Sequence[int], *, axis: int = -1) -> list[Tensor]:
    """Cut along `axis` into pieces of the given sizes, or into so many equal pieces."""
    (axis,) = _axes("split", x, axis)
    n = x.shape[axis]
    if isinstance(sizes, int):
        if sizes < 1 or n % sizes:
            raise ShapeError(f"axis {axis} of {x.shape} does not divide by {sizes}", what="split cannot be done")
        sizes = [n // sizes] * sizes
    pieces, at = [], 0
    for size in sizes:
        pieces.append(x[(slice(None),) * axis + (slice(at, at + size),)])
        at += size
    if at != n:
        raise ShapeError(f"sizes {sizes} add up to {at}, axis {axis} has {n}", what="split cannot be done")
    return pieces


def pad(x: Tensor, pads: Sequence[tuple[int, int]], *, value: Scalar = 0) -> Tensor:
    """(before, after) for every axis; negative numbers crop."""
    return bind(P["pad"], x, pads=tuple((lo, hi, 0) for lo, hi in pads), value=value)


# index


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows: x (n, ...), indices (...) -> x[indices]. Raises ShapeError for an index outside 0 ... n-1."""
    return bind(P["take"], x, indices)


def gather(x: Tensor, indices: Tensor, *, axis: int = -1) -> Tensor:
    """One value per index along `axis`; the other axes agree (numpy's take_along_axis)."""
    return bind(P["gather"], x, indices, axis=axis)


def scatter_add(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with updates added to the rows named; a row may be named several times."""
    return bind(P["scatter_add"], x, indices, updates)


def update_slice(x: Tensor, update: Tensor, start: Sequence[int], *, donate: bool = False) -> Tensor:
    """x with `update` written at `start`. donate=True: x will not be used again, its memory may be written to."""
    return bind(P["update_slice"], x, update, start=tuple(start), donate=donate)


def update_rows(x: Tensor, update: Tensor, positions: Tensor, *, donate: bool = False) -> Tensor:
    """x (B, S, ...) with update (B, L, ...) written at positions (B,), integers: y[b, positions[b] + l] = update[b, l].
    As update_slice, with a place that is a value and not a setting, as the end of a text in a cache is. Rows that would
    lie outside x are not written."""
    return bind(P["update_rows"], x, update, positions, donate=donate)


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last axis, falling, and their places (int32); of equals the first."""
    return bind(P["topk"], x, k=k)


def sort(x: Tensor, *, descending: bool = False) -> Tensor:
    """Sorted along the last axis."""
    return bind(P["sort"], x, descending=descending)


# contractions


def matmul(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """a (..., m, k) @ b (..., k, n) -> (..., m, n); batch axes broadcast; accumulated in float32.
    transpose_a, transpose_b: the last two axes are stored the other way round."""
    return bind(P["matmul"], a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias).  x (..., K), weight (N, K), bias (N,) -> (..., N), dtype of x."""
    return bind(P["linear"], x, weight, bias, activation=activation)


# what models are made of


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return bind(P["softmax"], x, axis=axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return bind(P["log_softmax"], x, axis=axis)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] per row.  logits (..., C), targets integers (...) -> (...), float32."""
    return bind(P["cross_entropy"], logits, targets)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return bind(P["swiglu"], gate, up)


def geglu(x: Tensor) -> Tensor:
    """h * gelu(gate), where h and gate are the halves of the last axis (Shazeer 2020).  x (..., 2 N) -> (..., N)."""
    return bind(P["geglu"], x)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 (Zhang & Sennrich 2019, eq. 4)."""
    return bind(P["rms_norm"], x, weight, eps=eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016)."""
    return bind(P["layer_norm"], x, weight, bias, eps=eps)


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, *, eps: float = 1e-5,
               activation: str | None = None) -> Tensor:  # fmt: skip
    """Each group of channels of each sample standardised over space and group.  x (N, *S, C)  (Wu & He 2018)."""
    return bind(P["group_norm"], x, weight, bias, groups=groups, eps=eps, activation=activation)


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias by channel (the last axis), with the statistics given."""
    return bind(P["batch_norm"], x, mean, var, weight, bias, eps=eps)


def batch_norm_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """batch_norm with the mean and (population) variance of x over all axes but the last. -> result, mean, variance."""
    return bind(P["batch_norm_train"], x, weight, bias, eps=eps)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, lengths: Tensor | None = None, *,
              causal: bool = False, scale: float | None = None) -> Tensor:  # fmt: skip
    """softmax(scale q k^T + bias) v by head.

    q (B, L, H, D), k and v (B, S, H_kv, D), bias broadcastable to (B, H, L, S) -> (B, L, H, D). H is a multiple of
    H_kv. lengths (B,), integers: how many of the S keys there are yet; those beyond do not count, whatever they hold.
    causal: query l sees keys up to l + length - L. A query that sees nothing gives zeros. (Vaswani et al. 2017.)
    """
    return bind(P["attention"], q, k, v, bias, lengths, causal=causal, scale=scale)


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotary positions.  x (B, L, H, D); cos, sin (L, R/2) or (B, L, R/2) turn the first R channels in pairs (i, i +
    R/2), or (2i, 2i + 1) if interleaved (Su et al. 2021)."""
    return bind(P["rope"], x, cos, sin, interleaved=interleaved)


def embedding(table: Tensor, ids: Tensor) -> Tensor:
    """table (V, D), ids (...) -> (..., D)."""
    return bind(P["embedding"], table, ids)


def dropout(x: Tensor, p: float, *, seed: int, offset: int, start: Tensor | None = None) -> Tensor:
    """A share p of the values set to zero, the others divided by 1 - p. Which ones, follows from seed and offset, or
    seed and start + offset: start (1,), int64, where a captured step is to draw others each time."""
    return bind(P["dropout"], x, start, p=p, seed=seed, offset=offset)


def adamw_step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, *, lr: float, beta1: float, beta2: float, eps: float,
               weight_decay: float, step: int, donate: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW (Loshchilov & Hutter 2019), from 1: parameter, gradient, moments -> parameter, moments.
    donate=True: p, m and v will not be used again, their memory may be written to."""
    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "step": step}
    return bind(P["adamw_step"], p, g, m, v, **settings, donate=donate)
