"""How a tree of modules is printed: one line per module with its tensors and how many values it trains.

Net
  conv1: Conv2d(1 -> 32, kernel 3x3)    weight (32, 3, 3, 1), bias (32,)            320
  layers.0-11: 12 x Layer                                                 12 x 7,087,872
1,199,882 parameters, 4.8 MB, float32 on cpu
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.core.tensor import Tensor
from zoo.nn.param import Param

if TYPE_CHECKING:
    from zoo.nn.module import Module

Row = tuple[str, str, str]  # what, its tensors, its count


def tree(model: Module) -> str:
    slots = list(model.slots().values())
    kinds = sorted({slot.value.dtype.name for slot in slots})
    rows = _rows(model, dtypes=len([k for k in kinds if not k.startswith("int")]) > 1)
    left = max(len(row[0]) for row in rows)
    middle = max(len(row[1]) for row in rows)
    right = max(len(row[2]) for row in rows)
    lines = [f"{a:<{left}}  {b:<{middle}}  {c:>{right}}".rstrip() for a, b, c in rows]
    return "\n".join([*lines, _total(slots, kinds)])


def _total(slots: list[Any], kinds: list[str]) -> str:
    weights = [slot for slot in slots if not slot.buffer]
    count = sum(_size(slot.value.shape) for slot in weights)
    trained = sum(_size(slot.value.shape) for slot in weights if slot.trainable)
    said = [f"{count:,} parameters" + (f" ({trained:,} trained)" if trained != count else "")]
    said.append(_bytes(sum(_size(slot.value.shape) * slot.value.dtype.itemsize for slot in slots)))
    devices = sorted({slot.value.device.name for slot in slots if not isinstance(slot.value, Param)})
    said.append("/".join(kinds) + (" on " + "/".join(devices) if devices else ""))
    if any(isinstance(slot.value, Param) for slot in slots):
        said.append("no weights yet" if not devices else "partly without weights")
    return ", ".join(part for part in said if part)


def _rows(module: Module, dtypes: bool) -> list[Row]:
    """The lines of a module, itself first, without its name."""
    said = module.describe()
    alike: dict[str, list[str]] = {}
    for name, value in vars(module).items():
        if name[0] != "_" and isinstance(value, Tensor):
            alike.setdefault(f"{tuple(value.shape)}{' ' + value.dtype.name if dtypes else ''}", []).append(name)
    shapes = ", ".join(f"{', '.join(names)} {shape}" for shape, names in alike.items())
    notes = " [frozen]" if module.frozen and alike else ""
    count = sum(_size(slot.value.shape) for slot in module.slots().values() if not slot.buffer)
    rows = [(f"{type(module).__name__}{f'({said})' if said else ''}", shapes + notes, f"{count:,}" if count else "")]
    children = [child for name, value in vars(module).items() if name[0] != "_" for child in _children(name, value)]
    blocks = [(name, _rows(child, dtypes)) for name, child in children]
    at = 0
    while at < len(blocks):
        end = at + 1
        while (
            end < len(blocks) and blocks[end][1] == blocks[at][1] and _consecutive(blocks[end - 1][0], blocks[end][0])
        ):
            end += 1
        (name, block), many = blocks[at], end - at
        head, shapes, count_text = block[0]
        if many > 1:
            name, head, count_text = (
                f"{name}-{_last(blocks[end - 1][0])}",
                f"{many} x {head}",
                count_text and f"{many} x {count_text}",
            )
        rows.append((f"  {name}: {head}", shapes, count_text))
        rows += [(f"  {a}", b, c) for a, b, c in block[1:]]
        at = end
    return rows


def _children(name: str, value: Any) -> list[tuple[str, Module]]:
    from zoo.nn.module import Module

    if isinstance(value, Module):
        return [(name, value)]
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    return [child for key, part in items for child in _children(f"{name}.{key}", part)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _consecutive(a: str, b: str) -> bool:
    (list_a, _, i), (list_b, _, j) = a.rpartition("."), b.rpartition(".")
    return list_a == list_b and i.isdecimal() and j.isdecimal() and int(j) == int(i) + 1


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
