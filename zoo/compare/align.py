"""Which module of the reference is which of ours, and in which order its numbers are.

The port's translation table says which tensor is which; modules follow from the tensors they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from zoo.compare.trace import Call
from zoo.hub.table import Plan


def module_names(plan: Plan, ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Path of our module -> that of the reference's with the same tensors; modules without any are left out."""
    there = set(theirs)
    source = {step.target: step.source for step in plan.steps}
    prefix = _prefix([name.rpartition(".")[0] for name in source.values()], there)
    found = {"": ""}
    for path in ours:
        held = {t.removeprefix(f"{path}."): s for t, s in source.items() if t.startswith(f"{path}.")}
        if not held or not path:
            continue
        place = _place(held)
        name = prefix(place)
        beside = sum(s.startswith(f"{place}.") for s in source.values()) > len(held)
        if name in there and not beside and name not in found.values():
            found[path] = name
    return found


def _place(held: Mapping[str, str]) -> str:
    """The published module with these tensors (their names below ours -> published): what is left where they end alike,
    else the innermost that holds them all."""
    places = {s.removesuffix(f".{t}") for t, s in held.items()}
    if len(places) == 1 and all(s.endswith(f".{t}") for t, s in held.items()):
        return places.pop()
    return _common(list(held.values()))


def _common(names: list[str]) -> str:
    """The module that holds all of these tensors."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def _prefix(sources: list[str], there: set[str]) -> Callable[[str], str]:
    """How a name in the checkpoint becomes a path in the reference: it may have one more name before it, or one less,
    as transformers' models with and without a head have."""
    tops = sorted({name.split(".")[0] for name in there if name})
    added = ["", *(f"{top}." for top in tops)]
    taken = ["", *(f"{top}." for top in sorted({name.split(".")[0] for name in sources}))]

    def way(add: str, take: str) -> Callable[[str], str]:
        return lambda name: add + name.removeprefix(take)

    ways = [way(add, take) for add in added for take in taken if not (add and take)]
    return max(ways, key=lambda one: sum(one(name) in there for name in sources))


def like(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """The reference's array in our layout: as it is, with channels last, or with the same numbers in another shape;
    where several fit, the one that is nearest. None if none fits."""
    ways = [theirs]
    if theirs.ndim > 2:
        ways.append(np.moveaxis(theirs, 1, -1))
    fitting = [way for way in ways if way.shape == ours.shape]
    if not fitting:
        fitting = [np.ascontiguousarray(way).reshape(ours.shape) for way in ways if way.size == ours.size]
    return min(fitting, key=lambda way: Difference(ours, way).relative, default=None)


class Difference:
    """How far ours is from theirs."""

    def __init__(self, ours: np.ndarray, theirs: np.ndarray):
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        apart = np.where(np.isnan(apart), np.inf, apart)
        known = np.abs(b[np.isfinite(b)])
        self.largest = float(apart.max(initial=0.0))
        self.mean = float(apart.mean()) if apart.size else 0.0
        scale = float(known.max(initial=0.0))
        self.relative = self.largest / scale if scale else float(self.largest > 0)


def pairs(names: Mapping[str, str], ours: list[Call], theirs: list[Call]) -> list[tuple[Call, Call | None]]:
    """(our call, the reference's) for every call of a module that both have, in our order; the second is None where
    the reference did not call it."""
    waiting: dict[str, list[Call]] = {}
    for call in theirs:
        waiting.setdefault(call.path, []).append(call)
    found = []
    for call in ours:
        calls = waiting.get(names[call.path], []) if call.path in names else []
        found.append((call, calls.pop(0) if calls else None))
    return found
