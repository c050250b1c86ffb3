"""What `zoo run` and `zoo finetune` share: options that are the same on every model, and a command for each port."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import typer
from typer.core import TyperGroup

from zoo import port as ports
from zoo.cli import settings
from zoo.cli.signature import command, option
from zoo.core.errors import ZooError
from zoo.port import Port

SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8", "uint8": "int4"}
"""What people call the dtypes of weights."""


def weights_option(help: str) -> inspect.Parameter:
    return option("weights", str | None, None, help=help, metavar="REF", show_default=False)


def device_option() -> inspect.Parameter:
    help = "numpy, cpu (native kernels) or cuda; without it, the fastest of numpy and cpu that is installed"
    return option("device", str | None, None, help=help, metavar="NAME", show_default=False)


def dtype_option() -> inspect.Parameter:
    kind = Literal["f32", "f16", "bf16", "int8", "int4"]
    help = "of the weights (int8 and int4: of linear layers and convolutions); without it, as they are stored"
    return option("dtype", kind | None, None, help=help, show_default=False)


def seed_option() -> inspect.Parameter:
    return option("seed", int, 0, help="of all that is random", show_default=True)


def output_options() -> list[inspect.Parameter]:
    """--json, --quiet, --debug."""
    return [
        option("as_json", bool, False, "--json", help="one JSON document on stdout", show_default=False),
        option("quiet", bool, False, "--quiet", "-q", help="the result only: nothing on stderr", show_default=False),
        debug_option(),
    ]


def debug_option() -> inspect.Parameter:
    return option(
        "debug", bool, False, "--debug", help="show the traceback of an error", show_default=False, is_eager=True,
        callback=settings.set_debug, expose_value=False, hidden=True,
    )  # fmt: skip


class Interrupted(Exception):
    """Ctrl-C, on its way to `main`: typer would end the process without the message that a port gives with it."""


def interruptible(body: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(body)
    def call(**values: Any) -> None:
        try:
            body(**values)
        except KeyboardInterrupt as stop:
            raise Interrupted(str(stop)) from stop

    return call


class PortGroup(TyperGroup, ABC):
    """A group with a command for each port, made when it is asked for: `zoo run --help` shows them all, `zoo run X`
    imports X only. A port that cannot be imported is listed as such, and does not disturb the others."""

    @staticmethod
    @abstractmethod
    def make(port: Port) -> typer.core.TyperCommand: ...

    def list_commands(self, ctx: Any) -> list[str]:
        return ports.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name.replace("-", "_") not in ports.names():
            if ctx.resilient_parsing:  # the shell asks what could follow a word that is not complete yet
                return None
            ports.get(cmd_name)
        try:
            return self.make(ports.get(cmd_name))
        except ZooError as error:
            return self._broken(cmd_name, error)

    @staticmethod
    def _broken(name: str, error: ZooError) -> typer.core.TyperCommand:
        def fail() -> None:
            raise error

        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        return command(name, fail, [], "(not available; try it to see why)", context_settings=anything)


def results_of(returned: Any) -> Iterator[Any]:
    """What a port's function gave: a generator, a list, one result, or nothing."""
    if returned is None:
        return
    if hasattr(returned, "to_json"):
        yield returned
    elif isinstance(returned, Iterable):
        yield from returned


def describe_device(device: Any, model: Any = None) -> str:
    """`cpu f32, avx512-vnni, 2 threads`: the device, the dtypes of the model, what the backend says of itself."""
    dtypes = sorted({p.dtype.name for p in model.spec().values() if p.dtype.name in SHORT}) if model is not None else []
    name = f"{device.name} {'+'.join(SHORT[d] for d in dtypes)}".rstrip()
    return ", ".join([name, *getattr(device, "details", ())])
