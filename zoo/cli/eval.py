"""`zoo eval MODEL ...`: how often a port is right on labelled data, by the port's own `evaluate`."""

from __future__ import annotations

from typing import Any

import typer

from zoo.cli.common import (
    PortGroup,
    describe_device,
    device_option,
    dtype_option,
    interruptible,
    output_options,
    results_of,
    weights_option,
)
from zoo.cli.console import Console, Stopwatch
from zoo.cli.run import default_text, load_model
from zoo.cli.signature import Described, command, describe
from zoo.core.errors import ZooError
from zoo.port import Port

GIVEN = ("device", "quiet", "progress")
"""Values a port's `evaluate` gets if it has a parameter of that name."""

HELP = {"data": "labelled data: a directory", "batch": "examples at a time"}


class EvalGroup(PortGroup):
    @staticmethod
    def make(port: Port) -> typer.core.TyperCommand:
        if port.evaluate is None:
            raise ZooError(f"{port.name} cannot be evaluated yet", "", "`zoo list` says what each model does.")
        described = describe(port.evaluate, GIVEN, HELP)
        parameters = [
            *described.parameters,
            weights_option(f"a checkpoint's name, directory or file{default_text(port)}"),
            device_option(),
            dtype_option(),
            *output_options(),
        ]

        @interruptible
        def body(**values: Any) -> None:
            evaluate(port, described, values)

        return command(port.name, body, parameters, described.help or f"Measure {port.name} on labelled data.")


def evaluate(port: Port, described: Described, values: dict[str, Any]) -> None:
    """Measures a port with the values of its own options and the common ones."""
    assert port.evaluate is not None
    with Console(quiet=values["quiet"], as_json=values["as_json"]) as console:
        watch = Stopwatch()
        model, shown, summary, device = load_model(port, values["weights"], values["device"], values["dtype"])
        console.say(
            " · ".join([port.name, f"{shown} ({summary})" if summary else shown, describe_device(device, model)])
        )
        given = {"device": device, "quiet": values["quiet"], "progress": console.progress}
        arguments = {name: values[name] for name in described.names} | {name: given[name] for name in described.wanted}
        for result in results_of(port.evaluate(model.prepare(), **arguments)):
            console.result(result)
        console.document({"model": port.name, "weights": shown, "device": device.name})
        console.say(f"  {watch}")
