"""Names of classes, where the weights do not carry them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In the order of CIFAR-10's labels (Krizhevsky 2009)."""


def of(model: Any) -> list[str] | None:
    """The names of a ResNet's classes: its config's, or timm's `label_names` beside the weights; None without."""
    config = model.config
    if config.id2label is not None:
        return [config.id2label[str(i)] for i in range(config.num_labels)]
    beside = (model.source.config() or {}).get("label_names") if model.source is not None else None
    return [str(name) for name in beside] if isinstance(beside, list) and len(beside) == config.num_labels else None


def read(file: Path, count: int) -> list[str]:
    """`count` names from a file: one a line, a JSON list, or a JSON object by number (names, or [WordNet id, name]).

    Raises DataError if it cannot be read or holds another number of them.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}", str(error), "Name a text file with one class a line.") from None
    try:
        found = json.loads(text)
    except ValueError:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(found, Mapping):
        found = [found.get(str(i)) for i in range(len(found))]
    if isinstance(found, list):
        found = [entry[-1] if isinstance(entry, list) and entry else entry for entry in found]
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, str) for name in found):
        said = f"it holds {len(found)} names" if isinstance(found, list) else "it holds no list of names"
        raise DataError(
            f"cannot use {file}", f"{said}; the network has {count} classes", "Give one name a line, in their order."
        )
    return found
