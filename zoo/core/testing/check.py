"""The properties that every case has on every device. Each function raises AssertionError, saying what differs and
where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.autodiff import Autodiff
from zoo.core.device import device as device_of
from zoo.core.dtype import float64, is_float
from zoo.core.tensor import Tensor
from zoo.core.testing.case import Case, widened
from zoo.core.testing.devices import Checked, WithoutRules
from zoo.core.testing.tol import Tol

STEP = (
    1e-5  # of finite differences in float64: errors from curvature (h^2) and from rounding (1e-16 / h) are near 1e-10
)
NEAR = (
    1e-6  # relative to the largest gradient; 1000 times those errors, and 1000 times below what a wrong rule would give
)
COORDINATES = (
    48  # of each argument, that are moved one by one; the others are moved together along one random direction
)


def plain(array: np.ndarray, device: Any) -> Any:
    return device.from_host(array)


def permuted(array: np.ndarray, device: Any) -> Any:
    """The same values with the first axis running fastest in memory."""
    axes = tuple(reversed(range(array.ndim)))
    return device.from_host(np.array(array.transpose(axes), order="C")).transpose(axes)


def strided(array: np.ndarray, device: Any) -> Any:
    """The same values as every second one of a larger buffer, from the second on, the last axis running backwards."""
    buffer = np.zeros([2 * n + 1 for n in array.shape], array.dtype)
    buffer[...] = 77  # what lies between must not be read
    inner = tuple(slice(1, 2 * n + 1, 2) for n in array.shape)
    turned = array[..., ::-1] if array.ndim else array
    buffer[inner] = turned
    handle = device.from_host(buffer)[inner]
    return handle[..., ::-1] if array.ndim else handle


LAYOUTS: dict[str, Callable[[np.ndarray, Any], Any]] = {"permuted": permuted, "strided": strided}


def run(
    case: Case, device: Any, args: tuple[Any, ...], layout: Callable[[np.ndarray, Any], Any] = plain
) -> tuple[Tensor, ...]:
    """The results of the case on these arguments. The arguments are as they were afterwards."""
    handles = [layout(a, device) if isinstance(a, np.ndarray) else a for a in args]
    tensors = [Tensor(h, device) if isinstance(a, np.ndarray) else a for h, a in zip(handles, args, strict=True)]
    y = case.fn(device=device) if case.source else case.fn(*tensors)
    for i, (h, a) in enumerate(zip(handles, args, strict=True)):
        if isinstance(a, np.ndarray):
            assert device.to_host(h).tobytes() == a.tobytes(), f"{case}: argument {i} was changed"
    return tuple(y) if isinstance(y, tuple | list) else (y,)


def compare(
    case: Case, results: tuple[Tensor, ...], args: tuple[Any, ...], dtype: np.dtype, where: str, tol: Tol | None = None
) -> None:
    wanted = case.expected(args)
    assert len(results) == len(wanted), f"{case}: {len(results)} results, {len(wanted)} were expected"
    dtypes = case.result_dtypes(dtype, len(wanted))
    for i, (y, want, d) in enumerate(zip(results, wanted, dtypes, strict=True)):
        assert y.dtype == d, f"{case} {where}: result {i} is {y.dtype.name}; {d.name} was expected"
        wrong = (tol or case.tol).error(y.numpy(), want)
        assert not wrong, f"{case} {where} in {dtype.name}, result {i}: {wrong}"


def value(case: Case, device: Any, dtype: np.dtype) -> None:
    """The result is the reference's; its dtype too."""
    args = case.draw(dtype)
    compare(case, run(case, device, args), args, dtype, device.name)


def inferred(case: Case, device: Any, dtype: np.dtype) -> set[str]:
    """Every op, forward and backward, kernel and body, has the shape and dtype that `infer` says, writes to no
    argument, and bodies give the value too. Returns the ops that the case calls by name."""
    args = case.draw(dtype)
    direct = Checked(device)
    compare(case, run(case, direct, args), args, dtype, "checked")
    bodies = Checked(device, bodies=True)
    compare(case, run(case, bodies, args), args, dtype, "from bodies")
    if case.differentiable and is_float(dtype):
        for checked in (Checked(device), bodies):
            gradients(case, Autodiff(checked), args)
    return set(direct.seen)


def layouts(case: Case, device: Any, dtype: np.dtype) -> None:
    """However the arguments lie in memory, the result is the same: other axis orders, gaps, negative and zero
    strides."""
    args = case.draw(dtype)
    for name, layout in LAYOUTS.items():
        compare(case, run(case, device, args, layout), args, dtype, name)
    for axis in range(max((a.ndim for a in args if isinstance(a, np.ndarray)), default=0) if case.spread else 0):
        spread = tuple(_expanded(a, axis) for a in args)
        results = run(case, device, spread, _zero_stride(axis))
        compare(case, results, spread, dtype, f"axis {axis} expanded", case.tol.for_equal_terms())


def _expanded(a: Any, axis: int) -> Any:
    if not isinstance(a, np.ndarray) or a.ndim <= axis or not a.shape[axis]:
        return a
    return np.ascontiguousarray(np.broadcast_to(a.take([0], axis=axis), a.shape))


def _zero_stride(axis: int) -> Callable[[np.ndarray, Any], Any]:
    def layout(a: np.ndarray, device: Any) -> Any:
        if a.ndim <= axis or not a.shape[axis]:
            return device.from_host(a)
        one = device.from_host(np.ascontiguousarray(a.take([0], axis=axis)))
        return device.ops.expand(one, shape=a.shape)

    return layout


def not_a_number(case: Case, device: Any, dtype: np.dtype) -> None:
    """A NaN in one argument comes out exactly where the reference has one: it is neither lost nor spread."""
    args = case.draw(dtype)
    for i, a in enumerate(args):
        if isinstance(case.nan, tuple) and i not in case.nan:
            continue
        if isinstance(a, np.ndarray) and is_float(a.dtype) and a.size:
            hurt = a.copy()
            hurt.reshape(-1)[a.size // 2] = np.nan
            poisoned = (*args[:i], hurt, *args[i + 1 :])
            compare(case, run(case, device, poisoned), poisoned, dtype, f"NaN in argument {i}")


# gradients


Flowing = list[np.ndarray | None]


def cotangents(case: Case, results: tuple[Tensor, ...]) -> Flowing:
    """What flows in: random values of the dtype of each float result."""
    rng = np.random.default_rng(len(case.name))
    return [rng.uniform(-2, 2, y.shape).astype(y.dtype) if is_float(y.dtype) else None for y in results]


def _loss(results: tuple[Tensor, ...], flowing: Flowing, device: Any) -> Tensor:
    total = None
    for y, c in zip(results, flowing, strict=True):
        if c is not None:
            part = ops.sum(y * Tensor(device.from_host(c), device))
            total = part if total is None else total + part
    assert total is not None
    return total


def _entered(args: tuple[Any, ...], places: tuple[int, ...], autodiff: Any) -> tuple[list[Any], list[Any]]:
    """The arguments as tensors of the inner device, and the same with variables in `places`."""
    inner = autodiff.inner
    given = [Tensor(inner.from_host(a), inner) if isinstance(a, np.ndarray) else a for a in args]
    return given, [Tensor(autodiff.variable(t.handle), autodiff) if i in places else t for i, t in enumerate(given)]


def gradients(case: Case, autodiff: Any, args: tuple[Any, ...], flowing: Flowing | None = None) -> list[np.ndarray]:
    """In every variable of the case, of sum(result * cotangent)."""
    inner, places = autodiff.inner, case.variables(args)
    given, entered = _entered(args, places, autodiff)
    y = case.fn(*entered)
    results = tuple(y) if isinstance(y, tuple | list) else (y,)
    flowing = flowing or cotangents(case, results)
    if len(results) == 1 and flowing[0] is not None:
        found = results[0].backward(Tensor(inner.from_host(flowing[0]), inner))
    else:
        found = _loss(results, flowing, inner).backward()
    for i, t in enumerate(given):
        if isinstance(args[i], np.ndarray):
            assert inner.to_host(t.handle).tobytes() == args[i].tobytes(), f"{case}: backward changed argument {i}"
    out = []
    for i in places:
        g = found[entered[i]]
        assert g.shape == args[i].shape and g.dtype == args[i].dtype, (
            f"{case}: the gradient in argument {i} is {g.dtype} {g.shape}"
        )
        out.append(g.numpy())
    return out


def _moved(args: tuple[Any, ...], moves: dict[int, np.ndarray], by: float) -> tuple[Any, ...]:
    return tuple(np.asarray(a + by * moves[i]) if i in moves else a for i, a in enumerate(args))


def _directions(
    args: tuple[Any, ...], places: tuple[int, ...], rng: np.random.Generator
) -> Iterator[dict[int, np.ndarray]]:
    yield {i: rng.uniform(-1, 1, args[i].shape) for i in places}
    for i in places:
        for at in rng.permutation(args[i].size)[:COORDINATES]:
            unit = np.zeros(args[i].size)
            unit[at] = 1
            yield {i: unit.reshape(args[i].shape)}


def finite_differences(case: Case) -> None:
    """The gradient, in float64 on the reference device, is the slope that central differences measure."""
    device, args = device_of("numpy"), widened(case.draw(float64))
    places = case.variables(args)
    slopes = dict(zip(places, gradients(case, Autodiff(device), args), strict=True))
    flowing = cotangents(case, run(case, device, args))

    def loss(by: float, moves: dict[int, np.ndarray]) -> float:
        results = run(case, device, _moved(args, moves, by))
        return float(
            sum(np.sum(y.numpy().astype(float64) * c) for y, c in zip(results, flowing, strict=True) if c is not None)
        )

    scale = max((float(np.abs(g).max()) for g in slopes.values() if g.size), default=0.0)
    for moves in _directions(args, places, np.random.default_rng(0)):
        measured = (loss(STEP, moves) - loss(-STEP, moves)) / (2 * STEP)
        claimed = float(sum(np.sum(slopes[i] * m) for i, m in moves.items()))
        size = sum(float(np.abs(m).sum()) for m in moves.values())
        allowed = NEAR * (0.1 + scale) * max(size, 1.0)
        assert abs(measured - claimed) <= allowed, (
            f"{case}: in {_place(moves)} the slope is {measured:.8g}, the gradient {claimed:.8g}"
        )


def _place(moves: dict[int, np.ndarray]) -> str:
    if len(moves) == 1 and sum(np.count_nonzero(m) for m in moves.values()) == 1:
        ((i, m),) = moves.items()
        return f"argument {i} at {tuple(int(k) for k in np.argwhere(m)[0])}"
    return "a random direction"


def gradients_agree(case: Case, device: Any, dtype: np.dtype) -> None:
    """The gradient on this device and in this dtype is that of the reference device in float64, of the same rounded
    values."""
    args = case.draw(dtype)
    flowing = cotangents(case, run(case, device, args))
    found = gradients(case, Autodiff(device), args, flowing)
    exact = [None if c is None else c.astype(float64) for c in flowing]
    wanted = gradients(case, Autodiff(device_of("numpy")), widened(args), exact)
    for i, got, want in zip(case.variables(args), found, wanted, strict=True):
        wrong = case.gradient.error(got, want, dtype)
        assert not wrong, f"{case} on {device.name} in {dtype.name}: gradient in argument {i}: {wrong}"


def rule_against_body(case: Case) -> set[str]:
    """A composite's own gradient rule gives what differentiating its body gives. Returns the composites this was
    tried on."""
    args = widened(case.draw(float64))
    autodiff = Autodiff(device_of("numpy"))
    bodies = WithoutRules(autodiff)
    ruled, through = gradients(case, autodiff, args), gradients(case, bodies, args)
    for i, a, b in zip(case.variables(args), ruled, through, strict=True):
        far = float(np.abs(a - b).max()) if a.size else 0.0
        assert far <= 1e-12 * (1 + float(np.abs(b).max(initial=0))), (
            f"{case}: rule and body differ by {far:.3g} in argument {i}"
        )
    return set(bodies.replaced)


def second_order(case: Case) -> None:
    """The gradient of the gradient, by Autodiff(Autodiff(numpy)), is the slope of the gradient along a random
    direction."""
    device, args = device_of("numpy"), widened(case.draw(float64))
    once = Autodiff(device)
    twice, places = Autodiff(once), case.variables(args)
    rng = np.random.default_rng(1)
    weights = {i: rng.uniform(-1, 1, args[i].shape) for i in places}
    moves = {i: rng.uniform(-1, 1, args[i].shape) for i in places}

    def slope(by: float) -> float:
        found = gradients(case, once, _moved(args, moves, by))
        return float(sum(np.sum(weights[i] * g) for i, g in zip(places, found, strict=True)))

    measured = (slope(STEP) - slope(-STEP)) / (2 * STEP)
    _, outer = _entered(args, places, once)
    entered = [Tensor(twice.variable(t.handle), twice) if i in places else t for i, t in enumerate(outer)]
    y = case.fn(*entered)
    results = tuple(y) if isinstance(y, tuple | list) else (y,)
    first = _loss(results, cotangents(case, results), device).backward()
    total = sum((ops.sum(first[entered[i]] * Tensor(device.from_host(weights[i]), device)) for i in places), start=0.0)
    claimed = 0.0
    if isinstance(total, Tensor) and total.device is once and hasattr(total.handle, "node"):
        second = total.backward()
        claimed = float(sum(np.sum(second[outer[i]].numpy() * moves[i]) for i in places if outer[i] in second))
    size = sum(float(np.abs(m).sum()) for m in moves.values())
    assert abs(measured - claimed) <= 1e-5 * (abs(measured) + size + 1), (
        f"{case}: the slope of the gradient is {measured:.8g}, not {claimed:.8g}"
    )
