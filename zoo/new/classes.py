"""From a tree of modules to classes: modules of one structure are one class, whatever their sizes.

A number that is the same in every module of a class is written into it, as a field of the config where one has its
value; one that differs becomes a parameter. Neighbours in a list that are alike in everything are one comprehension.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.new.sizes import field_for
from zoo.new.tree import COUNTED, Leaf, Node

Part = Node | Leaf
EPSILON = re.compile(r"(layer|rms)_?norm_eps|norm_epsilon")


@dataclass
class Class:
    """One class of the skeleton: the modules it stands for, and the numbers in each, in one order."""

    name: str
    modules: list[Node] = field(default_factory=list)
    numbers: list[list[tuple[str, int]]] = field(default_factory=list)
    """For each module: (role, value), leaves in order."""

    def parameters(self) -> dict[int, str]:
        """Position of each number that differs between the modules -> its parameter; numbers that always agree share
        one."""
        columns: dict[tuple[int, ...], str] = {}
        found: dict[int, str] = {}
        for position, (role, _) in enumerate(self.numbers[0]):
            values = tuple(one[position][1] for one in self.numbers)
            if len(set(values)) > 1:
                if values not in columns:
                    taken = set(columns.values())
                    columns[values] = next(n for n in _numbered(role) if n not in taken)
                found[position] = columns[values]
        return found


def _numbered(name: str) -> Iterator[str]:
    yield name
    for i in range(2, 1000):
        yield f"{name}_{i}"


def runs(node: Node) -> list[tuple[str, Part, int]]:
    """A list as (first key, part, how many that are alike in everything)."""
    found: list[tuple[str, Part, int]] = []
    for key, part in node.parts.items():
        if found and node.is_list and same(found[-1][1], part):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((key, part, 1))
    return found


def same(a: Part, b: Part) -> bool:
    return structure(a) == structure(b) and numbers(a) == numbers(b)


def structure(part: Part) -> Any:
    """What two parts of one class have in common."""
    if isinstance(part, Leaf):
        return (part.kind, tuple(part.sizes), part.options, tuple(part.names.items()), part.turned, len(part.shape))
    if part.is_list:
        return ("list", *(structure(item) for _, item, _ in runs(part)))
    return tuple((key, structure(item)) for key, item in part.parts.items())


def numbers(part: Part) -> list[tuple[str, int]]:
    """(role, value) of every number in it, in order."""
    if isinstance(part, Leaf):
        return list(part.sizes.items()) + [("size", n) for n in part.shape]
    found = []
    for _, item, length in runs(part):
        if part.is_list:
            found.append(("length", length))
        found += numbers(item)
    return found


class Skeleton:
    """The classes of a tree, the inner ones first, and their source."""

    def __init__(self, root: Node, name: str, config: Mapping[str, Any]):
        self.config = config
        self.epsilon = next((name for name in config if EPSILON.search(name)), None)
        self.root = camel(name)
        self.classes: dict[Any, Class] = {}
        self._marks: dict[int, Any] = {}
        self._taken: set[str] = set(KNOWN) | {self.root, f"{self.root}Config"}
        self._visit(root, self.root, "")
        self.used: set[str] = set()
        """Names of zoo.nn that the source uses."""

    def _visit(self, node: Node, key: str, above: str) -> None:
        """Finds the classes of what is in a node, then its own. `key`: its attribute; `above`: the class it is in."""
        name = camel(key)
        for inner, part, _ in runs(node):
            if isinstance(part, Node):
                self._visit(part, singular(key) if inner.isdigit() else inner, above if inner.isdigit() else name)
        if _is_container(node):
            return
        mark = _mark(node, name)
        self._marks[id(node)] = mark
        if mark not in self.classes:
            if above:
                free = (n for n in (name, f"{above}{name}", *_numbered(name)) if camel(n) not in self._taken)
                name = camel(next(free))
            self._taken.add(name)
            self.classes[mark] = Class(name)
        self.classes[mark].modules.append(node)
        self.classes[mark].numbers.append(numbers(node))

    def sources(self) -> list[str]:
        """The source of each class, inner ones first; the last is the model."""
        return [self._source(one) for one in self.classes.values()]

    def _source(self, one: Class) -> str:
        is_root = one.name == self.root
        parameters = one.parameters()
        extra = "".join(f", {name}: int" for name in dict.fromkeys(parameters.values()))
        known = [parameters.get(i, value) for i, (_, value) in enumerate(one.numbers[0])]
        lines = [f"class {one.name}(Module):", f"    def __init__(self, c: {self.root}Config{extra}):"]
        if is_root:
            lines.append("        self.config = c")
        position = 0
        for key, part, _ in runs(one.modules[0]):
            count = len(numbers(part))
            lines += self._assign(key, part, known[position : position + count])
            position += count
        lines += ["", "    def __call__(self, x: Tensor) -> Tensor:"]
        lines.append(f'        raise NotImplementedError("{one.name}: write what it computes")')
        return "\n".join(lines)

    def _assign(self, key: str, part: Part, known: list[Any]) -> list[str]:
        value = self._value(part, known)
        if not key.isidentifier() or keyword.iskeyword(key):
            return _wrapped(f'        setattr(self, "{key}", ', value, ")")
        lines = _wrapped(f"        self.{key} = ", value, "")
        if isinstance(part, Leaf) and part.kind == "BatchNorm" and COUNTED not in part.names:
            lines.append(f"        self.{key}.{COUNTED} = None")
        return lines

    def _value(self, part: Part, known: list[Any]) -> str | list[str]:
        """An expression; a list of items, one a line, for a list or dict that is written out."""
        if isinstance(part, Leaf):
            return self._leaf(part, known)
        if part.is_list:
            items, position = [], 0
            for _, item, length in runs(part):
                count = len(numbers(item))
                made = self._value(item, known[position + 1 : position + 1 + count])
                made = _joined(made)
                told = known[position]
                if told == 1 and length == 1:
                    items.append(made)
                else:
                    items.append(f"*({made} for _ in range({self._name('length', told)}))")
                position += 1 + count
            if len(items) == 1 and items[0].startswith("*("):
                return f"[{items[0][2:-1]}]"
            return ["[", *(f"{item}," for item in items), "]"]
        if _is_container(part):
            items, position = [], 0
            for key, item, _ in runs(part):
                count = len(numbers(item))
                made = self._value(item, known[position : position + count])
                items.append(f'"{key}": {_joined(made)},')
                position += count
            return ["{", *items, "}"]
        one = self.classes[self._marks[id(part)]]
        parameters = one.parameters()
        roles = [role for role, _ in one.numbers[0]]
        given = {name: self._name(roles[i], known[i]) for i, name in parameters.items()}
        return f"{one.name}({', '.join(['c', *given.values()])})"

    def _leaf(self, leaf: Leaf, known: list[Any]) -> str:
        self.used.add(leaf.kind)
        if leaf.kind == "Param":
            shape = ", ".join(self._name("inputs", n) for n in known)
            return f"Param(({shape}{',' if len(known) == 1 else ''}), init.zeros)"
        said = [self._name(role, value) for role, value in zip(leaf.sizes, known, strict=True)]
        if "groups" in leaf.sizes:
            said[-1] = f"groups={said[-1]}"
        if leaf.kind in ("LayerNorm", "RMSNorm") and self.epsilon:
            said.append(f"eps=c.{self.epsilon}")
        return f"{leaf.kind}({', '.join([*said, *leaf.options])})"

    def _name(self, role: str, value: Any) -> str:
        if isinstance(value, str):
            return value  # a parameter
        named = field_for(value, role, self.config)
        return f"c.{named}" if named else str(value)


def _mark(node: Node, name: str) -> Any:
    """What modules of one class share: what they are called where they are used, and their structure."""
    return name, structure(node)


def _is_container(node: Node) -> bool:
    """It has numbers for names: a list or dict, which takes no class of its own."""
    return bool(node.parts) and all(key.isdigit() for key in node.parts)


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _wrapped(before: str, value: str | list[str], after: str) -> list[str]:
    if isinstance(value, str):
        return [f"{before}{value}{after}"]
    first, *items, last = value
    return [before + first, *(f"            {item}" for item in items), f"        {last}{after}"]


KNOWN = ("Module", "Tensor", "Param", "Linear", "Embedding", "Conv1d", "Conv2d", "LayerNorm", "RMSNorm", "BatchNorm")


def camel(name: str) -> str:
    """attention_output -> AttentionOutput."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", name) if part]
    made = "".join(part[:1].upper() + part[1:] for part in parts) or "Part"
    return made if made[0].isalpha() else f"Part{made}"


def singular(name: str) -> str:
    """layers -> layer; h, as in GPT-2, -> block."""
    if len(name) == 1:
        return "block"
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name
