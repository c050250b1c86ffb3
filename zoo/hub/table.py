"""The translation of a published checkpoint into ours, as a table that reads both ways.

A name that agrees with ours, in a layout that agrees, needs no row. Everything else is a row with its reason:

    TABLE = Table(
        row("conv1.weight", "conv1.weight", permute(0, 2, 3, 1), why="published (O, I, kh, kw); ours channels-last"),
        row("layers.{i}.q.weight", "blocks.{i}.attention.query.weight", why="the names of the paper"),
        drop("layers.{i}.rotary.inv_freq", why="recomputed from rope_theta"),
        tie("lm_head.weight", "embed_tokens.weight", when=lambda config: config.tie_word_embeddings),
    )

`{i}` (any single letter) stands for a number and means the same number on both sides; `**` in a drop for anything.
Nothing is skipped quietly: a source tensor is used or dropped with a reason, a target is filled, or the plan refuses
with one report of every gap.
Plans look at names and shapes only; tensors are translated one at a time.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from zoo.core.errors import WeightsError

Function = Callable[[np.ndarray, Any], np.ndarray]


class Shaped(Protocol):
    """What a plan needs to know of a tensor: TensorInfo, Param, an array, a Tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


# --- operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """An invertible change of layout: `forward` from published to ours, `inverse` back; both take (array, config)."""

    name: str
    forward: Function
    inverse: Function
    piece: tuple[int, int] = (0, 1)
    """(which, of how many): ours is one of several pieces that lie under each other in the published one."""


def permute(*axes: int) -> Operation:
    """Reorders axes, as numpy.transpose does: ours[i] is published axis axes[i]."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Operation(f"permute{axes}", lambda a, config: a.transpose(axes), lambda a, config: a.transpose(back))


def transpose() -> Operation:
    """Swaps the two axes of a matrix."""
    return permute(1, 0)


def third(which: int) -> Operation:
    """Rows of queries (0), keys (1) or values (2), which are published under each other in one matrix."""

    def forward(a: np.ndarray, config: Any) -> np.ndarray:
        if len(a) % 3:
            raise ValueError(f"{len(a)} rows do not divide by three")
        return a[len(a) // 3 * which :][: len(a) // 3]

    return Operation(f"third({which})", forward, lambda a, config: a, (which, 3))


def flatten_channels_last(chw: Callable[[Any], tuple[int, int, int]]) -> Operation:
    """Columns of the first linear layer after a convolution: from the order (C, H, W) to (H, W, C).

    A published matrix (out, C*H*W) expects activations flattened channels-first; ours are channels-last.
    `chw(config)` gives (C, H, W) of the activations that are flattened.
    """

    def forward(a: np.ndarray, config: Any) -> np.ndarray:
        c, h, w = chw(config)
        return a.reshape(len(a), c, h, w).transpose(0, 2, 3, 1).reshape(len(a), h * w * c)

    def inverse(a: np.ndarray, config: Any) -> np.ndarray:
        c, h, w = chw(config)
        return a.reshape(len(a), h, w, c).transpose(0, 3, 1, 2).reshape(len(a), c * h * w)

    return Operation("flatten_channels_last", forward, inverse)


# --- rows -------------------------------------------------------------------------------------------------------------


class Pattern:
    """A tensor name with fields for numbers: `layers.{i}.weight`."""

    def __init__(self, text: str):
        self.text = text
        self.fields = re.findall(r"\{([a-z])\}", text)
        parts = re.split(r"\{[a-z]\}", text)
        expression = re.escape(parts[0])
        for index, part in enumerate(parts[1:]):
            name = self.fields[index]
            group = f"(?P={name})" if name in self.fields[:index] else rf"(?P<{name}>\d+)"
            expression += group + re.escape(part)
        self._match = re.compile(expression.replace(r"\*\*", ".*")).fullmatch

    def match(self, name: str) -> dict[str, str] | None:
        found = self._match(name)
        return found.groupdict() if found else None

    def fill(self, values: Mapping[str, str]) -> str:
        return self.text.format_map(values)


@dataclass(frozen=True)
class Row:
    target: Pattern
    source: Pattern
    operations: tuple[Operation, ...]
    why: str


@dataclass(frozen=True)
class Drop:
    source: Pattern
    why: str
    when: Callable[[Any], bool]


@dataclass(frozen=True)
class Tie:
    target: Pattern
    to: Pattern
    when: Callable[[Any], bool]


def row(target: str, source: str, *operations: Operation, why: str) -> Row:
    """Our tensor `target` is the published `source` after `operations`."""
    made = Row(Pattern(target), Pattern(source), operations, why)
    if set(made.target.fields) != set(made.source.fields):
        raise ValueError(f"row {target!r} <- {source!r}: both sides must have the same fields")
    return made


def drop(source: str, *, why: str, when: Callable[[Any], bool] = lambda config: True) -> Drop:
    """The published tensor `source` is not a parameter of ours where `when(config)`."""
    return Drop(Pattern(source), why, when)


def tie(target: str, to: str, *, when: Callable[[Any], bool]) -> Tie:
    """Our tensor `target` is the same as our tensor `to` where `when(config)`; it is not exported then."""
    return Tie(Pattern(target), Pattern(to), when)


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One tensor's way: read `source`, apply the functions in order, and it is `target`."""

    target: str
    source: str
    functions: tuple[Function, ...] = ()
    names: tuple[str, ...] = ()
    """The operations' names, for display."""
    more: tuple[str, ...] = ()
    """On the way out: tensors that come under `source`, in the same way."""


@dataclass(frozen=True)
class Misfit:
    """A tensor that would arrive in a shape that the model does not have."""

    source: str
    shape: tuple[int, ...]
    expected: tuple[int, ...] | None
    """The shape that would fit, in the source's layout; None if no shape would."""


@dataclass(frozen=True)
class Plan:
    """How every tensor of a checkpoint becomes a tensor of the model, and every gap. Made from headers alone."""

    config: Any
    steps: tuple[Step, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    """(source tensor, reason)."""
    missing: tuple[tuple[str, str], ...] = ()
    """(our tensor, the source it should come from)."""
    unused: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = ()

    @property
    def gaps(self) -> int:
        return len(self.missing) + len(self.unused) + len(self.misfits)

    def check(self, checkpoint: str, model: str, fix: str = "") -> Plan:
        """Itself, if every tensor has its place. Raises WeightsError with one report of all gaps."""
        if not self.gaps:
            return self
        tensors = "1 tensor does" if self.gaps == 1 else f"{self.gaps} tensors do"
        raise WeightsError(f"cannot use {checkpoint}: {tensors} not fit {model}", self.report(), fix)

    def report(self, limit: int = 20) -> str:
        """Every gap, a line each; at most `limit` of a kind are written out."""
        unused = list(self.unused)
        absent = [source for _, source in self.missing]
        kinds = (
            [f"{m.source} is {m.shape}" + (f"; {m.expected} was expected" if m.expected else "") for m in self.misfits],
            [f"{source} is missing{_nearest(source, unused)}" for source in absent[:limit]] + absent[limit:],
            [f"{name} has no place in the model{_nearest(name, absent)}" for name in unused[:limit]] + unused[limit:],
        )
        lines = []
        for kind, name in zip(kinds, ("mis-shaped", "missing", "unused"), strict=True):
            lines += kind[:limit]
            if len(kind) > limit:
                lines.append(f"... and {len(kind) - limit} more {name}")
        return "\n".join(lines)

    def translate(self, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """(target name, array), one tensor at a time; views where the operations allow."""
        for step in self.steps:
            yield step.target, self.apply(step, tensors[step.source])

    def apply(self, step: Step, array: np.ndarray) -> np.ndarray:
        for function in step.functions:
            array = function(array, self.config)
        return array


def _nearest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


@dataclass(frozen=True)
class _Gaps:
    """Gathers a plan."""

    steps: list[Step] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


class Table:
    """Rows, read forwards (`load`: published -> ours) or backwards (`export`: ours -> published)."""

    def __init__(self, *rows: Row | Drop | Tie):
        self.rows = [r for r in rows if isinstance(r, Row)]
        self.drops = [r for r in rows if isinstance(r, Drop)]
        self.ties = [r for r in rows if isinstance(r, Tie)]

    def published(self, target: str) -> tuple[str | None, tuple[Operation, ...]]:
        """The published name of our tensor and the operations towards ours. (None, ()) if the name is not one of ours:
        rows give its tensor another name here."""
        for r in self.rows:
            if (values := r.target.match(target)) is not None:
                return r.source.fill(values), r.operations
        elsewhere = any(r.source.match(target) is not None for r in self.rows)
        return (None if elsewhere else target), ()

    def tied(self, target: str, config: Any) -> str | None:
        """Our tensor that `target` is the same as under this config, or None."""
        for t in self.ties:
            if (values := t.target.match(target)) is not None and t.when(config):
                return t.to.fill(values)
        return None

    def load(self, source: Mapping[str, Shaped], target: Mapping[str, Shaped], config: Any) -> Plan:
        """Plans published -> ours. `source` and `target` give names and shapes; no data is read."""
        gathered = _Gaps()
        ignored = {}
        for name, param in target.items():
            to = self.tied(name, config)
            published, operations = self.published(to or name)
            own = self.published(name)[0]
            if to is not None and own is not None and own in source and own != published:
                ignored[own] = f"the model uses {to} in its place (tied)"
            if published is None or published not in source:
                gathered.missing.append((name, published or name))
                continue
            functions = tuple(operation.forward for operation in operations)
            names = tuple(operation.name for operation in operations)
            step = Step(name, published, functions, names)
            self._place(gathered, step, operations, source[published], param, config)
        unused = []
        for name in source:
            if name in gathered.used or name in ignored:
                continue
            reason = next((d.why for d in self.drops if d.source.match(name) is not None and d.when(config)), None)
            if reason is None:
                unused.append(name)
            else:
                ignored[name] = reason
        return Plan(
            config,
            tuple(gathered.steps),
            tuple(ignored.items()),
            tuple(gathered.missing),
            tuple(unused),
            tuple(gathered.misfits),
        )

    def export(self, ours: Mapping[str, Shaped], config: Any) -> Plan:
        """Plans ours -> published: the same table backwards. Tied tensors are left out, as published files do."""
        pieces: dict[str, dict[int, str]] = {}
        ways: dict[str, tuple[Operation, ...]] = {}
        unused = []
        for name in ours:
            if self.tied(name, config) is not None:
                continue
            published, operations = self.published(name)
            if published is None:
                unused.append(name)
                continue
            which = max((operation.piece[0] for operation in operations), default=0)
            pieces.setdefault(published, {})[which] = name
            ways[published] = operations[::-1]
        steps = []
        for published, names in pieces.items():
            first, *more = (names[which] for which in sorted(names))
            functions = tuple(operation.inverse for operation in ways[published])
            steps.append(Step(published, first, functions, tuple(o.name for o in ways[published]), tuple(more)))
        return Plan(config, tuple(steps), unused=tuple(unused))

    @staticmethod
    def _place(
        gathered: _Gaps, step: Step, operations: tuple[Operation, ...], source: Shaped, target: Shaped, config: Any
    ) -> None:
        """Adds a step whose result has the target's shape, or a misfit that says which source shape would have."""
        gathered.used.add(step.source)
        if shape_after(step.functions, source.shape, config) == tuple(target.shape):
            gathered.steps.append(step)
        else:
            back = tuple(operation.inverse for operation in reversed(operations))
            expected = shape_after(back, target.shape, config)
            if expected:
                expected = (expected[0] * max((o.piece[1] for o in operations), default=1), *expected[1:])
            gathered.misfits.append(Misfit(step.source, tuple(source.shape), expected))


def shape_after(functions: tuple[Function, ...], shape: tuple[int, ...], config: Any) -> tuple[int, ...] | None:
    """The shape that the functions make of `shape`, or None if they cannot take it.

    They run on an array without memory of its own: one element, every stride 0, so even a reshape copies nothing.
    """
    array = np.broadcast_to(np.zeros((), np.int8), shape)
    try:
        for function in functions:
            array = function(array, config)
    except (ValueError, TypeError, IndexError):
        return None
    return array.shape
