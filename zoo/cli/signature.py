"""A port's plain function becomes a command: its signature gives arguments and options, its docstring their help.

A port's `run(model, images: list[Path] | None = None, *, top: int = 3)` knows nothing of this program. Positional
parameters become arguments, keyword-only ones options; `model` and the names in `given` are filled in by the command.
How a signature and a docstring are read: zoo/options.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from zoo.options import MODEL, REQUIRED, Option, options


@dataclass(frozen=True)
class Described:
    """A port's function, taken apart."""

    help: str
    options: dict[str, Option]
    """What the user can set, by name."""
    wanted: frozenset[str]
    """Those of the given names that the function has a parameter for."""
    takes_model: bool
    needs_model: bool
    """`model` has no default: it must be loaded."""
    groups: dict[str, Any] = field(default_factory=dict)
    """Parameters that stand for several options, and their defaults."""

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """As typer understands them."""
        return [parameter(each) for each in self.options.values()]

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The function's keywords, from a value for each option."""
        made = {name: values[name] for name, each in self.options.items() if each.group is None}
        for group, default in self.groups.items():
            own = {name: values[name] for name, each in self.options.items() if each.group == group}
            made[group] = dataclasses.replace(default, **own)
        return made


def describe(function: Callable[..., Any], given: Collection[str], known_help: Mapping[str, str]) -> Described:
    """Takes a port's function apart. `given` are names the command fills in; `known_help` is help for usual names."""
    parameters = inspect.signature(function).parameters
    summary, found = options(function, {MODEL, *given}, known_help)
    model = parameters.get(MODEL)
    return Described(
        summary,
        {each.name: each for each in found},
        frozenset(name for name in parameters if name in given),
        model is not None,
        model is not None and model.default is REQUIRED,
        {each.group: parameters[each.group].default for each in found if each.group is not None},
    )


def option(name: str, kind: Any, default: Any, *declarations: str, help: str, **settings: Any) -> inspect.Parameter:
    """One option of a command, as a parameter for `command`."""
    declarations = declarations or (_flag(name),)
    info = typer.Option(default, *declarations, help=help, **settings)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def under(heading: str, *parameters: inspect.Parameter) -> list[inspect.Parameter]:
    """Options that `option` made, with their help under this heading."""
    for each in parameters:
        each.default.rich_help_panel = heading
    return list(parameters)


class Grouped(typer.core.TyperCommand):
    """A command whose help shows options under the headings they name (`rich_help_panel`), the others under Options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if each.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(each, "rich_help_panel", None) or usual, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def command(
    name: str, body: Callable[..., None], parameters: list[inspect.Parameter], help: str, **settings: Any
) -> typer.core.TyperCommand:
    """A command that calls `body` with the values of `parameters` as keywords."""

    def call(**values: Any) -> None:
        body(**values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Grouped, help=help, **settings)(call)
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperCommand)
    return made


def parameter(each: Option, panel: str | None = None, *, required: bool = True) -> inspect.Parameter:
    """An option as typer understands it. Without `required`, one that must be given may come from elsewhere."""
    needed = each.default is REQUIRED
    default = (... if required else None) if needed else each.default
    shown = not needed and default is not None and default is not False
    kind = each.kind if required or not needed else each.kind | None
    if not each.positional:
        return option(each.name, kind, default, help=each.help, show_default=shown, rich_help_panel=panel)
    info = typer.Argument(default, help=each.help, show_default=not needed and default is not None)
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # Python's own words end in _: from_
