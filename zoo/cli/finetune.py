"""`zoo finetune MODEL ...`: train a port on the user's data with the port's own `finetune`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import typer

from zoo.cli.common import (
    PortGroup,
    describe_device,
    device_option,
    interruptible,
    output_options,
    results_of,
    weights_option,
)
from zoo.cli.configured import config_options, settle
from zoo.cli.console import Console, Stopwatch
from zoo.cli.run import default_text, load_model
from zoo.cli.signature import Described, command, describe, option, parameter, under
from zoo.core.errors import ZooError
from zoo.options import GIVEN, Option
from zoo.port import Port

MODEL, TRAINING, OUTPUT = "Model", "Training", "Output"

START = {
    "weights": Option("weights", str | None, None, ""),
    "device": Option("device", str | None, None, ""),
    "dtype": Option("dtype", Literal["f32", "f16", "bf16", "int8", "int4"] | None, None, ""),
}
"""What --config and --set may say of the model that one starts from."""

HELP = {
    "data": "your data: a directory or file",
    "epochs": "passes over the data",
    "batch": "examples per step",
    "lr": "learning rate",
    "seed": "the same seed on the same device gives the same weights",
    "out": "directory for the weights, their config and the log",
    "resume": "go on from where an earlier run into --out stopped",
}


class FinetuneGroup(PortGroup):
    @staticmethod
    def make(port: Port) -> typer.core.TyperCommand:
        if port.finetune is None:
            raise ZooError(f"{port.name} cannot be fine-tuned yet", "", "`zoo list` says which models can.")
        described = describe(port.finetune, GIVEN, HELP)
        panels = [(each, _panel(port, each)) for each in described.options.values()]
        start = f"start from a checkpoint's name, directory or file{default_start(port, described)}"
        parameters = [
            *(parameter(each, panel, required=False) for each, panel in panels if panel not in (TRAINING, OUTPUT)),
            *under(
                MODEL,
                *([weights_option(start)] if described.takes_model else []),
                *([_dtype_option()] if "lora" in described.options else []),
                device_option(),
            ),
            *(parameter(each, panel) for each, panel in panels if panel == TRAINING),
            *(parameter(each, panel) for each, panel in panels if panel == OUTPUT),
            *under(OUTPUT, *output_options()),
            *config_options("Options from elsewhere"),
        ]

        known = {**described.options, **{each.name: START[each.name] for each in parameters if each.name in START}}

        @interruptible
        def body(**values: Any) -> None:
            ctx = values.pop("ctx")
            finetune(port, described, settle(port.name, ctx, values, known))

        parameters.append(inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        return command(port.name, body, parameters, described.help or f"Train {port.name} on your own data.")


def _panel(port: Port, each: Option) -> str:
    """The heading under which an option's help stands."""
    if each.name in ("out", "resume", "keep", "save_every", "log_every"):
        return OUTPUT
    return f"Options of {port.name}" if each.group is None else TRAINING


def _dtype_option() -> inspect.Parameter:
    """Of ports that train an adapter beside weights that stay: those may be stored in any way."""
    kind = START["dtype"].kind
    help = "of the weights one starts from (int8, int4: of what stays beside --lora); without it, as they are stored"
    return option("dtype", kind, None, help=help, show_default=False)


def default_start(port: Port, described: Described) -> str:
    return default_text(port) if described.needs_model else "; without it, from new weights"


def finetune(port: Port, described: Described, values: dict[str, Any]) -> None:
    """Trains a port with the values of its own options and the common ones."""
    from zoo.core.device import device as find_device
    from zoo.train.parallel import ranks

    assert port.finetune is not None
    ranks().silence()
    with ranks().together(), Console(quiet=values["quiet"], as_json=values["as_json"]) as console:
        watch = Stopwatch()
        ref = values.get("weights")
        if ref is None and described.needs_model and port.checkpoints:
            ref = port.checkpoints[0]
        if described.needs_model or ref is not None:
            model, shown, _, device = load_model(port, ref, values["device"], values.get("dtype"))
            models = [model]
        else:
            models, shown, device = [], None, find_device(values["device"])
        console.say(
            " · ".join([port.name, f"from {shown}" if shown else "new weights", describe_device(device, *models)])
        )
        given = {"device": device, "quiet": values["quiet"], "progress": console.progress}
        arguments = described.arguments(values) | {name: given[name] for name in described.wanted}
        if "training" in described.groups:
            start = {"weights": ref, "device": device.name, "dtype": values.get("dtype")}
            arguments["training"] = dataclasses.replace(arguments["training"], start=start)
        for result in results_of(port.finetune(*models, **arguments)):
            console.result(result)
        console.document({"model": port.name, "weights": shown, "device": device.name})
        console.say(f"  {watch}")
        training = arguments.get("training")
        if training is not None and not training.estimate:
            console.say(f"  use it: zoo run {port.name} ... --weights {training.out}")
