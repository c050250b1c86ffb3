"""The report of a run, or of several side by side: one HTML file that needs nothing else, from what a run leaves."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.files import atomic
from zoo.train import tensorboard
from zoo.train.best import best
from zoo.train.figure import Figure, Series, figure, series
from zoo.train.journal import Journal, Records, read
from zoo.train.plot import trailing
from zoo.train.progress import REPORT, clock, short, size
from zoo.train.tensorboard import TensorBoard
from zoo.train.watch import Epoch, Run, Watcher

CONFIG = "config.toml"


def left_behind(out: Path, every: int) -> list[Watcher]:
    """Those that write what a run leaves in its directory."""
    events = [TensorBoard(out, every)] if tensorboard.installed() else []
    return [Journal(out, every), *events, Report(out)]


class Report(Watcher):
    """Writes the report into the directory of the run when that ends, however it ends."""

    def __init__(self, out: Path):
        self.out, self._opened = out, False

    def opened(self, run: Run) -> None:
        self._opened = True

    def closed(self, reason: str) -> None:
        if self._opened:
            with contextlib.suppress(WeightsError):  # a full disk that ended the run is told by who met it first
                write([self.out], self.out / REPORT)


def write(runs: Sequence[Path], file: Path) -> None:
    """Writes the report of these directories of runs. Raises DataError if one holds no run, WeightsError if the file
    cannot be written."""
    text = page(runs)
    with atomic(file) as part:
        part.write_text(text, encoding="utf-8")


def page(runs: Sequence[Path]) -> str:
    """The report as HTML."""
    import jinja2

    found = [read(path) for path in runs]
    names = [path.resolve().name or str(path) for path in runs]
    names = names if len(set(names)) == len(names) else [str(path) for path in runs]
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return (
        jinja2.Environment(autoescape=True, trim_blocks=True)
        .from_string(template)
        .render(
            title=" and ".join(names),
            runs=[_head(name, records) for name, records in zip(names, found, strict=True)],
            figures=figures(names, found),
            tables=_tables(runs, found),
            written=time.strftime("%Y-%m-%d %H:%M"),
        )
    )


def figures(names: Sequence[str], runs: Sequence[Records]) -> list[Figure]:
    """Loss, each validation metric, learning rate, gradient norm, speed, memory: those of which something is known."""
    several = len(runs) > 1
    drawn: dict[tuple[str, str], list[Series | None]] = {}
    biggest = max((step.get("memory") or 0 for run in runs for step in run.steps), default=0)
    unit, scale = ("GB", 1e9) if biggest >= 1e9 else ("MB", 1e6)
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        steps, rows = [r["step"] for r in run.steps], run.steps
        at, mark = [r["step"] for r in run.epochs], f"{name} " if several else ""
        losses = drawn.setdefault(("Loss", ""), [])
        raw = series(f"{mark}logged", steps, [r.get("loss") for r in rows], number, "faint")
        if raw is None:
            losses.append(series(f"{mark}epochs", at, [r["loss"] for r in run.epochs], number, "points"))
        else:
            smooth = series(f"{mark}training", raw.x.tolist(), trailing(raw.y).tolist(), number)
            losses += [smooth] if several else [raw, smooth]
        for metric in dict.fromkeys(name for r in run.epochs for name in r["metrics"]):
            values = [r["metrics"].get(metric) for r in run.epochs]
            if metric == "loss":
                losses.append(series(f"{mark}validation", at, values, number if several else 1, "points"))
            else:
                title = metric.replace("_", " ").capitalize()
                drawn.setdefault((title, ""), []).append(
                    series(name if several else "validation", at, values, number if several else 1, "points")
                )
        speed = next((k for k in reversed(rows[-1]) if k.endswith("_per_second")), "") if rows else ""
        for title, of, key, by in (
            ("Learning rate", "", "lr", 1.0),
            ("Gradient norm", "", "grad_norm", 1.0),
            ("Speed", f"{speed.removesuffix('_per_second')}/s", speed, 1.0),
            ("Memory", unit, "memory", scale),
        ):
            values = [None if r.get(key) is None else r[key] / by for r in rows]
            raw = series("logged", steps, values, number, "faint")
            if raw is not None:
                noisy = title in ("Gradient norm", "Speed")
                y = trailing(raw.y) if noisy else raw.y
                line = series(name if several else title.lower(), raw.x.tolist(), y.tolist(), number)
                drawn.setdefault((title, of), []).extend([raw, line] if noisy and not several else [line])
    last = ("Learning rate", "Gradient norm", "Speed", "Memory")
    order = sorted(drawn, key=lambda one: last.index(one[0]) + 1 if one[0] in last else 0)
    present = {key: [s for s in drawn[key] if s is not None] for key in order}
    return [figure(title, of, lines) for (title, of), lines in present.items() if lines]


def _head(name: str, run: Records) -> SimpleNamespace:
    """What stands above the plots of one run."""
    facts, every = run.facts, [*run.steps, *run.epochs]
    last = max((r["step"] for r in every), default=0)
    seconds = max((r["seconds"] for r in every), default=0.0)
    tiles = [("steps" + (f" of {facts['total']:,}" if last < facts.get("total", 0) else ""), f"{last:,}")]
    tiles.append(("hours, minutes, seconds" if seconds >= 3600 else "minutes, seconds", clock(seconds)))
    history = [Epoch(**{k: r[k] for k in ("epoch", "step", "loss", "seconds", "metrics")}) for r in run.epochs]
    if (found := best(history)) is not None:
        tiles += [(f"validation {k}, best epoch ({found.epoch})", f"{v:.4g}") for k, v in found.metrics.items()]
    if run.steps:
        tiles.append(("loss of the last logged step", f"{run.steps[-1]['loss']:.4g}"))
    peak = max((r.get("memory") or 0 for r in run.steps), default=0)
    tiles += [("most memory at a logged step", size(peak))] if peak else []
    parts = [str(facts[key]) for key in ("name", "device") if key in facts]
    if "parameters" in facts:
        share = "" if facts["trainable"] == facts["parameters"] else f"{short(facts['trainable'])} of "
        parts.insert(1, f"{share}{short(facts['parameters'])} parameters trained")
    state, mood, why = _state(facts)
    return SimpleNamespace(name=name, subtitle=" · ".join(parts), state=state, mood=mood, why=why, tiles=tiles)


def _state(facts: dict[str, Any]) -> tuple[str, str, str]:
    """-> in a word, good or bad or neither, and what there is to say of it."""
    ended = facts.get("ended")
    if not facts:
        return "unknown", "", ""
    if ended is None:
        if facts.get("host") == platform.node() and _alive(facts.get("pid", 0)):
            return "running", "good", ""
        return "ended without a word", "bad", "It was killed, or the machine went down, or runs it elsewhere still."
    if ended in ("finished", "stopped"):
        return ended, "good" if ended == "finished" else "", ""
    return "failed", "bad", ended


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere to ask is to kill
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _tables(paths: Sequence[Path], runs: Sequence[Records]) -> list[tuple[str, list[tuple[str, list[str], bool]]]]:
    configs = [_config(path, run) for path, run in zip(paths, runs, strict=True)]
    where = [
        {
            "directory": str(path),
            **{k: run.facts[k] for k in ("started", "ended_at", "host", "machine", "device") if k in run.facts},
            "versions": ", ".join(f"{k} {v}" for k, v in run.facts.get("versions", {}).items()),
            "command": " ".join(run.facts.get("command", [])),
        }
        for path, run in zip(paths, runs, strict=True)
    ]
    return [(title, _rows(each)) for title, each in (("Settings", configs), ("Where it ran", where)) if any(each)]


def _rows(columns: list[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, ["" if c.get(name) is None else str(c[name]) for c in columns]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows if any(values)]


def _config(path: Path, run: Records) -> dict[str, Any]:
    """The run's config.toml, or what it was opened with."""
    import tomlkit

    try:
        found = tomlkit.parse((path / CONFIG).read_text(encoding="utf-8")).unwrap()
    except (OSError, ValueError):
        found = run.facts.get("settings", {})
    return dict(_flat(found, ""))


def _flat(value: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    return [
        pair
        for name, one in value.items()
        for pair in (_flat(one, f"{prefix}{name}.") if isinstance(one, dict) else [(prefix + name, one)])
    ]
