"""`zoo list`: which models there are, what they do, and which checkpoints are here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo import port as ports
from zoo.cli.console import columns, print_json, size
from zoo.core.errors import ZooError


def list_models(as_json: bool) -> None:
    """Prints every port; one that cannot be imported is listed with its error."""
    from zoo.hub import refs

    here = refs.available()
    pulled = list(_pulled(here))
    rows: list[dict[str, Any]] = []
    for name in ports.names():
        try:
            port = ports.get(name)
        except ZooError as error:
            rows.append({"name": name, "task": f"({error.what})", "checkpoints": []})
            continue
        checkpoints = [
            {"name": c, "path": str(here[c]), "bytes": tree_size(here[c])} for c in port.checkpoints if c in here
        ]
        checkpoints += [entry for model, entry in pulled if model == name]
        rows.append(
            {"name": name, "task": port.task, "finetune": port.finetune is not None, "checkpoints": checkpoints}
        )
    if as_json:
        print_json({"models": rows})
        return
    table = [("model", "task", "checkpoints")]
    for row in rows:
        shipped = ", ".join(f"{c['name']} ({_kept(c)})" for c in row["checkpoints"])
        table.append((row["name"], row["task"], shipped))
    print(columns(table))


def _kept(checkpoint: Mapping[str, Any]) -> str:
    """Its size, and the dtype where it is kept in another than it was published in."""
    dtype = checkpoint.get("dtype", "published")
    return size(checkpoint["bytes"]) + ("" if dtype == "published" else f", {dtype}")


def _pulled(here: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, entry) of every checkpoint that came from the Hub; one whose provenance is damaged is not listed."""
    from zoo.hub import refs

    for path in here.values():
        with contextlib.suppress(ZooError):
            source = refs.Checkpoint(path / refs.WEIGHTS_FILE, path).provenance()
            if source:
                yield (
                    str(source.get("port")),
                    {
                        "name": str(source.get("repo")),
                        "path": str(path),
                        "bytes": tree_size(path),
                        "commit": source.get("commit"),
                        "licence": source.get("licence"),
                        "dtype": source.get("dtype"),
                    },
                )


def tree_size(directory: Path) -> int:
    """Bytes of the files in a directory and below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
