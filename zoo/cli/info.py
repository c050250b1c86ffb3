"""`zoo info REF`: what a checkpoint is, from its header alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from zoo.cli.console import columns, print_json, size


def info(ref: str, tokens: int | None, as_json: bool) -> None:
    """Prints model, config, card and tensors of a checkpoint, the memory that it needs (for a text of so many tokens),
    and whether every tensor has its place in the model."""
    from zoo.hub import memory, quantized, refs
    from zoo.hub.formats import read
    from zoo.hub.load import identify, plan_load

    checkpoint = refs.resolve(ref)
    if checkpoint.is_adapter:
        _adapter(checkpoint, as_json)
        return
    with read(checkpoint.file) as tensors:
        known = identify(checkpoint, tensors)
        plain = known.port.model(known.config).spec()
        kept, layers = quantized.stated(tensors.metadata, checkpoint.shown)
        model = quantized.shape(known.port.model(known.config), tensors.metadata, checkpoint.shown)
        plan = plan_load(checkpoint, tensors.infos, known, model.spec())
        infos, metadata, nbytes = tensors.infos, tensors.metadata, tensors.nbytes
    needed = memory.needed(known.port, known.config, tokens)
    if kept is not None:
        needed["weights"] = {kept: needed["weights"][kept]}
    way = {step.source: step for step in plan.steps}
    document: dict[str, Any] = {
        "model": known.port.name,
        "weights": checkpoint.shown,
        "file": str(checkpoint.file),
        "bytes": nbytes,
        "layout": metadata.get("zoo.layout", "published"),
        "parameters": sum(math.prod(p.shape) for p in plain.values()) if kept else sum(i.size for i in infos.values()),
        "quantized": {"format": kept, "layers": layers} if kept else None,
        "memory": needed,
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


def _adapter(checkpoint: Any, as_json: bool) -> None:
    """An adapter's base, its settings and its tensors."""
    from zoo.hub import adapter
    from zoo.hub.files import read_json
    from zoo.hub.formats import read

    config = read_json(checkpoint.directory / adapter.CONFIG_FILE)
    with read(checkpoint.file) as tensors:
        infos, nbytes = tensors.infos, tensors.nbytes
    document: dict[str, Any] = {
        "adapter": config.get("peft_type"),
        "weights": checkpoint.shown,
        "file": str(checkpoint.file),
        "bytes": nbytes,
        "base": adapter.base_of(checkpoint.directory),
        "parameters": sum(info.size for info in infos.values()),
        "config": config,
        "tensors": [{"name": n, "shape": list(i.shape), "dtype": i.dtype.name} for n, i in infos.items()],
    }
    if as_json:
        print_json(document)
        return
    facts = [
        ("adapter", f"{document['adapter']} of {document['base']}"),
        ("file", f"{document['file']} ({size(nbytes)})"),
        ("parameters", f"{document['parameters']:,}"),
        (
            "config",
            ", ".join(f"{name} {config[name]}" for name in ("r", "lora_alpha", "target_modules") if name in config),
        ),
    ]
    rows: list[tuple[object, ...]] = [("tensor", "shape", "dtype")]
    rows += [(name, info.shape, info.dtype.name) for name, info in infos.items()]
    print(columns(facts) + "\n\n" + columns(rows))


def _rounded(kept: dict[str, Any] | None) -> str:
    if kept is None:
        return ""
    counts = Counter(kept["layers"].values())
    return "; rounded: " + ", ".join(f"{count} layers to {name}" for name, count in sorted(counts.items()))


def _memory(needed: dict[str, Any]) -> str:
    from zoo.hub.memory import fitting

    parts = [" or ".join(f"{size(nbytes)} in {dtype}" for dtype, nbytes in needed["weights"].items())]
    parts += [f"{size(nbytes)} for {what}" for what, nbytes in needed["beside"].items()]
    if needed["available"] is None:
        return ", and ".join(parts)
    fits = fitting(needed)
    room = f"room for {', '.join(fits)}" if fits else "not enough for any"
    return f"{', and '.join(parts)}; {size(needed['available'])} are free: {room}"


def _config(title: str, config: dict[str, Any]) -> list[tuple[str, str]]:
    """A line, and another for each component that has a config of its own."""
    parts = {name: value for name, value in config.items() if isinstance(value, dict)}
    own = ", ".join(f"{name} {value}" for name, value in config.items() if name not in parts)
    return [(title, own), *(line for name, part in parts.items() for line in _config(name, part))]


def _text(document: dict[str, Any]) -> str:
    facts = [
        ("model", document["model"]),
        ("file", f"{document['file']} ({size(document['bytes'])}, {document['layout']} layout)"),
        ("parameters", f"{document['parameters']:,}{_rounded(document['quantized'])}"),
        ("memory", _memory(document["memory"])),
        *_config("config", document["config"]),
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
