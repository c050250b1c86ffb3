"""Why one layer gives something else than the reference's, though the same went in: hypotheses, tried on the numbers.

Each is a formula of the layer with one thing changed; the one that gives the reference's numbers is the cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zoo.compare.formulas import ACTIVATIONS, EPSILONS, close, error, limit, standardised
from zoo.compare.trace import Call
from zoo.core import ops
from zoo.core.device import device
from zoo.core.tensor import Tensor
from zoo.nn import BatchNorm, Embedding, GroupNorm, LayerNorm, Linear, Module, RMSNorm
from zoo.nn.conv import _Forward as Convolution

Array = np.ndarray
Found = tuple[str, Array]
"""(the cause in words, the numbers it would give)."""


def cause(module: Module, call: Call, theirs: Array) -> str | None:
    """Why `call.output` is not `theirs`; None if no hypothesis fits. Both had call.inputs[0]."""
    assert call.output is not None
    ours, theirs = call.output.astype(np.float64), theirs.astype(np.float64)
    if not np.isfinite(theirs).all() and np.isfinite(ours).all():
        return "the reference gives values that are not finite"
    weights = {name: np.asarray(t).astype(np.float64) for name, t in module.state().items()}
    for kind, hypotheses in BY_KIND.items():
        if isinstance(module, kind):
            tried = hypotheses(module, weights, call.inputs[0].astype(np.float64), ours, theirs)
            behind = ACTIVATIONS.get(str(call.options.get("activation")), ACTIVATIONS["no activation"])
            errors = [(min(error(y, theirs), error(behind(y), theirs)), words) for words, y in tried]
            fitting = [one for one in errors if one[0] <= limit(ours, theirs)]
            if fitting:  # two epsilons may both be near: the nearest, and of equal ones the usual
                return min(fitting, key=lambda one: one[0])[1]
    return general(ours, theirs)


def general(ours: Array, theirs: Array) -> str | None:
    """What can happen to any array: a factor, an order, an activation behind it."""
    if ours.shape != theirs.shape or not ours.size:
        return None
    for name, f in ACTIVATIONS.items():
        if name != "no activation" and close(f(ours), theirs, limit(ours, theirs)):
            return f"missing activation: the reference applies {name} to it"
    if (factor := ratio(ours, theirs)) is not None:
        return f"missing scale: the reference's is ours times {_number(factor, ours.shape[-1])}"
    if ours.ndim > 1 and (order := permutation(ours, theirs)) is not None:
        return order_in_words(order)
    for axis in range(1, ours.ndim):
        for step in (-1, 1):
            inner = tuple(slice(1, -1) if a == axis else slice(None) for a in range(ours.ndim))
            if ours.shape[axis] > 3 and close(np.roll(ours, step, axis)[inner], theirs[inner]):
                return f"off by one along axis {axis}: the reference's is ours moved by {step}"
    return None


def ratio(ours: Array, theirs: Array) -> float | None:
    """The factor between them, if there is one that is not 1."""
    norm = float((ours * ours).sum())
    factor = float((ours * theirs).sum()) / norm if norm else 0.0
    return factor if factor and abs(factor - 1) > 1e-4 and close(ours * factor, theirs) else None


def _number(factor: float, width: int) -> str:
    """A factor, by the name it may have."""
    names = {"sqrt(width)": math.sqrt(width), "1/sqrt(width)": 1 / math.sqrt(width)}
    for name, value in names.items():
        if math.isclose(factor, value, rel_tol=1e-3):
            return f"{factor:.6g} = {name}, width {width}"
    return f"{factor:.6g}"


def permutation(ours: Array, theirs: Array) -> Array | None:
    """The order of ours' last axis that gives theirs, if there is one and it is not the same."""
    a, b = ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, ours.shape[-1])
    direction = np.random.default_rng(0).standard_normal(len(a))
    order = np.empty(a.shape[1], np.int64)
    order[np.argsort(direction @ b, kind="stable")] = np.argsort(direction @ a, kind="stable")
    same = np.array_equal(order, np.arange(len(order)))
    return None if same or not close(a[:, order], b) else order


def order_in_words(order: Array) -> str:
    """What a permutation of outputs is: rotary halves, thirds, ..."""
    n = len(order)
    for d in (d for d in range(4, n + 1, 2) if n % d == 0):
        head = np.arange(d)
        zipped = np.concatenate([head[::2], head[1::2]])  # ours in pairs -> theirs in halves
        for name, turn in (("halves", zipped), ("pairs", np.argsort(zipped))):
            if np.array_equal(order, (np.arange(0, n, d)[:, None] + turn).ravel()):
                other = "pairs" if name == "halves" else "halves"
                return (f"permuted rope halves: in each head of {d} rows the reference has the two parts that turn "
                        f"together in {name}, ours in {other}")  # fmt: skip
    if n % 3 == 0:
        blocks = order.reshape(3, -1)
        if all(np.array_equal(block, np.arange(block[0], block[0] + n // 3)) for block in blocks):
            thirds = [int(block[0]) * 3 // n for block in blocks]
            return f"rows in another order: the reference has the thirds in the order {thirds}"
    first = int(np.flatnonzero(order != np.arange(n))[0])
    return f"rows in another order: the reference's row {first} is our row {int(order[first])}"


# --- by kind of layer: (module, its weights, x, ours, theirs) -> hypotheses ------------------------------------------


def _linear(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    matrix, bias = w["weight"], w.get("bias")
    plain = x @ matrix.T
    if bias is not None:
        yield "the reference adds no bias", plain
    if matrix.shape[0] == matrix.shape[1]:
        yield (
            "transposed weight: the reference multiplies by it the other way",
            x @ matrix + (0 if bias is None else bias),
        )
    offset = (theirs - plain).reshape(-1, matrix.shape[0])
    if close(offset, np.broadcast_to(offset.mean(axis=0), offset.shape)) and np.abs(offset).max() > 0:
        what = "another bias" if bias is not None else "a bias, which ours has not"
        yield f"the reference adds {what}", theirs
    n = matrix.shape[1]
    for d in (d for d in range(4, n + 1, 2) if n % d == 0):
        head = np.arange(d)
        turn = (np.arange(0, n, d)[:, None] + np.concatenate([head[::2], head[1::2]])).ravel()
        for order in (turn, np.argsort(turn)):
            words = f"permuted columns: its inputs are in pairs in one and in halves in the other, by {d}"
            yield words, x @ matrix[:, order].T + (0 if bias is None else bias)
    for side in range(2, math.isqrt(n) + 1):
        if n % (side * side) == 0 and n > side * side:
            c = n // (side * side)
            order = np.arange(n).reshape(c, side, side).transpose(1, 2, 0).ravel()
            for one in (order, np.argsort(order)):
                words = f"flattened in another order: (channels {c}, {side}, {side}) in one, channels last in the other"
                yield words, x @ matrix[:, one].T + (0 if bias is None else bias)


def _norm(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    weight, bias = w.get("weight", np.ones(x.shape[-1])), w.get("bias", np.zeros(x.shape[-1]))
    centred = isinstance(m, LayerNorm)
    own = f"ours {'has' if centred else 'is of the root mean square, with'} eps {m.eps:g}"
    for eps in EPSILONS:
        if not math.isclose(eps, m.eps, rel_tol=1e-6):
            yield f"wrong eps: the reference has {eps:g}; {own}", standardised(x, eps, centred) * weight + bias
    for eps in dict.fromkeys((m.eps, *EPSILONS)):
        also = "" if eps == m.eps else f", and eps {eps:g}"
        kinds = ("RMSNorm", "LayerNorm")
        words = f"the reference's is a {kinds[not centred]}{also}, ours a {kinds[centred]}"
        yield words, standardised(x, eps, not centred) * weight + bias
        for c in (centred, not centred):
            words = f"the reference multiplies by 1 + weight{also}"
            yield words, standardised(x, eps, c) * (1 + weight) + bias
    if "bias" in w:
        yield "the reference adds no bias", standardised(x, m.eps, centred) * weight
    yield "the reference does not multiply by the weight", standardised(x, m.eps, centred) + bias


def _group_norm(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    c = x.shape[-1]
    weight, bias = w.get("weight", np.ones(c)), w.get("bias", np.zeros(c))

    def given(groups: int, eps: float) -> Array:
        parts = x.reshape(len(x), -1, groups, c // groups)
        return standardised(parts, eps, True, (1, 3)).reshape(x.shape) * weight + bias

    for eps in EPSILONS:
        if not math.isclose(eps, m.eps, rel_tol=1e-6):
            yield f"wrong eps: the reference has {eps:g}, ours {m.eps:g}", given(m.groups, eps)
    for groups in (g for g in range(1, c + 1) if c % g == 0 and g != m.groups):
        yield f"the reference has {groups} groups, ours {m.groups}", given(groups, m.eps)


def _batch_norm(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    c = x.shape[-1]
    weight, bias = w.get("weight", np.ones(c)), w.get("bias", np.zeros(c))
    mean, var = w["running_mean"], w["running_var"]
    for eps in EPSILONS:
        if not math.isclose(eps, m.eps, rel_tol=1e-6):
            words = f"wrong eps: the reference has {eps:g}, ours {m.eps:g}"
            yield words, (x - mean) / np.sqrt(var + eps) * weight + bias
    axes = tuple(range(x.ndim - 1))
    yield (
        "the reference uses the batch's statistics (it is in training mode)",
        (standardised(x, m.eps, True, axes) * weight + bias),
    )


def _convolution(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    kernel, bias = w["weight"], w.get("bias")
    rank = kernel.ndim - 2
    pad = m.padding

    def given(kernel: Array, padding: Any, stride: Any = m.stride, dilation: Any = m.dilation) -> Array | None:
        place = device("numpy")
        tensors = [None if a is None else Tensor(place.from_host(a), place) for a in (x, kernel, bias)]
        try:
            y = ops.conv(*tensors, stride=stride, padding=padding, dilation=dilation, groups=m.groups)  # type: ignore
        except Exception:  # a hypothesis whose shapes are impossible
            return None
        return np.asarray(y)

    def fits(words: str, numbers: Array | None) -> Iterator[Found]:
        if numbers is not None and numbers.shape == theirs.shape:
            yield words, numbers

    said = f"{pad} on both sides" if isinstance(pad, int) else str(pad)
    sides = [(a, b) for a in range(4) for b in range(4)] + [(p, p) for p in range(4, 9)]
    for before, behind in sorted(sides, key=lambda one: one[0] != one[1]):
        words = f"the reference pads {before} before and {behind} behind, ours {said}"
        yield from fits(f"off by one in padding: {words}", given(kernel, ((before, behind),) * rank))
    for stride in (1, 2, 3, 4):
        yield from fits(f"the reference has stride {stride}, ours {m.stride}", given(kernel, pad, stride))
    for dilation in (1, 2, 4):
        yield from fits(
            f"the reference has dilation {dilation}, ours {m.dilation}", given(kernel, pad, m.stride, dilation)
        )
    if rank == 2:
        turned = kernel.transpose(0, 2, 1, 3)
        yield from fits("transposed kernel: its height and width are exchanged", given(turned, pad))
    flip = tuple(range(1, rank + 1))
    yield from fits(
        "the kernel is turned round (a correlation in one, a convolution in the other)",
        given(np.flip(kernel, flip), pad),
    )
    if kernel.shape[0] == kernel.shape[-1]:
        swapped = kernel.swapaxes(0, -1)
        yield from fits("transposed weight: its inputs and outputs are exchanged", given(swapped, pad))
    if bias is not None:
        yield "the reference adds no bias", ours - bias


def _embedding(m: Any, w: dict[str, Array], x: Array, ours: Array, theirs: Array) -> Iterator[Found]:
    table, ids = w["weight"], x.astype(np.int64)
    for step in (-3, -2, -1, 1, 2, 3):
        moved = ids + step
        if moved.min() >= 0 and moved.max() < len(table):
            yield (
                f"off by {abs(step)} in the index: the reference looks up i {'+' if step > 0 else '-'} {abs(step)}",
                table[moved],
            )


BY_KIND: dict[Any, Callable[..., Iterator[Found]]] = {
    Linear: _linear,
    LayerNorm: _norm,
    RMSNorm: _norm,
    GroupNorm: _group_norm,
    BatchNorm: _batch_norm,
    Convolution: _convolution,
    Embedding: _embedding,
}
