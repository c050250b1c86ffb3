"""Makes docs/benchmarks.md: measures the kernels and every model that states cases, peers included, and writes the
figures (docs/benchmarks.json), the charts (of everything, and of models alone) and the page's tables.

    python scripts/benchmarks.py [--seconds 4] [--only-page]      a quarter of an hour on an idle machine of two cores

What docs/benchmarks.json holds is not measured again: a run that was stopped goes on, and cases that were disturbed are
tried anew. Remove the file to begin again. Everything else on the machine should rest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo import port as ports
from zoo.bench import chart, report
from zoo.bench.kernels import CASES
from zoo.cli.main import main as zoo

DOCS = Path(__file__).parents[1] / "docs"
FILE, PAGE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
CHART, MODELS = DOCS / "benchmarks.svg", DOCS / "models.svg"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", default="4", help="for each case")
    parser.add_argument("--only-page", action="store_true", help="write the page from what was measured before")
    given = parser.parse_args()
    for what in [] if given.only_page else ["kernels", *(name for name in ports.names() if ports.get(name).bench)]:
        if code := zoo(["bench", what, "--peers", "--seconds", given.seconds, "--save", str(FILE)]):
            return code
    found = report.read(FILE)
    CHART.write_text(chart.svg(found), encoding="utf-8")
    kernels = {case.name for case in CASES}
    models = {**found, "rows": [row for row in found["rows"] if row["case"] not in kernels]}
    MODELS.write_text(chart.svg(models), encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + report.markdown(found) + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
