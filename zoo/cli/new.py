"""`zoo new`: the folder of a port, from a checkpoint's headers."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.console import Console, print_json


def new(name: str, ref: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Writes it and prints where; says what to do next."""
    from zoo import new as scaffold
    from zoo.hub import refs

    with Console(quiet=quiet, as_json=as_json) as console:
        source = scaffold.find(ref)
        checkout = refs.checkout()
        place = out if out is not None else (checkout / "zoo" if checkout else Path())
        made = scaffold.make(name, source, place, ref)
        console.say(f"{name} · from {source.shown} · {len(source.infos)} tensors")
        if as_json:
            print_json({"name": name, "path": str(made), "tensors": len(source.infos)})
        else:
            print(made, flush=True)
        within = (made.parent / "__init__.py").exists()
        console.say(f"  write model.py, then: zoo compare {name if within else made} --reference {ref}")
