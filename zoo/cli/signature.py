"""A port's plain function becomes a command: its signature gives arguments and options, its docstring their help.

A port's `run(model, images: list[Path] | None = None, *, top: int = 3)` knows nothing of this program. Positional
parameters become arguments, keyword-only ones options; `model` and the names in `given` are filled in by the command.
Docstring lines `name: text` (continued by indented lines) are the help of that parameter; the rest that of the command.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

MODEL = "model"


@dataclass(frozen=True)
class Described:
    """A port's function, taken apart."""

    help: str
    parameters: list[inspect.Parameter]
    """What the user can set, as typer understands it."""
    wanted: frozenset[str]
    """Those of the given names that the function has a parameter for."""
    takes_model: bool
    needs_model: bool
    """`model` has no default: it must be loaded."""
    names: frozenset[str] = field(default=frozenset())


def describe(function: Callable[..., Any], given: Collection[str], known_help: Mapping[str, str]) -> Described:
    """Takes a port's function apart. `given` are names the command fills in; `known_help` is help for usual names."""
    summary, texts = split_docstring(inspect.getdoc(function) or "")
    help_of = {**known_help, **texts}
    parameters = inspect.signature(function).parameters
    own = [p for name, p in parameters.items() if name != MODEL and name not in given]
    model = parameters.get(MODEL)
    return Described(
        summary,
        [_typer_parameter(p, function, help_of.get(p.name, "")) for p in own],
        frozenset(name for name in parameters if name in given),
        model is not None,
        model is not None and model.default is inspect.Parameter.empty,
        frozenset(p.name for p in own),
    )


def option(name: str, kind: Any, default: Any, *declarations: str, help: str, **settings: Any) -> inspect.Parameter:
    """One option of a command, as a parameter for `command`."""
    declarations = declarations or (_flag(name),)
    info = typer.Option(default, *declarations, help=help, **settings)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def command(
    name: str, body: Callable[..., None], parameters: list[inspect.Parameter], help: str, **settings: Any
) -> typer.core.TyperCommand:
    """A command that calls `body` with the values of `parameters` as keywords."""

    def call(**values: Any) -> None:
        body(**values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, help=help, **settings)(call)
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperCommand)
    return made


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


def _typer_parameter(parameter: inspect.Parameter, function: Callable[..., Any], help: str) -> inspect.Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # One by one: the other annotations may name types that the module imports for the type checker only.
        annotation = eval(annotation, function.__globals__)
    required = parameter.default is inspect.Parameter.empty
    default = ... if required else parameter.default
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        shown = not required and default is not None and default is not False
        return option(parameter.name, annotation, default, help=help, show_default=shown)
    info = typer.Argument(default, help=help, show_default=not required and default is not None)
    return inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # Python's own words end in _: from_
