"""Every tensor of a checkpoint as a row of a translation table, layers of a list together under {i}."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.new.tree import Leaf, Node, Read

TURN = {2: "transpose()", 3: "permute(0, 2, 1)", 4: "permute(0, 2, 3, 1)"}
"""Axes of a published tensor -> the operation that puts its inputs last, as ours are."""
LETTERS = "ijkmnpq"


WIDTH = 120


def table_rows(read: Read) -> list[str]:
    """The source of the rows, each once, in the order of the checkpoint."""
    found: dict[tuple[str, ...], None] = {}
    for path, leaf in leaves(read.root):
        found.update(dict.fromkeys(_rows(path, leaf)))
    for name, why in read.derived.items():
        found["drop", f'"{pattern(name.split("."))}"', f'why="{why}"'] = None
    return [_written(*call) for call in found]


def _written(function: str, *arguments: str) -> str:
    """A call as a formatter would have it: in one line, in one within brackets, or a line for each argument."""
    inner = ", ".join(arguments)
    if 4 + len(f"{function}({inner}),") <= WIDTH:
        return f"{function}({inner}),"
    if 8 + len(inner) <= WIDTH:
        return f"{function}(\n        {inner}\n    ),"
    return f"{function}(\n" + "".join(f"        {argument},\n" for argument in arguments) + "    ),"


def operations(read: Read) -> list[str]:
    """The names that the rows use, for the import."""
    text = "".join(table_rows(read))
    return [name for name in ("drop", "permute", "row", "transpose") if f"{name}(" in text]


def leaves(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    for key, part in node.parts.items():
        if isinstance(part, Leaf):
            yield (*path, key), part
        else:
            yield from leaves(part, (*path, key))


def pattern(path: list[str] | tuple[str, ...]) -> str:
    """A name with a letter for each number: layers.{i}.mlp.{j}.weight."""
    letters = iter(LETTERS)
    return ".".join(f"{{{next(letters)}}}" if key.isdigit() else key for key in path)


def _rows(path: tuple[str, ...], leaf: Leaf) -> Iterator[tuple[str, ...]]:
    place = pattern(path)
    for ours, theirs in leaf.names.items():
        target, source = (f'"{place}.{name}"' if name else f'"{place}"' for name in (ours, theirs))
        if theirs in leaf.turned:
            axes = {"Linear": 2, "Conv1d": 3, "Conv2d": 4}[leaf.kind]
            why = "published (inputs, outputs)" if axes == 2 else "published (outputs, inputs, ...); ours channels-last"
            yield "row", target, source, TURN[axes], f'why="{why}"'
        elif leaf.kind == "Param":
            yield "row", target, source, f'why="{leaf.shape}, of no known layer: say what it is"'
        else:
            said = "TensorFlow's names" if leaf.names.get("weight") == "gamma" else leaf.kind
            yield "row", target, source, f'why="{said}"'
