"""Why a step gave what is no number: it is repeated from the state before it, with the forward pass watched, then the
gradients, then with some rows of the batch at a time.

    finding = diagnose(model, loss, batches, rows, place, rewind)
    finding.where      "layers.3.mlp.down_proj (Linear), in linear, is the first module whose output is not finite; ..."
    finding.cause      "data", "weights", "activations" (the forward pass), "gradients", or "unknown"
    finding.rows       those that alone give it, as numbers of the data set
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.dtype import is_float
from zoo.core.tensor import Tensor
from zoo.hub.files import atomic, write_json
from zoo.nn import Module
from zoo.train.batch import arrays, size, take
from zoo.train.gradients import gradients
from zoo.train.watched import Watched, finite

SECONDS = 60.0
"""For the search of rows: a step of a large model takes seconds."""
OVERFLOWS = 1e19
"""Squares of what is larger are none in float32."""
REPORT, BATCH = "diverged.json", "diverged.npz"
_FIXES = {
    "data": "Correct or remove {rows}; corrected in place, the run goes on with --resume.",
    "weights": "Start from other weights: these are damaged.",
    "activations": "Begin again with a lower learning rate, or a longer warm-up.",
    "gradients": "Begin again with a lower learning rate, or clip the gradients.",
    "unknown": "Run it again: if it comes at another step, suspect the memory or the processor.",
}


@dataclass(frozen=True)
class Finding:
    cause: str
    where: str
    module: str | None = None
    kind: str | None = None
    op: str | None = None
    parameter: str | None = None
    inputs: tuple[float, float] | None = None
    batch: int = 0
    """Which of the step's batches, from 0."""
    rows: tuple[int, ...] = ()
    places: tuple[str, ...] = ()
    every_row: bool = False

    @property
    def whose(self) -> str:
        """What is said of the rows."""
        if not self.rows:
            return ""
        shown = ", ".join(self.places[:4]) + (f" and {len(self.rows) - 4} more" if len(self.rows) > 4 else "")
        if self.every_row:
            return f"every row of the batch gives it: {shown}"
        return f"{shown} alone {'gives' if len(self.rows) == 1 else 'give'} it"

    @property
    def fix(self) -> str:
        return _FIXES[self.cause].format(rows="those rows" if self.rows else "what the batch is made from")


def diagnose(
    model: Module,
    loss: Callable[[Any, Any], Tensor],
    batches: Sequence[Any],
    rows: Sequence[np.ndarray],
    place: Callable[[Any], Any],
    rewind: Callable[[int], None],
    names: Callable[[Sequence[int]], list[str]],
) -> Finding:
    """Repeats a step. model: on the Autodiff device, with the weights that it began with. batches: of the step, on the
    host; rows: the numbers of each one's rows; place(batch): puts it on the device; rewind(i): makes running statistics
    what they were before the step, and random numbers those of batch i. names: how messages call rows."""
    rewind(0)
    for path, tensor in model.state().items():
        if is_float(tensor.dtype) and not finite(tensor):
            return Finding("weights", f"{path} holds {_odd(tensor)} before the step", parameter=path)
    found = None
    for number, batch in enumerate(batches):
        if size(batch) == 0:
            continue  # of several processes, this one has nothing of it
        rewind(number)
        with Watched(model).looking() as seen:
            result = loss(model, place(batch))
        value = float(result)
        found = _backward(gradients(result, model), seen.order) if math.isfinite(value) else _forward(seen, value)
        if found is not None:
            found = dataclasses.replace(found, batch=number)
            break
    if found is None:
        return Finding("unknown", "repeated from the same state, the loss and the gradients of the step are finite")
    odd = [(path, array) for path, array in arrays(batches[found.batch]) if is_float(array.dtype) and not finite(array)]
    if odd:
        path, array = odd[0]
        where = f"the batch itself holds {_odd(array)}, in {path} ({array.dtype.name} {array.shape}); {found.where}"
        found = dataclasses.replace(found, cause="data", where=where)
    alone = _rows_alone(model, loss, batches[found.batch], place, lambda: rewind(number))
    rewind(0)
    if not alone or size(batches[found.batch]) % max(len(rows[found.batch]), 1):
        return found
    numbers = rows[found.batch]
    which = tuple(dict.fromkeys(int(numbers[i % len(numbers)]) for i in alone))  # a batch may hold rows several times
    every = len(alone) == size(batches[found.batch]) > 1
    cause = found.cause if every else "data"
    return dataclasses.replace(found, cause=cause, rows=which, places=tuple(names(which)), every_row=every)


def _forward(seen: Watched, value: float) -> Finding:
    if (at := seen.first) is not None:
        return Finding("activations", str(at), module=at.path, kind=at.kind, op=at.op, inputs=at.inputs)
    op = f", in {seen.op}" if seen.op else ""
    span = "" if seen.inputs is None else f" from outputs in {seen.inputs[0]:.4g} to {seen.inputs[1]:.4g}"
    where = f"every module's output is finite; the loss function makes {value} of them{op},{span}".rstrip(",")
    return Finding("activations", where, op=seen.op, inputs=seen.inputs)


def _backward(grads: Mapping[str, Tensor], order: Sequence[str]) -> Finding | None:
    """The first parameter on the way back whose gradient is not finite: modules are passed as they were called last,
    backwards; a parameter belongs to the nearest module above it that was called. Else one that is too large."""
    last = {path: i for i, path in enumerate(order)}

    def turn(path: str) -> int:
        holder = path
        while holder not in last and holder:
            holder = holder.rpartition(".")[0]
        return last.get(holder, -1)

    if bad := [path for path, g in grads.items() if not finite(g)]:
        first = max(bad, key=turn)
        where = f"the forward pass is finite; on the way back, the gradient of {first} is the first that is not"
        return Finding("gradients", where, parameter=first)
    path, most = max(((path, _largest(g)) for path, g in grads.items()), key=lambda item: item[1])
    if most <= OVERFLOWS:
        return None
    where = f"every gradient is finite, but too large for a norm: that of {path} reaches {most:.3g}"
    return Finding("gradients", where, parameter=path)


def _largest(g: Tensor) -> float:
    return float(np.abs(np.asarray(g, dtype=np.float64)).max(initial=0))


def _rows_alone(
    model: Module, loss: Callable[[Any, Any], Tensor], batch: Any, place: Callable[[Any], Any],
    rewind: Callable[[], None],
) -> list[int]:  # fmt: skip
    """The rows of a batch that without the others give no finite loss and gradients: what is finite together is not
    looked into, so that one of n rows is found in 2 log n steps of fewer and fewer rows."""
    deadline = time.monotonic() + SECONDS

    def fails(which: np.ndarray) -> bool:
        rewind()
        which = np.repeat(which, 2) if len(which) == 1 else which  # one row alone has no variance
        value = loss(model, place(take(batch, which)))
        return not math.isfinite(float(value)) or _backward(gradients(value, model), ()) is not None

    def search(which: np.ndarray) -> list[int]:
        if time.monotonic() > deadline or not fails(which):
            return []
        if len(which) == 1:
            return [int(which[0])]
        half = len(which) // 2
        return search(which[:half]) + search(which[half:])

    try:
        return search(np.arange(size(batch)))
    except Exception:  # a loss that cannot do without the rest of its batch
        return []


def _odd(tensor: Any) -> str:
    values = np.asarray(tensor)
    return "nan" if (values != values).any() else "inf"


def write_finding(directory: Path, finding: Finding, facts: dict[str, Any], batch: Any) -> None:
    """The finding as `diverged.json`, and the batch as `diverged.npz`: its arrays under their paths ("0", "labels")."""
    write_json(directory / REPORT, {**facts, **dataclasses.asdict(finding), "batch_file": BATCH})
    with atomic(directory / BATCH) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays(batch)))
