"""A port, as a record, and how ports are found.

Ports are the sub-packages of `zoo` whose `__init__.py` assigns `PORT`, and whatever other installed packages announce
under the entry point group `zoo.ports`:

    [project.entry-points."zoo.ports"]
    my_model = "my_package.my_model:PORT"

Names are found without importing a port; `get` imports the one that is asked for. A third-party port that cannot be
imported is an error only for who asks for it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.core.errors import ZooError

if TYPE_CHECKING:
    from zoo.hub.table import Table

ENTRY_POINTS = "zoo.ports"


@dataclass(frozen=True)
class Port:
    """One model family: everything the command line, the loader and the docs need to know about it."""

    name: str
    task: str
    """One line: what it does for a user."""
    config: type
    """Dataclass with the field names of config.json. A classmethod `from_tensors(tensors)` may build it from names and
    shapes alone: None if the names are another model's, WeightsError if the shapes make no sense; `from_directory(
    directory, tensors)` and `from_metadata(metadata, tensors)` the same with the help of files that lie beside them, or
    of what their own file says beside them. A method `with_tensors(tensors)` gives a config.json's config what only the
    published tensors' names tell."""
    model: Callable[[Any], Any]
    """`model(config)` is an unfilled Module."""
    weights: Table | Callable[[Any], Table]
    """How the published tensors become ours, and back; a function of the config where there are several layouts."""
    run: Callable[..., Any]
    """`run(model, ...)` yields results; its signature becomes the options of `zoo run NAME` (zoo/cli/signature.py)."""
    finetune: Callable[..., Any] | None = None
    """`finetune([model], ...)` yields results; its signature becomes the options of `zoo finetune NAME`."""
    evaluate: Callable[..., Any] | None = None
    """`evaluate(model, ...)` yields results; its signature becomes the options of `zoo eval NAME`."""
    documents: Callable[[Any], dict[str, dict[str, Any]]] | None = None
    """`documents(config)`: the JSON files, by path, of a checkpoint that is published in several folders
    (zoo/hub/components.py); {} where this one is not."""
    model_types: tuple[str, ...] = ()
    """What config.json calls it (`model_type`), beside its own name."""
    example: Callable[[Any], tuple[Any, ...]] | None = None
    """`example(config)`: arrays that the model can be called with, in our layout; for parity and `zoo compare`."""
    memory: Callable[[Any, int], dict[str, int]] | None = None
    """`memory(config, tokens)`: what it takes beside its weights for a text so long, by name, in bytes."""
    checkpoints: tuple[str, ...] = ()
    """Names of the checkpoints that ship with the zoo; the first is the default."""
    bench: str | None = None
    """Module whose `CASES` `zoo bench NAME` measures (zoo/bench/case.py); imported by that command alone."""

    def table(self, config: Any) -> Table:
        """The translation table of checkpoints with this config."""
        return self.weights(config) if callable(self.weights) else self.weights


def package_of(folder: Path) -> tuple[str, Path]:
    """The name that a folder has for Python, with those above it that are packages; and the directory from which it is
    imported by that name."""
    names, above = [folder.resolve().name], folder.resolve().parent
    while (above / "__init__.py").exists():
        names.append(above.name)
        above = above.parent
    return ".".join(reversed(names)), above


@cache
def _own() -> tuple[str, ...]:
    found = []
    for init in sorted(Path(__file__).parent.glob("*/__init__.py")):
        if re.search(r"^PORT\b", init.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(init.parent.name)
    return tuple(found)


def _foreign() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS) if entry.name not in _own()}


def names() -> list[str]:
    """Every port that can be asked for, in alphabetical order; none is imported."""
    return sorted({*_own(), *_foreign()})


def get(name: str) -> Port:
    """The port of this name (`-` and `_` are the same).

    Raises ZooError for an unknown name (with the nearest ones), and for a port that cannot be imported.
    """
    key = name.replace("-", "_")
    if key in _own():
        found = importlib.import_module(f"zoo.{key}").PORT
    else:
        foreign = _foreign()
        entry = foreign.get(key) or foreign.get(name)
        if entry is None:
            raise _unknown(name)
        found = _load_foreign(entry)
    return found


def of(model: Any) -> Port:
    """The port whose model this is. Raises ZooError if it is none's."""
    for name in names():
        with contextlib.suppress(ZooError):  # a third party's port that cannot be imported must not stop the others
            if (found := get(name)).model is type(model):
                return found
    what = f"a {type(model).__name__} is the model of no port"
    raise ZooError(what, f"the models are: {', '.join(names())}", "Say which port it belongs to.")


def _unknown(name: str) -> ZooError:
    known = names()
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=2, cutoff=0.5)
    return ZooError(
        f"there is no model named {name!r}",
        f"the models are: {', '.join(known) or 'none'}",
        f"Did you mean {' or '.join(close)}?" if close else "`zoo list` says what each of them does.",
    )


def _load_foreign(entry: metadata.EntryPoint) -> Port:
    package = entry.dist.name if entry.dist else entry.module
    try:
        found = entry.load()
    except Exception as error:  # whatever a stranger's package does at import, it is that package's error
        raise ZooError(
            f"the model {entry.name!r} of the package {package} cannot be imported",
            f"{type(error).__name__}: {error}",
            f"Update or uninstall {package}; the other models are not affected.",
        ) from error
    if not isinstance(found, Port):
        raise ZooError(
            f"the model {entry.name!r} of the package {package} is not a port",
            f"{entry.value} is a {type(found).__name__}, not a zoo.port.Port",
            f"Update or uninstall {package}; the other models are not affected.",
        )
    return found
