"""`zoo info REF`: what a checkpoint is, from its header alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from zoo.cli.console import columns, print_json, size


def info(ref: str, as_json: bool) -> None:
    """Prints model, config, card and tensors of a checkpoint, and whether every tensor has its place in the model."""
    from zoo.hub import refs
    from zoo.hub.formats import read
    from zoo.hub.load import identify, plan_load

    checkpoint = refs.resolve(ref)
    with read(checkpoint.file) as tensors:
        known = identify(checkpoint, tensors)
        plan = plan_load(checkpoint, tensors.infos, known, known.port.model(known.config).spec())
        infos, metadata, nbytes = tensors.infos, tensors.metadata, tensors.nbytes
    way = {step.source: step for step in plan.steps}
    document: dict[str, Any] = {
        "model": known.port.name,
        "weights": checkpoint.shown,
        "file": str(checkpoint.file),
        "bytes": nbytes,
        "layout": metadata.get("zoo.layout", "published"),
        "parameters": sum(entry.size for entry in infos.values()),
        "config": dataclasses.asdict(known.config),
        "card": checkpoint.card(),
        "source": checkpoint.provenance(),
        "tensors": [
            {
                "name": name,
                "shape": list(entry.shape),
                "dtype": entry.dtype.name,
                "becomes": way[name].target if name in way else None,
                "operations": list(way[name].names) if name in way else [],
            }
            for name, entry in infos.items()
        ],
        "dropped": dict(plan.dropped),
    }
    if as_json:
        print_json(document)
    else:
        print(_text(document))


def _text(document: dict[str, Any]) -> str:
    facts = [
        ("model", document["model"]),
        ("file", f"{document['file']} ({size(document['bytes'])}, {document['layout']} layout)"),
        ("parameters", f"{document['parameters']:,}"),
        ("config", ", ".join(f"{name} {value}" for name, value in document["config"].items())),
        *((name, value) for name, value in document["card"].items()),
        *((name, document["source"][name]) for name in ("repo", "revision", "commit", "licence") if document["source"]),
    ]
    tensors: list[tuple[object, ...]] = [("tensor", "shape", "dtype", "becomes")]
    for entry in document["tensors"]:
        becomes = (
            " ".join([entry["becomes"], *entry["operations"]])
            if entry["becomes"]
            else document["dropped"][entry["name"]]
        )
        tensors.append((entry["name"], tuple(entry["shape"]), entry["dtype"], becomes))
    return columns(facts) + "\n\n" + columns(tensors)
