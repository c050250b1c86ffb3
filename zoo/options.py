"""What a port's function can be told, from its signature and docstring, for the command line and `config.toml`.

Docstring lines `name: text` (continued by indented lines) are the help of that parameter; the rest is the function's.
A keyword parameter whose default is a dataclass stands for a group of options: its fields, with the values of that
default, and the docstring lines of its class.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.core.errors import ZooError

REQUIRED = inspect.Parameter.empty
MODEL = "model"
GIVEN = ("device", "quiet", "progress")
"""Parameters of a `finetune` that are no options: who calls it fills them in."""


@dataclass(frozen=True)
class Option:
    name: str
    kind: Any
    """Its type: int, float, str, bool, Path, a Literal, one of them or None, a list of them."""
    default: Any
    """REQUIRED if it must be given."""
    help: str
    group: str | None = None
    """The parameter of whose value it is a field; None if it is a parameter itself."""
    positional: bool = False


def options(
    function: Callable[..., Any], skip: Collection[str] = (), known_help: Mapping[str, str] | None = None
) -> tuple[str, list[Option]]:
    """(what the function does, its options but those in `skip`). `known_help` is help for usual names."""
    function = inspect.unwrap(function)
    summary, texts = split_docstring(inspect.getdoc(function) or "")
    known = dict(known_help or {})
    found: list[Option] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip:
            continue
        if dataclasses.is_dataclass(parameter.default):
            found += _fields(name, parameter.default, known, texts)
            continue
        kind = parameter.annotation
        if isinstance(kind, str):
            # One by one: the other annotations may name types that the module imports for the type checker only.
            kind = eval(kind, function.__globals__)
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        text = texts.get(name, known.get(name, ""))
        found.append(Option(name, kind, parameter.default, text, positional=positional))
    return summary, found


def _fields(group: str, default: Any, known_help: Mapping[str, str], texts: Mapping[str, str]) -> list[Option]:
    kinds = typing.get_type_hints(type(default))
    help_of = {**known_help, **split_docstring(inspect.getdoc(default) or "")[1], **texts}
    absent = {"without", *getattr(default, "without", ())}
    return [
        Option(field.name, kinds[field.name], getattr(default, field.name), help_of.get(field.name, ""), group)
        for field in dataclasses.fields(default)
        if field.name not in absent and field.metadata.get("option", True)
    ]


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """(text without parameter lines, parameter -> its help)."""
    prose: list[str] = []
    parameters: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        if found := re.match(r"([a-z_][a-z0-9_]*): (.+)", line):
            current = found[1]
            parameters[current] = found[2].strip()
        elif current is not None and line.startswith(" ") and line.strip():
            parameters[current] += " " + line.strip()
        else:
            current = None
            prose.append(line)
    return "\n".join(prose).strip(), parameters


def find(name: str, known: Mapping[str, Option], where: str) -> Option:
    """The option of this name; `group.name` and `some-name` name it too. Raises ZooError with the nearest ones."""
    key = name.rpartition(".")[2].replace("-", "_")
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    fix = f"Did you mean {' or '.join(close)}?" if close else f"The options are: {', '.join(sorted(known))}."
    raise ZooError(f"there is no option {name!r}", where, fix)


def convert(option: Option, value: Any, where: str) -> Any:
    """A value from a file or, as text, from a command line, in the option's type. Raises ZooError if it is none."""
    for kind in _alternatives(option.kind):
        try:
            return _as(kind, value)
        except ValueError:
            continue
    wanted = " or ".join(_told(kind) for kind in _alternatives(option.kind))
    raise ZooError(f"{option.name} cannot be {value!r}", where, f"It is {wanted}.")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """None first: the word none is no path and no text where it may be left out."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(sorted(typing.get_args(kind), key=lambda k: k is not types.NoneType))
    return (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value in this type, which it must fit. Raises ValueError."""
    text = isinstance(value, str)
    if kind is types.NoneType:
        if value is None or value == "none":
            return None
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
    elif typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        if text or isinstance(value, list):
            return [_as(inner, part) for part in (value.split(",") if text else value)]
    elif kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool) or (text and value.lower() in known):
            return known[value.lower()] if text else value
    elif kind is int:
        if text or (isinstance(value, int) and not isinstance(value, bool)):
            return int(value)
    elif kind is float:
        if text or (isinstance(value, int | float) and not isinstance(value, bool)):
            return float(value)
    elif kind in (str, Path) and (text or isinstance(value, Path)):
        return kind(value)
    raise ValueError


def _told(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"a list, of which each is {_told(typing.get_args(kind)[0])}"
    return {types.NoneType: "none", bool: "true or false", int: "a whole number", float: "a number",
            str: "a text", Path: "a path"}.get(kind, str(kind))  # fmt: skip
