"""What is bound by memory: activations, norms, softmax, sums over leading axes, random bits, the optimizer's step.

float32 throughout; bfloat16 and float16 where models meet them: in the kernel, or, in what is rarer, widened before it
and rounded after it. Each kernel is one pass, or as few as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.backends.cpu.kernels.common import CODES, F32, Kernels, bits
from zoo.core.backends.cpu.kernels.common import WEIGHTS as STORAGE
from zoo.core.backends.cpu.memory import LARGE, empty
from zoo.core.dtype import HALVES, int32
from zoo.core.prims import infer
from zoo.core.stats import count

UNARY = {name: code for name, code in CODES.items() if name} | {"exp": len(CODES)}
BINARY = {"add": 0, "sub": 1, "mul": 2, "div": 3, "maximum": 4, "minimum": 5}
MASK = 0xFFFFFFFF
LARGEST = float(np.finfo(F32).max)


def _words(x: Any) -> Any:
    """x in one run, half precision as 16-bit words."""
    return None if x is None else bits(x if x.flags.c_contiguous else np.ascontiguousarray(x))


def _wide(x: Any) -> Any:
    """A small array in float32, in one run."""
    return None if x is None else np.ascontiguousarray(x, dtype=F32)


def _weight(b: Any, x: Any, dtype: Any) -> Any:
    """A norm's weight as it meets numbers of a dtype, in float32."""
    if x is None or x.dtype is dtype:
        return _wide(x)
    return b.ops.cast(x, dtype=F32) if dtype is F32 else _wide(x.astype(dtype))


def _stored(*arrays: Any) -> bool:
    """Whether all are arrays of one dtype that kernels load, aligned, and hold something."""
    dtype = arrays[0].dtype
    return dtype in STORAGE and all(
        isinstance(a, np.ndarray) and a.dtype == dtype and a.size and a.flags.aligned for a in arrays
    )


def _full(*arrays: Any) -> bool:
    """As _stored, in float32."""
    return all(a.dtype is F32 and _stored(a) for a in arrays)


def _widened(kernel: Callable[..., Any], *like: int | None) -> Callable[..., Any]:
    """The kernel, and for half precision around it.  like: for each result the argument whose dtype it has, or None for
    float32."""

    def run(b: Any, *args: Any, **attrs: Any) -> Any:
        if not any(isinstance(a, np.ndarray) and a.dtype in HALVES for a in args):
            return kernel(b, *args, **attrs)
        wide = [b.ops.cast(a, dtype=F32) if isinstance(a, np.ndarray) and a.dtype in HALVES else a for a in args]
        out = kernel(b, *wide, **attrs)
        if out is NotImplemented:
            return out
        results = out if type(out) is tuple else (out,)
        stored = [y if i is None else b.ops.cast(y, dtype=args[i].dtype) for y, i in zip(results, like, strict=True)]
        return tuple(stored) if type(out) is tuple else stored[0]

    return run


def _run(b: Any, op: str, shape: Any, dtype: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...],
         numbers: tuple[float, ...] = (), settings: tuple[int, ...] = ()) -> bool:  # fmt: skip
    """`shape`: (rows, columns). False where the kernel met what it has no code for."""
    outs = tuple(bits(o) if o is not None and o.dtype in HALVES else o for o in outputs)
    done: bool = b.native.rows(op, shape[0], shape[1], STORAGE[dtype], inputs, outs, numbers, settings)
    count(f"cpu.{op}")
    return done


def _rows(x: Any) -> tuple[int, int]:
    return x.size // x.shape[-1], x.shape[-1]


# elementwise


def _unary(name: str) -> Callable[..., Any]:
    code = UNARY[name]

    def kernel(b: Any, x: Any) -> Any:
        if not _stored(x):
            return NotImplemented
        y = empty(x.shape, x.dtype)
        _run(b, "unary", (1, x.size), x.dtype, (_words(x),), (y,), (), (code,))
        return y

    return kernel


def activation_grad(b: Any, x: Any, g: Any, *, activation: str) -> Any:
    if not _stored(x, g):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    _run(b, "activation_grad", (1, x.size), x.dtype, (_words(x), _words(g)), (y,), (), (CODES[activation],))
    return y


def swiglu(b: Any, gate: Any, up: Any) -> Any:
    if not _stored(gate, up):
        return NotImplemented
    y = empty(gate.shape, gate.dtype)
    _run(b, "swiglu", (1, y.size), y.dtype, (_words(gate), _words(up)), (y,))
    return y


def geglu(b: Any, x: Any) -> Any:
    if not _stored(x):
        return NotImplemented
    y = empty((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
    _run(b, "geglu", _rows(y), y.dtype, (_words(x),), (y,), (), (x.size,))
    return y


def swiglu_grad(b: Any, gate: Any, up: Any, g: Any) -> Any:
    if not _stored(gate, up, g):
        return NotImplemented
    d_gate, d_up = empty(gate.shape, gate.dtype), empty(gate.shape, gate.dtype)
    _run(b, "swiglu_grad", (1, gate.size), gate.dtype, (_words(gate), _words(up), _words(g)), (d_gate, d_up))
    return d_gate, d_up


def _operand(other: Any, x: Any) -> bool:
    """Whether the kernel takes what meets x: one number, one line of it, or all of it."""
    if not isinstance(other, np.ndarray):
        return abs(other) <= LARGEST
    if other.ndim > x.ndim or not _stored(x, other) or not other.flags.c_contiguous:
        return False
    ones = next((i for i, n in enumerate(other.shape) if n != 1), other.ndim)
    return other.shape[ones:] == x.shape[x.ndim - other.ndim + ones :]


def _binary(name: str) -> Callable[..., Any]:
    code = BINARY[name]

    def kernel(b: Any, x: Any, y: Any) -> Any:
        turned = not isinstance(x, np.ndarray) or (isinstance(y, np.ndarray) and y.size > x.size)
        if turned:
            x, y = y, x
        if not isinstance(x, np.ndarray) or x.size < b.small or not _stored(x) or not x.flags.c_contiguous:
            return NotImplemented
        if not _operand(y, x):
            return NotImplemented
        out = empty(x.shape, x.dtype)
        size, other, numbers = (y.size, bits(y), ()) if isinstance(y, np.ndarray) else (1, None, (float(y),))
        columns = size if size > 1 else x.size
        shape = (x.size // columns, columns)
        _run(b, "binary", shape, x.dtype, (bits(x), other), (out,), numbers, (size, code, turned))
        return out

    return kernel


def where(b: Any, condition: Any, x: Any, y: Any) -> Any:
    branches = [v for v in (x, y) if isinstance(v, np.ndarray)]
    if condition.size < b.small or not _full(*branches) or any(v.shape != condition.shape for v in branches):
        return NotImplemented
    arrays = tuple(_words(v) if isinstance(v, np.ndarray) else None for v in (x, y))
    numbers = tuple(0.0 if isinstance(v, np.ndarray) else float(v) for v in (x, y))
    out = empty(condition.shape, F32)
    _run(b, "where", (1, out.size), F32, (np.ascontiguousarray(condition), *arrays), (out,), numbers)
    return out


def cast(b: Any, x: Any, *, dtype: Any) -> Any:
    """Between float32 and half precision."""
    wide, narrow = dtype is F32, x.dtype is F32
    if wide == narrow or not _stored(x) or dtype not in STORAGE:
        return NotImplemented
    y = empty(x.shape, dtype)
    _run(b, "widen" if wide else "narrow", (1, x.size), x.dtype if wide else dtype, (_words(x),), (y,))
    return y


def adamw_step(b: Any, p: Any, g: Any, m: Any, v: Any, *, lr: float, beta1: float, beta2: float, eps: float,
               weight_decay: float, step: int, donate: bool = False) -> Any:  # fmt: skip
    if not _full(p, g, m, v):
        return NotImplemented
    numbers = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / (1 - beta2**step),
        eps,
        1 - lr * weight_decay,
        lr / (1 - beta1**step),
    )
    in_place = donate and all(a.flags.c_contiguous and a.flags.writeable for a in (p, m, v))
    out = (p, m, v) if in_place else tuple(empty(p.shape, F32) for _ in range(3))
    _run(b, "adamw", (1, p.size), F32, tuple(_words(a) for a in (p, g, m, v)), out, numbers)
    return out


def full(b: Any, *, shape: Any, value: Any, dtype: Any) -> Any:
    """In memory that was a result before, where it is large."""
    if math.prod(shape) * dtype.itemsize < LARGE:
        return NotImplemented
    out = empty(tuple(shape), dtype)
    out.fill(value)
    return out


def scatter_add(b: Any, x: Any, indices: Any, updates: Any) -> Any:
    lines = x.shape[0]
    if not _full(x, updates) or lines > MASK >> 1 or indices.min() < 0 or indices.max() >= lines:
        return NotImplemented
    y = empty(x.shape, F32)
    inputs = (_words(x), np.ascontiguousarray(indices, dtype=np.int32), _words(updates))
    _run(b, "scatter_add", (indices.size, x.size // lines), F32, inputs, (y,), (), (lines,))
    return y


# random numbers


def _random(name: str) -> Callable[..., Any]:
    def kernel(b: Any, start: Any = None, *, shape: Any, seed: int, offset: int, dtype: Any = F32) -> Any:
        if dtype != F32 or 0 in shape or start is not None:
            return NotImplemented
        out = empty(tuple(shape), F32)
        _run(b, name, (1, out.size), F32, (), (out,), (), (seed & MASK, seed >> 32 & MASK, offset))
        return out

    return kernel


def dropout(b: Any, x: Any, start: Any = None, *, p: float, seed: int, offset: int) -> Any:
    if not _full(x):
        return NotImplemented
    out = empty(x.shape, F32)
    settings = (seed & MASK, seed >> 32 & MASK, offset)
    _run(b, "dropout", (1, x.size), F32, (_words(x), start), (out,), (p, 1 / (1 - p)), settings)
    return out


# along the last axis


def _last(x: Any, axis: int) -> bool:
    return axis in (-1, x.ndim - 1) and x.ndim > 0


def _along_rows(name: str) -> Callable[..., Any]:
    """softmax(x), or its gradient from (y, g)."""

    def kernel(b: Any, *args: Any, axis: int) -> Any:
        if not _stored(*args) or not _last(args[0], axis):
            return NotImplemented
        y = empty(args[0].shape, args[0].dtype)
        _run(b, name, _rows(y), y.dtype, tuple(_words(a) for a in args), (y,))
        return y

    return kernel


def logsumexp(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    if not _full(x) or infer.axes_tuple(axis, x.ndim) != (x.ndim - 1,):
        return NotImplemented
    y = empty(infer.reduced(x.shape, (x.ndim - 1,), keepdims), F32)
    _run(b, "logsumexp", _rows(x), F32, (_words(x),), (y,))
    return y


def _columns(targets: np.ndarray) -> np.ndarray:
    """As the kernels take them; what is out of range stays so."""
    if targets.dtype != int32:
        targets = targets.astype(np.int64).clip(-1, MASK >> 1).astype(np.int32)
    return np.ascontiguousarray(targets)


def cross_entropy(b: Any, logits: Any, targets: Any) -> Any:
    """Declines where a target is out of range, for numpy's kernel to say so."""
    if not _full(logits):
        return NotImplemented
    y = empty(targets.shape, F32)
    inputs = (_words(logits), _columns(targets))
    return y if _run(b, "cross_entropy", _rows(logits), F32, inputs, (y,)) else NotImplemented


def cross_entropy_grad(b: Any, logits: Any, targets: Any, g: Any) -> Any:
    if not _full(logits, g):
        return NotImplemented
    y = empty(logits.shape, F32)
    g = g[(slice(1),) * g.ndim].reshape(1) if not any(g.strides) else _words(g)  # of a mean, one number for all
    inputs = (_words(logits), _columns(targets), g)
    done = _run(b, "cross_entropy_grad", _rows(logits), F32, inputs, (y,), (), (g.size,))
    return y if done else NotImplemented


def topk(b: Any, x: Any, *, k: int) -> Any:
    if not _full(x):
        return NotImplemented
    values, places = empty((*x.shape[:-1], k), F32), empty((*x.shape[:-1], k), int32)
    _run(b, "topk", _rows(x), F32, (_words(x),), (values, places), (), (k,))
    return values, places


def rope(b: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool) -> Any:
    if not _stored(x) or not cos.size:
        return NotImplemented
    y = empty(x.shape, x.dtype)
    settings = (cos.size, x.shape[2], cos.shape[-1], interleaved)
    _run(b, "rope", _rows(x), x.dtype, (_words(x), _wide(cos), _wide(sin)), (y,), (), settings)
    return y


# norms


def rms_norm(b: Any, x: Any, weight: Any, *, eps: float) -> Any:
    if not _stored(x):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    _run(b, "rms_norm", _rows(x), x.dtype, (_words(x), _weight(b, weight, x.dtype)), (y,), (eps,))
    return y


def rms_norm_grad(b: Any, x: Any, weight: Any, g: Any, *, eps: float) -> Any:
    if not _full(x, weight, g):
        return NotImplemented
    dx, dw = empty(x.shape, F32), empty(weight.shape, F32)
    _run(b, "rms_norm_grad", _rows(x), F32, (_words(x), _words(weight), _words(g)), (dx, dw), (eps,))
    return dx, dw


def layer_norm(b: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    if not _stored(x):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    _run(b, "layer_norm", _rows(x), x.dtype, (_words(x), _weight(b, weight, F32), _weight(b, bias, F32)), (y,), (eps,))
    return y


def batch_norm(b: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    if not _stored(x):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    statistics = tuple(_wide(a) for a in (mean, var, weight, bias))
    _run(b, "batch_norm", _rows(x), x.dtype, (_words(x), *statistics), (y,), (eps,))
    return y


def batch_norm_train(b: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    """Group norm of one sample whose groups are the channels."""
    if not _stored(x):
        return NotImplemented
    channels = x.shape[-1]
    y, mean, var = empty(x.shape, x.dtype), empty((channels,), F32), empty((channels,), F32)
    inputs = (_words(x), _wide(weight), _wide(bias))
    _run(b, "group_norm", _rows(x), x.dtype, inputs, (y, mean, var), (eps,), (1, channels, 0))
    return y, mean, var


def group_norm(b: Any, x: Any, weight: Any, bias: Any, *, groups: int, eps: float, activation: str | None) -> Any:
    if not _stored(x):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    inputs = (_words(x), _wide(weight), _wide(bias))
    _run(b, "group_norm", _rows(x), x.dtype, inputs, (y, None, None), (eps,), (x.shape[0], groups, CODES[activation]))
    return y


def group_norm_grad(b: Any, x: Any, weight: Any, g: Any, *, groups: int, eps: float) -> Any:
    if not _full(x, g):
        return NotImplemented
    dx, dw, db = (empty(s, F32) for s in (x.shape, x.shape[-1:], x.shape[-1:]))
    inputs = (_words(x), _wide(weight), _words(g))
    if groups == 1 and x.ndim == 2:  # layer norm
        _run(b, "layer_norm_grad", _rows(x), F32, inputs, (dx, dw, db), (eps,))
    else:
        _run(b, "group_norm_grad", _rows(x), F32, inputs, (dx, dw, db), (eps,), (x.shape[0], groups))
    return dx, dw, db


# sums over leading axes, or over all but the first and the last


def sum_(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    if not _full(x) or not x.flags.c_contiguous:
        return NotImplemented
    axes = infer.axes_tuple(axis, x.ndim)
    if not axes or axes[-1] == x.ndim - 1 or axes != tuple(range(axes[0], axes[-1] + 1)):
        return NotImplemented
    outer, columns = math.prod(x.shape[: axes[0]]), math.prod(x.shape[axes[-1] + 1 :])
    y = empty(infer.reduced(x.shape, axes, keepdims), F32)
    _run(b, "column_sums", (x.size // columns, columns), F32, (x,), (y,), (), (outer,))
    return y


def mean(b: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    total = sum_(b, x, axis=axis, keepdims=keepdims)
    return total if total is NotImplemented else np.divide(total, np.float32(x.size // total.size), out=total)


KERNELS: Kernels = {
    **{name: _unary(name) for name in UNARY},
    **{name: _binary(name) for name in BINARY},
    **{name: _along_rows(name) for name in ("softmax", "softmax_grad", "log_softmax", "log_softmax_grad")},
    "activation_grad": activation_grad, "swiglu": swiglu, "swiglu_grad": swiglu_grad, "geglu": geglu, "where": where,
    "cast": cast,
    **{name: _random(name) for name in ("uniform", "normal")},
    "adamw_step": adamw_step, "dropout": _widened(dropout, 0), "logsumexp": _widened(logsumexp, 0), "topk": topk,
    "cross_entropy": _widened(cross_entropy, None), "cross_entropy_grad": _widened(cross_entropy_grad, 0), "rope": rope,
    "rms_norm": rms_norm, "rms_norm_grad": _widened(rms_norm_grad, 0, 1), "layer_norm": layer_norm,
    "batch_norm": batch_norm, "batch_norm_train": batch_norm_train, "group_norm": group_norm,
    "group_norm_grad": _widened(group_norm_grad, 0, None, None), "sum": _widened(sum_, 0), "mean": _widened(mean, 0),
    "full": full, "scatter_add": _widened(scatter_add, 0),
}  # fmt: skip
