"""`zoo report RUN ...`: the report of a training run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

from zoo.train import report as reports


def report(runs: list[Path], out: Path | None) -> None:
    """Writes the report and prints where it is: into the run's directory, unless `out` says another place."""
    file = out or runs[0] / ("comparison.html" if len(runs) > 1 else reports.REPORT)
    reports.write(runs, file)
    print(file)
