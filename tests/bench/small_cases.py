"""Every case in a size that takes no time."""

from __future__ import annotations

from zoo import port as ports
from zoo.bench.case import Case

PORTS = [name for name in ports.names() if ports.get(name).bench]


def small(case: Case) -> dict[str, object]:
    """Its settings with sizes that take no time."""
    less = {"m": 3, "n": 64, "k": 64, "keys": 9, "queries": 9, "heads": 2, "size": 6, "inputs": 3, "outputs": 5,
            "rows": 128, "width": 64, "batch": 2, "cold": False, "model": "tiny", "tokens": 40,
            "pixels": 64}  # fmt: skip
    if case.settings.get("queries") == 1:
        less["queries"] = 1
    if "training" in case.name:
        del less["batch"]  # dropout makes the losses of two examples too different
    return {name: less.get(name, value) for name, value in case.settings.items()}
