"""A port by its name, or by the path of a folder that is not installed yet; and the config of a checkpoint of it."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import port as ports
from zoo.core.errors import ZooError
from zoo.hub import refs
from zoo.hub.formats import read
from zoo.hub.load import identify
from zoo.port import Port


@dataclass(frozen=True)
class Found:
    port: Port
    package: str
    """Its module, under which its reference.py is."""


def find_port(name: str) -> Found:
    """Raises ZooError if there is no such port, or its folder cannot be imported."""
    path = Path(name)
    if not (path / "__init__.py").is_file():
        port = ports.get(name.removeprefix("zoo."))
        return Found(port, home_of(port))
    package, above = ports.package_of(path)
    if str(above) not in sys.path:
        sys.path.insert(0, str(above))
    try:
        port = importlib.import_module(package).PORT
    except Exception as error:  # whatever is wrong in a file that is being written
        why = f"{type(error).__name__}: {error}"
        raise ZooError(f"the port in {name} cannot be imported", why, "Mend it.") from error
    return Found(port, package)


def home_of(port: Port) -> str:
    """The package that a port lies in: that of its config."""
    return port.config.__module__.rpartition(".")[0]


def config_of(port: Port, ref: str) -> Any:
    """The port's config of a checkpoint. Raises WeightsError if it is not one of it."""
    checkpoint = refs.resolve(Path(ref) if Path(ref).exists() else ref)
    with read(checkpoint.file) as tensors:
        return identify(checkpoint, tensors, port).config
