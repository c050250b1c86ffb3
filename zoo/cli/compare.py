"""`zoo compare`: where a port and its reference part, or two devices."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.console import Console, print_json
from zoo.core.errors import ZooError


class Differs(ZooError):
    """What was compared is not the same; the result says where."""


def compare(
    what: str,
    reference: str | None,
    activations: Path | None,
    store: Path | None,
    weights: str | None,
    devices: list[str],
    dtype: str | None,
    tolerance: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prints the comparison. Raises Differs, after it, if they part."""
    from zoo import compare as library

    with Console(quiet=quiet, as_json=as_json) as console:
        if len(devices) == 2:
            if reference is not None or activations is not None:
                raise ZooError("two devices are held against each other", "--reference is a third", "Leave it away.")
            console.say(f"{what}: {devices[0]} against {devices[1]}")
            found = library.compare_devices(what, weights or what, *devices, dtype=_dtype(dtype), tolerance=tolerance)
        else:
            ref = reference or weights
            if ref is None or len(devices) > 2:
                fix = f"zoo compare {what} --reference DIR; or zoo compare {what} --device numpy --device cpu."
                raise ZooError("there is nothing to compare with", "give a reference, or two devices", fix)
            console.say(f"{what}: against its reference, with the weights of {ref}")
            found = library.compare(
                what, ref, activations=activations, store=store, device=devices[0] if devices else None,
                dtype=_dtype(dtype), tolerance=tolerance,
            )  # fmt: skip
        if as_json:
            print_json(found.to_json())
        else:
            print(found, flush=True)
    if not found.agrees:
        where = found.finding.path if found.finding is not None else ""
        raise Differs(f"{what} is not its reference", found.verdict().splitlines()[-1], f"Look at {where or what}.")


def _dtype(name: str | None) -> object:
    from zoo.cli.pull import numpy_dtype

    return numpy_dtype(name)
