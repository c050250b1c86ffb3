"""`zoo eval MODEL ...`: how often a port is right on labelled data, by the port's own `evaluate`."""

from __future__ import annotations

from typing import Any

import typer

from zoo.cli.common import (
    PortGroup,
    device_option,
    dtype_option,
    interruptible,
    output_options,
    weights_option,
)
from zoo.cli.run import default_text, perform
from zoo.cli.signature import command, describe
from zoo.core.errors import ZooError
from zoo.port import Port

GIVEN = ("device", "quiet", "progress", "say")
"""Values a port's `evaluate` gets if it has a parameter of that name."""

HELP = {"data": "labelled data: a directory", "batch": "examples at a time"}


class EvalGroup(PortGroup):
    @staticmethod
    def make(port: Port) -> typer.core.TyperCommand:
        evaluate = port.evaluate
        if evaluate is None:
            raise ZooError(f"{port.name} cannot be evaluated yet", "", "`zoo list` says what each model does.")
        described = describe(evaluate, GIVEN, HELP)
        parameters = [
            *described.parameters,
            weights_option(f"a checkpoint's name, directory or file{default_text(port)}"),
            device_option(),
            dtype_option(),
            *output_options(),
        ]

        @interruptible
        def body(**values: Any) -> None:
            perform(port, evaluate, described, values)

        return command(port.name, body, parameters, described.help or f"Measure {port.name} on labelled data.")
