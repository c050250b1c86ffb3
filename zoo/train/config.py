"""config.toml: all that a run was told, kept beside what it made. A run that is told the same gives the same bits.

model = "llama"
weights = "stories260k"
[llama]
context = 256       the port's own options, each below its help
[training]
epochs = 3          those of every port
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import ZooError
from zoo.hub.files import atomic
from zoo.options import Option, convert, find
from zoo.train.watch import Run, Watcher

FILE = "config.toml"
WIDTH = 110


class Writer(Watcher):
    """Puts the text into the run's directory when the run begins, or goes on."""

    def __init__(self, text: str):
        self.text = text

    def opened(self, run: Run) -> None:
        if run.out is not None:
            with atomic(run.out / FILE) as part:
                part.write_text(self.text, encoding="utf-8")


def text(port: str, start: Mapping[str, Any], options: list[Option], values: Mapping[str, Any]) -> str:
    """The file's. start: where the model came from (weights, device, dtype); `values` by option. What is None is not
    set, and stands there as a comment."""
    head = f"Everything this run was told. `zoo finetune {port} --config THIS_FILE --out DIR` repeats it."
    lines = [f"# {head}", "", _line("model", port), *(_line(name, value) for name, value in start.items())]
    for group in dict.fromkeys(each.group for each in options):
        lines += ["", f"[{group or _key(port)}]"]
        for each in options:
            if each.group == group and each.name not in ("resume", "estimate"):
                lines += [f"# {line}" for line in textwrap.wrap(each.help, WIDTH)]
                lines.append(_line(each.name, values[each.name]))
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    import tomlkit

    if value is None:
        return f"# {name} = (not set)"
    plain = [str(part) for part in value] if isinstance(value, list) else value
    return f"{_key(name)} = {tomlkit.item(str(plain) if isinstance(plain, Path) else plain).as_string()}"


def _key(name: str) -> str:
    import tomlkit

    return tomlkit.key(name).as_string()


def read(path: Path, port: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Option -> value of a file; options may stand in tables or not. Raises ZooError if the file cannot be read, is of
    another model, names an option that is not known, or gives it what is no value of it."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ZooError(f"cannot read {path}", why, "Name a TOML file, such as the config.toml of a run.") from error
    except TOMLKitError as error:
        raise ZooError(f"cannot read {path}", f"it is not TOML: {error}", "Correct it.") from error
    model = document.pop("model", port)
    if str(model).replace("-", "_") != port:
        raise ZooError(f"{path} is of {model}", f"this trains {port}", f"zoo finetune {model} --config {path}")
    found: dict[str, Any] = {}
    for name, value in document.items():
        if not isinstance(value, dict):
            found |= _entry(name, value, known, str(path))
            continue
        for key, inner in value.items():
            found |= _entry(key, inner, known, f"{path}, under [{name}]")
    return found


def _entry(name: str, value: Any, known: Mapping[str, Option], where: str) -> dict[str, Any]:
    each = find(name, known, where)
    return {each.name: convert(each, value, where)}


def assigned(text: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """{option: value} of "key=value"; the key may be dotted (training.lr). Raises ZooError as `read`."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ZooError(f"cannot set {text!r}", "it has no =", "Write --set KEY=VALUE.")
    return _entry(name.strip(), value.strip(), known, f"--set {text}")
