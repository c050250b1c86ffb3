"""Options from four places: flags go before --set, --set before --config, and that before what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.cli.signature import option
from zoo.options import REQUIRED, Option


def config_options(heading: str) -> list[Any]:
    """--config and --set."""
    file = "options from a TOML file, such as the config.toml that every run leaves in --out"
    assign = "any option by its name, again and again: it goes before --config, and flags before it"
    return [
        option("config", Path | None, None, help=file, metavar="FILE", show_default=False, rich_help_panel=heading),
        option("set_", list[str], [], help=assign, metavar="KEY=VALUE", show_default=False, rich_help_panel=heading),
    ]


def settle(port: str, ctx: Any, values: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """The values of a command line with the place of each option decided. A run that is resumed is told what it was
    told when it began, by the config.toml in its directory. Raises ZooError for what files and --set may not say, and
    ends in a usage error if something that is needed is missing."""
    from zoo.train import config

    flags = {name: values[name] for name in known if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    assigned: dict[str, Any] = {}
    for text in values["set_"]:
        assigned |= config.assigned(text, known)
    file = values["config"]
    if file is None and {**assigned, **flags}.get("resume"):
        begun = Path({**values, **assigned, **flags}["out"]) / config.FILE
        file = begun if begun.is_file() else None
    read = {} if file is None else config.read(file, port, known)
    settled = {**values, **read, **assigned, **flags}
    for name, each in known.items():
        if each.default is REQUIRED and settled[name] is None:
            ctx.fail(f"Missing option '--{name.replace('_', '-')}'.")
    return settled
