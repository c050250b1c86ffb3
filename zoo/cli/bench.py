"""`zoo bench`: ceilings of this machine, kernels and models against them and against their peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.bench import chart, report
from zoo.bench.case import ROOFS
from zoo.bench.gpu import GPU_ROOFS, Gpu
from zoo.bench.machine import Machine
from zoo.bench.session import Session, cases_of
from zoo.cli.console import Console, Stopwatch, columns, print_json
from zoo.core.errors import ZooError

WHAT = {"fma": "float32 multiply-add in registers", "int8": "int8 dot products in registers",
        "bf16": "bfloat16 dot products in registers", "read": "reading memory",
        "copy": "copying memory, read + written"}  # fmt: skip
WHAT_GPU = {"fma": "float32 products by cuBLAS", "tf32": "the same, factors rounded to TF32",
            "bf16": "bfloat16 products by cuBLAS", "f16": "float16 products by cuBLAS",
            "copy": "copying memory, read + written"}  # fmt: skip
WIDTHS = {"case": 38, "unit": 8, "of roof": 7, "ratio": 11}


def machine_of(device: str, threads: int | None) -> Machine | Gpu:
    """Raises ZooError for a device that is not measured, DeviceError for one that is not here."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ZooError(
            f"zoo bench does not measure {device!r}", "it measures native kernels", "Devices: cpu, cuda, cuda:N"
        )
    return Machine(threads) if device == "cpu" else Gpu(device, threads)


def roof(device: str, threads: int | None, as_json: bool) -> None:
    """Prints the ceilings of this machine."""
    machine = machine_of(device, threads)
    ceilings = machine.roofs()
    if as_json:
        return print_json({"machine": machine.describe(), "ceilings": ceilings})
    about = machine.describe()
    print(f"{about['processor']} · {about['isa']} · {machine.threads} thread{'s' * (machine.threads != 1)}")
    what, roofs = (WHAT, ROOFS) if device == "cpu" else (WHAT_GPU, GPU_ROOFS)
    rows = [(what[kind], f"{ceilings[kind]:.1f} {unit}" if ceilings[kind] else "-") for kind, unit in roofs.items()]
    print(columns(rows))


def list_cases(what: str, only: str | None, device: str, as_json: bool) -> None:
    cases = cases_of(what, only, device)
    if as_json:
        return print_json({"cases": [{"case": c.name, "unit": c.unit, "peers": list(c.peers)} for c in cases]})
    print(columns((case.name, case.unit, case.roof or "", ", ".join(case.peers)) for case in cases))


def bench(
    what: str, *, device: str, only: str | None, peers: bool, seconds: float, threads: int | None,
    save: Path | None, chart_file: Path | None, as_json: bool, as_markdown: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measures the cases of `what`, and prints each as soon as it is there."""
    cases = cases_of(what, only, device)
    for file in (save, chart_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise ZooError(
                f"cannot write {file}", f"there is no directory {file.parent}", "Make it, or name another file."
            )
    with Console(quiet=quiet, as_json=as_json) as console:
        watch = Stopwatch()
        machine = machine_of(device, threads)
        about = machine.describe()
        session = Session(machine, peers=peers, seconds=seconds, save=save)
        console.say(f"{about['processor']} · {about['isa']} · threads: {machine.threads} · cases: {len(cases)}")
        names = list(dict.fromkeys(name for case in cases for name in case.peers)) if peers else []
        shown = any(case.memory for case in cases) and device == "cpu", device != "cpu"  # columns of memory, of floors
        if not (as_json or as_markdown):
            print(_line(report.heading(names, *shown)), flush=True)
        for row in session.run(cases, lambda done, case: console.progress(done, len(cases), case.name)):
            if not (as_json or as_markdown):
                console.pause()
                print(_line(report.cells(row, names, *shown)), flush=True)
            _tell_failures(console, row)
        document = session.document()
        if chart_file is not None:
            chart_file.write_text(chart.svg(document), encoding="utf-8")
        if as_json:
            print_json(document)
        elif as_markdown:
            print(report.markdown(document), end="")
        else:
            chosen = {case.name for case in cases}
            for group, rows in report.groups_of(row for row in document["rows"] if row["case"] in chosen).items():
                if said := report.summary(rows):
                    console.say(f"  {group}: {said}")
        for name, module in report.missing(document["rows"]).items():
            console.say(f"  {name} was not measured: {module} is not installed; pip install {module}")
        if any(not row["clean"] for row in document["rows"]):
            console.say("  ~ no repetition was clean (something else ran on this machine): the best one")
        console.say(f"  {watch}")


def _tell_failures(console: Console, row: dict[str, Any]) -> None:
    for name, why in row["failed"].items():
        if name not in row["missing"]:
            console.say(f"  {row['case']}: {name}: {why}")


def _line(parts: list[str]) -> str:
    names = ["case", "unit", "ours", "of roof"]
    widths = [WIDTHS.get(names[i] if i < len(names) else "", 13) for i in range(len(parts))]
    return "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
