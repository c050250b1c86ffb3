"""What goes into every module of a model and what comes out, while it runs once.

A trace is calls in the order in which they end, inner ones before the one they are in. It is kept as one .npz: numbers,
and a JSON text of paths; nothing in it is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.core.tensor import Tensor
from zoo.hub.files import atomic
from zoo.nn import Module

VERSION = 1


@dataclass
class Call:
    """One call of one module. The arrays are float32 or whole numbers."""

    path: str
    """In the model's tree; "" is the model itself."""
    kind: str
    """Its class."""
    inputs: list[np.ndarray]
    options: dict[str, Any]
    """Arguments that are no tensors, by name: activation="gelu"."""
    output: np.ndarray | None
    """The first tensor of what it gave; None if it gave none."""
    start: int
    end: int
    """When it began and ended, counted in beginnings and ends."""


@dataclass
class Trace:
    calls: list[Call]
    """In the order in which they ended."""
    about: str = ""
    """Which program, device and weights."""
    stopped: tuple[str, str] | None = None
    """Where it ended on its way, if it did: the innermost module's path, and the error."""

    def save(self, path: Path) -> None:
        """Writes it as .npz. Raises WeightsError if it cannot be written."""
        arrays: dict[str, np.ndarray] = {}
        rows = []
        for i, call in enumerate(self.calls):
            arrays |= {f"{i}.in.{j}": array for j, array in enumerate(call.inputs)}
            if call.output is not None:
                arrays[f"{i}.out"] = call.output
            options = {name: value for name, value in call.options.items() if isinstance(value, str | int | float)}
            rows.append([call.path, call.kind, len(call.inputs), options, call.start, call.end])
        head = json.dumps({"version": VERSION, "about": self.about, "calls": rows})
        with atomic(path) as part, part.open("wb") as file:
            np.savez_compressed(file, head=np.frombuffer(head.encode(), np.uint8), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Trace:
        """Reads what `save` wrote. Raises DataError if it is none of these."""
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                if head["version"] != VERSION:
                    raise ValueError(f"version {head['version']}; this program writes {VERSION}")
                calls = []
                for i, (module, kind, inputs, options, start, end) in enumerate(head["calls"]):
                    arrays = [file[f"{i}.in.{j}"] for j in range(inputs)]
                    output = file.get(f"{i}.out")
                    calls.append(Call(module, kind, arrays, options, output, start, end))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(
                f"cannot read the activations in {path}", str(error), "Make them with `zoo compare --store`."
            ) from error
        return Trace(calls, head["about"])


def record(model: Module, inputs: Sequence[np.ndarray], about: str = "") -> Trace:
    """Runs the model once, in the mode it is in, and tells what every module got and gave: as far as it comes."""
    device = model.device
    tensors = [Tensor(device.from_host(np.ascontiguousarray(array)), device) for array in inputs]
    trace = Trace([], about or str(device.name))
    with watching(model, trace), contextlib.suppress(Exception):  # it is in trace.stopped
        model(*tensors)  # type: ignore[operator]
    return trace


@contextlib.contextmanager
def watching(model: Module, trace: Trace) -> Iterator[None]:
    """While this is open, every call of a module of `model` is added to the trace. Classes get another `__call__` for
    that time, as Python looks for it there."""
    paths = {id(module): path for path, module in model.named_modules()}
    clock = [0]
    busy: set[int] = set()  # a subclass's __call__ may call its base's: one call

    def tick() -> int:
        clock[0] += 1
        return clock[0]

    def watched(original: Any) -> Any:
        def call(self: Module, *args: Any, **options: Any) -> Any:
            if id(self) not in paths or id(self) in busy:
                return original(self, *args, **options)
            busy.add(id(self))
            start = tick()
            try:
                result = original(self, *args, **options)
            except Exception as error:
                if trace.stopped is None:
                    trace.stopped = (paths[id(self)], f"{type(error).__name__}: {error}")
                raise
            finally:
                busy.discard(id(self))
            given = [_host(v) for v in (*args, *options.values()) if isinstance(v, Tensor)]
            rest = {name: v for name, v in options.items() if not isinstance(v, Tensor)}
            tensors = [name for name, v in options.items() if isinstance(v, Tensor)]
            if tensors:
                rest["tensors"] = ",".join(tensors)
            output = first_tensor(result)
            host = None if output is None else _host(output)
            trace.calls.append(Call(paths[id(self)], type(self).__name__, given, rest, host, start, tick()))
            return result

        return call

    changed = []
    for cls in {type(module) for _, module in model.named_modules() if callable(module)}:
        changed.append((cls, "__call__" in vars(cls), cls.__call__))
    try:
        for cls, _, original in changed:
            cls.__call__ = watched(original)  # type: ignore[method-assign]
        yield
    finally:
        for cls, own, original in changed:
            if own:
                cls.__call__ = original  # type: ignore[method-assign]
            else:
                del cls.__call__


def first_tensor(result: Any, kind: type | tuple[type, ...] = Tensor) -> Any:
    """The first tensor in what a module gave: itself, or of a tuple, list or mapping; None if there is none."""
    if isinstance(result, kind):
        return result
    parts = result.values() if hasattr(result, "values") else result if isinstance(result, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part, kind)) is not None), None)


def _host(tensor: Tensor) -> np.ndarray:
    array = np.asarray(tensor)
    return np.array(array if array.dtype.kind in "iub" else array.astype(np.float32))
