"""Why a module's own arithmetic, between the modules it calls, differs from the reference's: hypotheses.

What it had is known (its inputs, what its parts gave: all equal to the reference's) and so is what both made of it.
A formula that gives our numbers and one that gives theirs name the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.compare.formulas import ACTIVATIONS, attentions, close, error, limit
from zoo.compare.leaf import general

Array = np.ndarray
SIMPLE = (1.0, -1.0, 0.5, 2.0)
Formula = tuple[tuple[str, ...], Array]
"""(in words, by what it is made of; its numbers)."""
FEW = 6
"""Arrays of which sums are tried: more would fit anything."""


@dataclass(frozen=True)
class Gap:
    """What a module had, by name, and what ours and the reference made of it."""

    sources: Mapping[str, Array]
    ours: Array
    theirs: Array


def cause(gap: Gap, config: Any) -> str | None:
    """In words; None if no hypothesis fits."""
    sources = {name: array.astype(np.float64) for name, array in gap.sources.items()}
    ours, theirs = gap.ours.astype(np.float64), gap.theirs.astype(np.float64)
    for formulas in (_activations(sources), _attention(sources, config, ours.shape), _products(sources)):
        if found := _matched(formulas, ours, theirs):
            return found
    return _sums(sources, ours, theirs) or general(ours, theirs)


def _matched(formulas: Iterator[Formula], ours: Array, theirs: Array) -> str | None:
    """Names both formulas, and says what they differ in."""
    near = limit(ours, theirs)
    mine: tuple[float, tuple[str, ...]] | None = None
    yours: tuple[float, tuple[str, ...]] | None = None
    for words, numbers in formulas:
        to_mine, to_yours = error(numbers, ours), error(numbers, theirs)
        if to_mine <= near and (mine is None or to_mine < mine[0]):
            mine = (to_mine, words)
        if to_yours <= near and (yours is None or to_yours < yours[0]):
            yours = (to_yours, words)
    if yours is None or (mine is not None and mine[1] == yours[1]):
        return None
    if mine is None:
        return f"the reference computes {' '.join(yours[1])}"
    kinds = {3: ("positions", "mask", "attention scale"), 1: ("",), 2: ("activation", "")}[len(yours[1])]
    parts = [(kind, a, b) for kind, a, b in zip(kinds, yours[1], mine[1], strict=True) if a != b]
    return "; ".join(_told(kind, a, b) for kind, a, b in parts)


def _told(kind: str, theirs: str, ours: str) -> str:
    if kind == "positions" and "rotary" in theirs and "rotary" in ours:
        same_theta = theirs.rpartition("theta")[2] == ours.rpartition("theta")[2]
        kind = "permuted rope halves" if same_theta else "rope theta"
    elif kind == "attention scale":
        kind = "missing scale in attention" if ours == "none" else "attention scale"
    elif kind == "activation":
        kind = "activation variant"
    return f"{kind}: the reference has {theirs}, ours {ours}".lstrip(": ")


def _activations(sources: Mapping[str, Array]) -> Iterator[Formula]:
    for name, array in sources.items():
        for act, f in ACTIVATIONS.items():
            yield (act, f"of {name}"), f(array)


def _products(sources: Mapping[str, Array]) -> Iterator[Formula]:
    for (a, x), (b, y) in itertools.permutations(sources.items(), 2):
        if x.shape == y.shape:
            for act, f in ACTIVATIONS.items():
                yield (act, f"of {a}, times {b}"), f(x) * y


def _attention(sources: Mapping[str, Array], config: Any, shape: tuple[int, ...]) -> Iterator[Formula]:
    """Where queries, keys and values are among the parts, by name, with the config's heads."""
    found = {}
    for which, words in {"q": ("query", "q_proj", "to_q", "q"), "k": ("key", "k_proj", "to_k", "k"),
                         "v": ("value", "v_proj", "to_v", "v")}.items():  # fmt: skip
        found[which] = next((sources[n] for w in words for n in sources if n.split(".")[-1] == w), None)
    heads = _first(config, "num_attention_heads", "encoder_attention_heads", "n_head", "num_heads")
    groups = _first(config, "num_key_value_heads") or heads
    q, k, v = found["q"], found["k"], found["v"]
    if q is None or k is None or v is None or not heads or q.ndim != 3 or q.shape[-1] % heads:
        return
    a, b, c = (x.reshape(*x.shape[:2], n, -1) for x, n in ((q, heads), (k, groups), (v, groups)))
    if len({a.shape[-1], b.shape[-1], c.shape[-1]}) > 1:
        return
    for variant, numbers in attentions(a, b, c, _first(config, "rope_theta")):
        yield variant, numbers.reshape(*q.shape[:2], -1).reshape(shape) if numbers.size == np.prod(shape) else numbers


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _sums(sources: Mapping[str, Array], ours: Array, theirs: Array) -> str | None:
    """Weighted sums of what the module had: residuals that are missing, or scaled."""
    fitting = {name: array for name, array in sources.items() if array.shape == ours.shape}
    if not fitting or len(fitting) > FEW or ours.shape != theirs.shape:
        return None
    matrix = np.stack([array.ravel() for array in fitting.values()], axis=1)
    mine, yours = (np.linalg.lstsq(matrix, y.ravel(), rcond=None)[0] for y in (ours, theirs))
    if not close(matrix @ mine, ours.ravel()) or not close(matrix @ yours, theirs.ravel()):
        return None
    said = []
    for name, a, b in zip(fitting, yours, mine, strict=True):
        if abs(a - b) > 1e-3:
            if abs(b) < 1e-3:
                what = "missing residual" if name == "its input" else "missing sum"
                said.append(f"{what}: the reference adds {_times(a)}{name}")
            elif abs(a) < 1e-3:
                said.append(f"ours adds {_times(b)}{name}, the reference does not")
            else:
                said.append(f"missing scale: the reference takes {name} times {a:.6g}, ours times {b:.6g}")
    return "; ".join(said) or None


def _times(factor: float) -> str:
    return "" if abs(factor - 1) < 1e-3 else f"{factor:.6g} times "
