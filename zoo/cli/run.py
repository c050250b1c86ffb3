"""`zoo run MODEL ...`: load, say what was chosen, show what the port's `run` yields."""

from __future__ import annotations

from collections.abc import Callable
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
    seed_option,
    weights_option,
)
from zoo.cli.console import Console, Stopwatch
from zoo.cli.signature import Described, command, describe
from zoo.core.errors import WeightsError
from zoo.port import Port

GIVEN = ("seed", "device", "quiet", "progress", "say")
"""Values a port's `run` gets if it has a parameter of that name."""


class RunGroup(PortGroup):
    @staticmethod
    def make(port: Port) -> typer.core.TyperCommand:
        described = describe(port.run, GIVEN, {})
        parameters = [
            *described.parameters,
            weights_option(f"a checkpoint's name, directory or file{default_text(port)}"),
            device_option(),
            dtype_option(),
            seed_option(),
            *output_options(),
        ]

        @interruptible
        def body(**values: Any) -> None:
            perform(port, port.run, described, values)

        return command(port.name, body, parameters, described.help or port.task)


def perform(port: Port, function: Callable[..., Any], described: Described, values: dict[str, Any]) -> None:
    """Loads the model and shows what a port's function yields for it, with the values of its own options and the
    common ones."""
    with Console(quiet=values["quiet"], as_json=values["as_json"]) as console:
        watch = Stopwatch()
        model, shown, summary, device = load_model(port, values["weights"], values["device"], values["dtype"])
        console.say(
            " · ".join([port.name, f"{shown} ({summary})" if summary else shown, describe_device(device, model)])
        )
        given = {"seed": values.get("seed"), "device": device, "quiet": values["quiet"],
                 "progress": console.progress, "say": console.say}  # fmt: skip
        arguments = described.arguments(values) | {name: given[name] for name in described.wanted}
        for result in results_of(function(model.prepare(), **arguments)):
            console.result(result)
        console.document({"model": port.name, "weights": shown, "device": device.name})
        console.say(f"  {watch}")


def load_model(port: Port, ref: str | None, device_name: str | None, dtype: str | None) -> tuple[Any, str, str, Any]:
    """(model, its weights as shown, one line about them, device). Without a REF: the port's first checkpoint."""
    from zoo.core.device import device as find_device
    from zoo.hub import load, refs

    device = find_device(device_name)
    if ref is None and not port.checkpoints:
        raise WeightsError(
            f"{port.name} needs weights",
            "no checkpoint ships with it",
            "Name a checkpoint: --weights DIRECTORY, FILE, or OWNER/NAME after `zoo pull OWNER/NAME`.",
        )
    ref = port.checkpoints[0] if ref is None else ref
    checkpoint = refs.resolve(ref)
    model = load(ref, port=port, device=device, dtype=dtype)
    return model, checkpoint.shown, str(checkpoint.card().get("summary", "")), device


def default_text(port: Port) -> str:
    return f"; without it, {port.checkpoints[0]}, which ships with the zoo" if port.checkpoints else ""
