"""What was measured, as JSON (DESIGN: {"rows": [{"case", "unit", "ours", "peers", "ratio"}]}), as text, as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.bench.case import ROOFS
from zoo.bench.gpu import GPU_ROOFS
from zoo.bench.runner import OURS, Row
from zoo.core.errors import DataError

Entry = dict[str, Any]


def entry(row: Row) -> Entry:
    """A row of the document. `ours` is None where we have no figure, `ratio` where there is no peer's; it is our rate
    over the best peer's. Marked `clean: false`: no repetition was clean, the figure is the best of all."""
    ours = row.taken.get(OURS)
    peers = {name: taken for name, taken in row.taken.items() if name != OURS}
    best = max(peers.values(), key=lambda taken: taken.rate, default=None)
    return {
        "case": row.case.name,
        "group": row.case.kind,
        "unit": row.case.unit,
        "ours": None if ours is None else ours.rate,
        "peers": {name: taken.rate for name, taken in peers.items()},
        "ratio": None if ours is None or best is None else ours.rate / best.rate,
        "ratio_spread": None if ours is None or best is None else math.hypot(ours.spread, best.spread),
        "milliseconds": {name: 1000 * row.case.work / taken.rate for name, taken in row.taken.items()},
        "memory_mb": {name: size / 1e6 for name, size in row.memory.items()},
        "roof": row.case.roof,
        "ceiling": row.roof if row.case.roof else None,
        "of_roof": row.share,
        "spread": {name: taken.spread for name, taken in row.taken.items()},
        "repetitions": {name: taken.repetitions for name, taken in row.taken.items()},
        "kept": {name: taken.kept for name, taken in row.taken.items()},
        "clean": all(taken.clean for taken in row.taken.values()),
        "variants": {name: taken.variant for name, taken in row.taken.items() if taken.variant},
        "versions": {name: taken.version for name, taken in row.taken.items()},
        "failed": row.failed,
        "missing": row.missing,
    }


def document(machine: Mapping[str, Any], ceilings: Mapping[str, float], rows: Iterable[Entry]) -> dict[str, Any]:
    return {"machine": dict(machine), "ceilings": dict(ceilings), "rows": list(rows)}


def read(file: Path) -> dict[str, Any]:
    """A document that was saved.  Raises DataError if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        names = [row["case"] for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot use {file}",
            f"it is not what `zoo bench --save` writes ({type(error).__name__})",
            "Name another file.",
        ) from error
    assert all(isinstance(name, str) for name in names)
    return found


def missing(entries: Iterable[Entry]) -> dict[str, str]:
    """Peers that no case could use because a module is not installed -> that module."""
    return {name: module for row in entries for name, module in row["missing"].items()}


# text


def heading(peers: list[str], memory: bool = False, floor: bool = False) -> list[str]:
    columns = ["case", "unit", "ours", "of roof", *peers, *(["ratio"] if peers else [])]
    return columns + ["memory"] * memory + ["floor"] * floor


def cells(row: Entry, peers: list[str], memory: bool = False, floor: bool = False) -> list[str]:
    """A row as text: `231.0 ±2%`; `~` marks figures without a clean repetition, `-` what there is not. Memory is ours,
    and as a share of what the least of the peers takes."""
    ours = figure(row, OURS, row["ours"])
    roof = f"{row['of_roof']:.2f}" if row["of_roof"] is not None else "-"
    theirs = [figure(row, name, row["peers"].get(name)) for name in peers]
    ratio = (
        [f"{row['ratio']:.2f} ±{100 * row['ratio_spread']:.0f}%" if row["ratio"] is not None else "-"] if peers else []
    )
    return [row["case"], row["unit"], ours, roof, *theirs, *ratio, *[_memory(row)] * memory, *[_floor(row)] * floor]


def _memory(row: Entry) -> str:
    sizes = dict(row.get("memory_mb", {}))
    ours = sizes.pop(OURS, None)
    if ours is None:
        return "-"
    return f"{ours:.0f} MB" + (f", {ours / min(sizes.values()):.2f} of theirs" if sizes else "")


def _floor(row: Entry) -> str:
    """`2.2 GFLOP, 2.07 GB: 0.69 ms, 0.81 of ours`: what a run computes and moves at least, how long that takes at the
    ceilings, and as a share of our time."""
    floor = row.get("floor")
    if floor is None:
        return "-"
    counted = [f"{floor[name]:.3g} {unit}" for name, unit in (("gflop", "GFLOP"), ("gb", "GB")) if floor[name]]
    ours = row["milliseconds"].get(OURS)
    share = f", {floor['milliseconds'] / ours:.2f} of ours" if ours else ""
    return f"{', '.join(counted)}: {floor['milliseconds']:.3g} ms{share}"


def figure(row: Entry, name: str, rate: float | None) -> str:
    if rate is None:
        return "-"
    digits = 0 if rate >= 1000 else 1 if rate >= 10 else 2
    return f"{'' if row['kept'][name] else '~'}{rate:.{digits}f} ±{100 * row['spread'][name]:.0f}%"


def peers_of(entries: Iterable[Entry]) -> list[str]:
    """Names of all peers, in the order in which they come."""
    return list(dict.fromkeys(name for row in entries for name in row["peers"]))


def groups_of(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for row in entries:
        groups.setdefault(row["group"], []).append(row)
    return groups


def summary(rows: list[Entry]) -> str:
    """`ours 12.3 ms, best peers 24.6 ms in sum: 2.00; lowest ratio 1.20`; empty where there is nothing to sum up."""
    compared = [row for row in rows if row["ratio"] is not None]
    if len(compared) < 2:
        return ""
    times = [row["milliseconds"] for row in compared]
    ours = sum(t[OURS] for t in times)
    best = sum(min(t for name, t in some.items() if name != OURS) for some in times)
    lowest = min(row["ratio"] for row in compared)
    return f"ours {ours:.4g} ms, best peers {best:.4g} ms in sum: {best / ours:.2f}; lowest ratio {lowest:.2f}"


def markdown(found: Mapping[str, Any]) -> str:
    """The document as a page's tables: machine, ceilings, cases by group."""
    machine = found["machine"]
    versions = dict(v for row in found["rows"] for v in row["versions"].items() if v[1] and v[0] != OURS)
    about = [f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, Python {machine['python']}"]
    about += (
        [f"driver {machine['driver']}, CUDA {machine['cuda']}, CuPy {machine['cupy']}"] if "cupy" in machine else []
    )
    about += [f"{name} {version}" for name, version in versions.items()]
    lines = ["; ".join(about) + ".", "", "| ceiling | |", "|---|---|"]
    roofs = GPU_ROOFS if "cupy" in machine else ROOFS
    lines += [
        f"| {kind} | {found['ceilings'][kind]:.0f} {unit} |"
        for kind, unit in roofs.items()
        if kind in found["ceilings"]
    ]
    for group, rows in groups_of(found["rows"]).items():
        peers, memory = peers_of(rows), any(row.get("memory_mb") for row in rows)
        floor = any(row.get("floor") for row in rows)
        names = heading(peers, memory, floor)
        lines += ["", f"**{group}**" + (f": {said}" if (said := summary(rows)) else "")]
        lines += ["", _line(names), "|" + "---|" * len(names)]
        lines += [_line(cells(row, peers, memory, floor)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(parts: list[str]) -> str:
    return "| " + " | ".join(parts) + " |"
