"""A forward pass looked at from outside, module by module and op by op: where the first value comes up that is not
finite. Models know nothing of it, and it costs nothing while it is not done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.core.dtype import is_float
from zoo.core.tensor import Tensor
from zoo.nn import Module


@dataclass(frozen=True)
class Place:
    """Where a value came up: in a module (path and class), or in its own code before it calls the part `before`; in
    which op, where that is known; and between what its inputs lie (None: it has none in floating point)."""

    path: str
    kind: str
    op: str | None
    inputs: tuple[float, float] | None
    before: str | None = None

    def __str__(self) -> str:
        where = f"{self.path or 'the model'} ({self.kind})" + (f", in {self.op}," if self.op else "")
        text = f"{where} is the first module whose output is not finite"
        if self.before:
            text = f"the code of {where} before it calls {self.before} is the first to give what is not finite"
        if self.inputs is not None:
            text += f"; its inputs lie in {self.inputs[0]:.4g} to {self.inputs[1]:.4g}"
        return text


@dataclass
class _Call:
    path: str
    kind: str
    module: Any
    inputs: tuple[float, float] | None
    op: str | None = None


@dataclass
class Watched:
    """with Watched(model).looking() as seen: loss(model, batch). Then `seen.first`, and `seen.order`: the paths of
    modules as their calls ended. seen.op: of what no module was in, the first op whose result is not finite."""

    model: Module
    first: Place | None = None
    op: str | None = None
    inputs: tuple[float, float] | None = None
    order: list[str] = field(default_factory=list)
    _calls: list[_Call] = field(default_factory=list)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Watched]:
        paths = {id(module): path for path, module in self.model.named_modules()}
        classes = {type(module) for _, module in self.model.named_modules()}
        owners = {c for kind in classes for c in kind.__mro__ if "__call__" in vars(c)}
        device: Any = next((p.device for p in self.model.parameters().values()), None)
        before: dict[Any, Any] = {owner: vars(owner)["__call__"] for owner in owners}
        looks = True

        def seen(call: Any) -> Any:
            def watched(module: Any, *args: Any, **named: Any) -> Any:
                inner = bool(self._calls) and self._calls[-1].module is module  # a subclass that asks its base
                if not looks or inner or id(module) not in paths:
                    return call(module, *args, **named)
                self._enter(module, paths[id(module)], [*args, *named.values()])
                try:
                    result = call(module, *args, **named)
                    self._leave(result)
                finally:
                    self._calls.pop()
                return result

            return watched

        def bind(prim: Any, args: Any, attrs: Any) -> Any:
            out = type(device).bind(device, prim, args, attrs)
            if looks:
                self._op(prim.name, device, out)
            return out

        for owner, call in before.items():
            owner.__call__ = seen(call)
        if device is not None:
            vars(device)["bind"] = bind
        try:
            yield self
        finally:
            looks = False  # for who keeps one of the two
            for owner, call in before.items():
                owner.__call__ = call
            if device is not None:
                del vars(device)["bind"]

    def _enter(self, module: Any, path: str, args: list[Any]) -> None:
        given = list(_values(args))
        if self.first is None and not all(finite(value, masks=True) for value in given):
            if self._calls:
                above = self._calls[-1]
                self.first = Place(above.path, above.kind, above.op, above.inputs, before=path)
            else:
                self.first = Place(path, type(module).__name__, None, _span(given), before="any of its parts")
        self._calls.append(_Call(path, type(module).__name__, module, _span(given)))

    def _leave(self, result: Any) -> None:
        call = self._calls[-1]
        self.order.append(call.path)
        given = list(_values(result))
        if self.first is None:
            if all(finite(value) for value in given):
                self.inputs = _span(given)
            else:
                self.first = Place(call.path, call.kind, call.op, call.inputs)

    def _op(self, name: str, device: Any, out: Any) -> None:
        if self.first is not None:
            return
        for handle in out if type(out) is tuple else (out,):
            if is_float(handle.dtype) and not finite(np.asarray(device.to_host(handle))):
                if self._calls:
                    self._calls[-1].op = self._calls[-1].op or name
                else:
                    self.op = self.op or name
                return


def _values(given: Any) -> Iterator[np.ndarray]:
    """The floating-point tensors in what a module is given or gives."""
    if isinstance(given, Tensor):
        if is_float(given.dtype):
            yield given.numpy()
    elif isinstance(given, list | tuple):
        for part in given:
            yield from _values(part)
    elif isinstance(given, dict):
        yield from _values(list(given.values()))


def finite(value: Any, masks: bool = False) -> bool:
    """Whether all of it is. masks: minus infinity is fine too; it says what attention must not see."""
    array = np.asarray(value)
    wide = array if array.dtype.itemsize >= 4 else array.astype(np.float32)
    return bool((np.isfinite(wide) | (np.isneginf(wide) if masks else False)).all())


def _span(values: list[np.ndarray]) -> tuple[float, float] | None:
    """Least and largest finite value of them all."""
    parts = [v if v.dtype.itemsize >= 4 else v.astype(np.float32) for v in values]
    parts = [v if finite(v) else v[np.isfinite(v)] for v in parts]
    parts = [v for v in parts if v.size]
    return (float(min(v.min() for v in parts)), float(max(v.max() for v in parts))) if parts else None
