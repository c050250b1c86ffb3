"""Two traces side by side, up to the first module that differs, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoo.compare import between, leaf
from zoo.compare.align import Difference, like, pairs
from zoo.compare.formulas import ACTIVATIONS
from zoo.compare.trace import Call, Trace
from zoo.nn import Module

AGREES, DIFFERS, ALONE = "agrees", "differs", "not in the reference"
ITS_INPUT = "its input"
NOISE = 3e-7
"""Relative differences of float32 that sums in another order make."""
STANDS_OUT = 8.0
GIVES, STOPS = "what it gives", "where the model stops"


@dataclass(frozen=True)
class Row:
    """One call: how far its output is from the reference's."""

    path: str
    kind: str
    state: str
    shape: tuple[int, ...]
    largest: float | None = None
    """Of the absolute differences."""
    mean: float | None = None
    relative: float | None = None
    """The largest difference, by the reference's largest value."""

    def to_json(self) -> dict[str, Any]:
        found = {"max": self.largest, "mean": self.mean, "relative": self.relative}
        numbers = {name: value for name, value in found.items() if value is not None and np.isfinite(value)}
        return {"path": self.path, "kind": self.kind, "state": self.state, "shape": list(self.shape), **numbers}


@dataclass(frozen=True)
class Finding:
    """The first difference: in which module's arithmetic, at what, and why."""

    path: str
    what: str
    cause: str | None


@dataclass(frozen=True)
class Comparison:
    rows: tuple[Row, ...]
    """In the order in which the calls began; up to the first difference."""
    finding: Finding | None
    ours: str
    theirs: str
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.finding is None and any(row.state == AGREES for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        finding = None
        if self.finding is not None:
            finding = {"path": self.finding.path, "what": self.finding.what, "cause": self.finding.cause}
        return {"agrees": self.agrees, "ours": self.ours, "reference": self.theirs, "tolerance": self.tolerance,
                "modules": [row.to_json() for row in self.rows], "first_difference": finding}  # fmt: skip

    def __str__(self) -> str:
        lines = [["module", "class", "max", "mean", "relative", ""]]
        above: list[str] = []
        for row in self.rows:
            while above and not row.path.startswith(f"{above[-1]}." if above[-1] else ""):
                above.pop()
            name = row.path.removeprefix(f"{above[-1]}.") if above and above[-1] else row.path
            numbers = [f"{value:.1e}" if value is not None else "" for value in (row.largest, row.mean, row.relative)]
            state = "" if row.state == AGREES else row.state
            lines.append(["  " * len(above) + (name or "(model)"), row.kind, *numbers, state])
            above.append(row.path)
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*text, "", self.verdict()])

    def verdict(self) -> str:
        if self.finding is None:
            compared = sum(row.state == AGREES for row in self.rows)
            if not compared:
                return "nothing could be compared: no module of the model is one of the reference's"
            return f"all {compared} calls agree within {self.tolerance:g} ({self.ours}; {self.theirs})"
        cause = self.finding.cause or "none of the usual causes; look at its __call__"
        told = "error" if self.finding.what == STOPS else "likely cause"
        return f"first difference: {self.finding.path or '(model)'}, {self.finding.what}\n{told}: {cause}"


def compare_traces(model: Module, ours: Trace, theirs: Trace, names: Mapping[str, str], tolerance: float) -> Comparison:
    """`names`: path of our module -> path of the reference's. `model` is ours, for its weights and config."""
    rows: dict[int, Row] = {}
    finding = None
    matched = pairs(names, ours.calls, theirs.calls)
    for call, other in matched:
        alone = call.end == call.start + 1 or not call.path  # a layer, or the whole model
        row, expected = _row(call, other, tolerance, alone)
        rows[call.start] = row
        if row.state == DIFFERS and other is not None:
            finding = _Search(model, matched, tolerance).find(call, other, expected)
            break
    finding = finding or _doubtful(model, matched, rows)
    if finding is None and ours.stopped is not None:
        path, error = ours.stopped
        finding = Finding(path, STOPS, error)
        rows[len(ours.calls) * 2 + 1] = Row(path, type(dict(model.named_modules())[path]).__name__, "stops", ())
    if finding is not None:  # those that were still running hold the difference
        last = max(rows)
        rows |= {c.start: Row(c.path, c.kind, "...", ()) for c in ours.calls if c.start < last and c.start not in rows}
    ordered = tuple(rows[start] for start in sorted(rows))
    return Comparison(ordered, finding, ours.about, theirs.about, tolerance)


def _doubtful(model: Module, matched: list[tuple[Call, Call | None]], rows: dict[int, Row]) -> Finding | None:
    """A module that is within the tolerance, and still is not the reference's: its error stands out, and another
    formula gives the reference's numbers. Small random weights hide such bugs: two kinds of gelu are 1e-5 apart."""
    largest = NOISE
    for call, other in matched:
        relative = rows[call.start].relative or 0.0
        if relative > STANDS_OUT * largest and other is not None:
            expected = _row(call, other, relative / 3, True)[1]
            found = _Search(model, matched, relative / 3).find(call, other, expected)
            if found.cause is not None:
                rows[call.start] = replace(rows[call.start], state=DIFFERS)
                return found
        largest = max(largest, relative)
    return None


def _row(call: Call, other: Call | None, tolerance: float, alone: bool) -> tuple[Row, np.ndarray | None]:
    if call.output is None or other is None or other.output is None:
        return Row(call.path, call.kind, ALONE, () if call.output is None else call.output.shape), None
    shape = call.output.shape
    expected = like(other.output, call.output)
    if expected is None:  # what holds others may give more than the reference's does, in another order
        return Row(call.path, call.kind, DIFFERS if alone else ALONE, shape), None
    found = Difference(call.output, expected)
    if found.relative > tolerance:
        for fused in _fused(call, expected):
            behind = Difference(call.output, fused)
            if behind.relative <= tolerance:
                found, expected = behind, fused
    state = AGREES if found.relative <= tolerance else DIFFERS
    return Row(call.path, call.kind, state, shape, found.largest, found.mean, found.relative), expected


def _fused(call: Call, expected: np.ndarray) -> Iterator[np.ndarray]:
    """What the reference has behind its module where ours does more in one: adds a residual, applies an activation."""
    y = expected.astype(np.float64)
    residual = "residual" in str(call.options.get("tensors", "")).split(",")
    if residual and call.inputs[-1].shape == y.shape:
        y = y + call.inputs[-1]
    named = call.options.get("activation")
    for name, f in ACTIVATIONS.items():
        if name == named or (residual and named is None):  # the module itself may know which
            yield f(y)


class _Search:
    """From the first call that differs to the module whose arithmetic does."""

    def __init__(self, model: Module, matched: list[tuple[Call, Call | None]], tolerance: float):
        self.model, self.matched, self.tolerance = model, matched, tolerance
        self.modules = dict(model.named_modules())
        self.config = getattr(model, "config", None)

    def find(self, call: Call, other: Call, expected: np.ndarray | None) -> Finding:
        assert call.output is not None and other.output is not None
        if expected is None:
            return self._other_shape(call, other)
        if self._inputs_agree(call, other):
            parts = self._parts(call)
            if not parts:
                return Finding(call.path, GIVES, leaf.cause(self.modules[call.path], call, expected))
            return Finding(call.path, GIVES, self._between(call, parts, call.output, expected))
        while (above := self._above(call)) is not None and not self._inputs_agree(*above):
            call, other = above[0], above[1]  # type: ignore[assignment]
        if above is None or not call.inputs or not other.inputs:
            return Finding(call.path, "what goes into it", None)
        theirs = like(other.inputs[0], call.inputs[0])
        what = f"what it hands to {call.path.removeprefix(f'{above[0].path}.')}"
        if theirs is None:
            shapes = f"{call.inputs[0].shape}; the reference: {other.inputs[0].shape}"
            return Finding(above[0].path, what, f"another shape: {shapes}")
        parts = [part for part in self._parts(above[0]) if part.end < call.start]
        return Finding(above[0].path, what, self._between(above[0], parts, call.inputs[0], theirs))

    def _other_shape(self, call: Call, other: Call) -> Finding:
        assert call.output is not None and other.output is not None
        ways = [other.output, *([np.moveaxis(other.output, 1, -1)] if other.output.ndim > 2 else [])]
        theirs = next((way for way in ways if way.shape[-1:] == call.output.shape[-1:]), ways[-1])
        told = None
        if self._inputs_agree(call, other) and not self._parts(call):
            told = leaf.cause(self.modules[call.path], call, theirs)
        shapes = f"another shape: {call.output.shape}; the reference: {theirs.shape}"
        return Finding(call.path, GIVES, f"{told} ({shapes})" if told else shapes)

    def _between(self, call: Call, parts: list[Call], ours: np.ndarray, theirs: np.ndarray) -> str | None:
        sources = {ITS_INPUT: call.inputs[0]} if call.inputs and call.inputs[0].dtype.kind == "f" else {}
        for part in parts:
            if part.output is not None and part.output.dtype.kind == "f":
                sources[part.path.removeprefix(f"{call.path}.") if call.path else part.path] = part.output
        return between.cause(between.Gap(sources, ours, theirs), self.config)

    def _parts(self, call: Call) -> list[Call]:
        """The calls that a call made itself."""
        inner = [c for c, _ in self.matched if call.start < c.start and c.end < call.end]
        return [c for c in inner if not any(d.start < c.start and c.end < d.end for d in inner)]

    def _above(self, call: Call) -> tuple[Call, Call | None] | None:
        """The call that made this one."""
        around = [pair for pair in self.matched if pair[0].start < call.start and call.end < pair[0].end]
        return max(around, key=lambda pair: pair[0].start, default=None)

    def _inputs_agree(self, call: Call, other: Call | None) -> bool:
        """What goes in first agrees; or there is nothing to hold it against."""
        if other is None or not call.inputs or not other.inputs:
            return True
        theirs = like(other.inputs[0], call.inputs[0])
        return theirs is not None and Difference(call.inputs[0], theirs).relative <= self.tolerance


__all__ = ["AGREES", "ALONE", "DIFFERS", "Comparison", "Finding", "Row", "compare_traces"]
