"""How tensors get into a tree of modules: strictly, with one report of everything that does not fit."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import is_float
from zoo.core.errors import DeviceError, OpError, WeightsError
from zoo.core.tensor import Tensor
from zoo.nn.param import Param

if TYPE_CHECKING:
    from zoo.nn.module import Module, Slot

SHOWN = 8  # lines of one kind in a report; a wrong checkpoint has hundreds


def filled(value: Any) -> Tensor:
    """The tensor itself. Raises ZooError if it is a parameter without values."""
    if isinstance(value, Param):
        _ = value.handle
    return value


def slot_for(model: str, slots: Mapping[str, Slot], path: str, shape: tuple[int, ...]) -> Slot:
    """The place at `path` for a tensor of `shape`. Raises WeightsError if there is none, or its shape is another."""
    slot = slots.get(path)
    if slot is None:
        raise WeightsError(f"{model} has no tensor {path!r}", "", f"{_nearest(path, slots)}print(model) lists all.")
    if tuple(slot.value.shape) != tuple(shape):
        raise WeightsError(
            f"{path} of {model} has shape {tuple(slot.value.shape)}, not {tuple(shape)}",
            "",
            "Reshape what you set.",
        )
    return slot


def fitted(
    model: str, slots: Mapping[str, Slot], weights: Mapping[str, Any], device: Any, dtype: Any
) -> dict[str, Tensor]:
    """Path -> tensor for all slots, on the device wanted. Raises WeightsError with a report of all that does not."""
    wanted = None if dtype is None else dtype_of(dtype)
    names = set(weights)
    missing = [path for path in slots if path not in names]
    unexpected = [name for name in weights if name not in slots]
    misfits, tensors = [], {}
    for path, slot in slots.items():
        if path not in names:
            continue
        array, want = weights[path], slot.value
        if not hasattr(array, "dtype"):
            array = np.asarray(array)
        shape, given = tuple(array.shape), array.dtype
        if shape != tuple(want.shape):
            misfits.append(f"{path} is {shape}; {tuple(want.shape)} was expected")
        elif is_float(given) != is_float(want.dtype):
            misfits.append(f"{path} is {given.name}; {want.dtype.name} was expected")
        elif not (missing or unexpected or misfits):  # else only the report is wanted
            place = device_of(device) if device is not None or isinstance(want, Param) else want.device
            tensors[path] = _placed(array, place, want.dtype, want.dtype if slot.exact else wanted)
    if missing or unexpected or misfits:
        raise _report(model, slots, missing, unexpected, misfits)
    return tensors


def _placed(array: Any, device: Any, want: np.dtype, wanted: np.dtype | None) -> Tensor:
    """On `device`: a read-only array (a mapped file) without a copy, a writeable one as a copy: tensors never change.
    Floating point keeps its dtype, or gets `wanted`; integers get that of the slot."""
    if isinstance(array, Tensor):
        tensor = array.to(device)
        target = (wanted or tensor.dtype) if is_float(want) else want
        return tensor if tensor.dtype == target else tensor.astype(target)
    array = np.asarray(array)
    target = (wanted or array.dtype) if is_float(want) else want
    array = array.astype(target, copy=array.flags.writeable)
    inner = device
    while getattr(inner, "inner", None) is not None:
        inner = inner.inner
    return Tensor(inner.from_host(array), inner).to(device)


def _report(
    model: str, slots: Mapping[str, Slot], missing: list[str], unexpected: list[str], misfits: list[str]
) -> WeightsError:
    counts = [(missing, "missing"), (unexpected, "unexpected"), (misfits, "of another shape or kind")]
    what = f"these weights do not fit {model}: " + ", ".join(f"{len(some)} {word}" for some, word in counts if some)
    absent = [f"missing {p} {tuple(slots[p].value.shape)}{_like(p, unexpected)}" for p in missing[:SHOWN]]
    extra = [f"unexpected {p}{_like(p, missing)}" for p in unexpected[:SHOWN]]
    lines = [*absent, *_more(missing), *extra, *_more(unexpected), *misfits[:SHOWN], *_more(misfits)]
    fix = "Use weights of this model in its own names and layout; print(model) lists them."
    return WeightsError(what, "\n".join(lines), fix)


def _more(some: list[str]) -> list[str]:
    return [f"... and {len(some) - SHOWN:,} more"] if len(some) > SHOWN else []


def _like(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others)[:2000], n=1, cutoff=0.8)
    return f" (like {near[0]}?)" if near else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


def pack(model: Module) -> None:
    """Module.prepare: puts each weight that a layer names in `packs` through the device's `pack`, if it has one. What
    is packed already, and what the device does not pack, stays."""
    for _, module in model.named_modules():
        for name, kind in module.packs.items():
            weight = getattr(module, name, None)
            if weight is None:
                continue
            device = filled(weight).device
            if getattr(device, "inner", None) is not None:
                raise DeviceError(
                    f"weights on {device.name} cannot be packed", "they are variables, which training changes",
                    "Move the model off it first: model.to(device).prepare().",
                )  # fmt: skip
            if hasattr(device, "pack") and not hasattr(weight.handle, "unpack"):
                with contextlib.suppress(OpError):  # the device packs other dtypes or shapes than this one
                    packed = device.pack(weight.handle, kind=kind, groups=getattr(module, "groups", 1))
                    setattr(module, name, Tensor(packed, device))
