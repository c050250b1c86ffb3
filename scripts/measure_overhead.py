"""What Python costs per op: numpy itself, a backend's `bind`, a Tensor's, each Autodiff layer; what `import zoo` costs.

On arrays of 4 numbers the arithmetic is nothing, so that what is measured is the way to it. Prints the table of
docs/decisions.md:  python scripts/measure_overhead.py [--device numpy|cpu]
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import zoo
from zoo.core import ops
from zoo.core.prims import TABLE
from zoo.core.tensor import Tensor

REPEATS = 51  # batches, of which the median counts


def microseconds(call: Callable[[], object], batch: int = 1000) -> float:
    """Processor time, not time on the clock: a busy machine must not count."""
    for _ in range(batch):
        call()
    times = []
    for _ in range(REPEATS):
        start = time.process_time_ns()
        for _ in range(batch):
            call()
        times.append((time.process_time_ns() - start) / batch)
    return statistics.median(times) / 1000


def ladder(device: Any) -> list[tuple[str, list[float]]]:
    """The same three ops through each further layer."""
    a, b = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    m, n = a.reshape(2, 2), b.reshape(2, 2)
    add, exp, matmul = TABLE["add"], TABLE["exp"], TABLE["matmul"]
    flags = {"transpose_a": False, "transpose_b": False}
    bind = device.bind
    rows: list[tuple[str, list[Callable[[], object]]]] = [
        ("numpy", [lambda: a + b, lambda: np.exp(a), lambda: m @ n]),
        (
            "backend.bind",
            [lambda: bind(add, (a, b), {}), lambda: bind(exp, (a,), {}), lambda: bind(matmul, (m, n), flags)],
        ),
    ]
    x, y, p, q = (Tensor(v, device) for v in (a, b, m, n))
    rows.append(("Tensor", _calls(x, y, p, q)))
    on = device
    for layers in range(1, 4):
        on = zoo.Autodiff(on)
        x, y, p, q = (t.to(on) for t in (x, y, p, q))
        rows.append((f"Autodiff x {layers}", _calls(x, y, p, q)))
    return [(name, [microseconds(c) for c in calls]) for name, calls in rows]


def _calls(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> list[Callable[[], object]]:
    return [lambda: x + y, lambda: ops.exp(x), lambda: p @ q]


def backward(device: Any) -> float:
    """Per op of a chain of 50 additions of two variables: forward and backward together, less forward."""
    x, y = (Tensor(np.ones(4, np.float32), device).to(zoo.Autodiff(device)) for _ in range(2))

    def forward() -> Tensor:
        z = x
        for _ in range(50):
            z = z + y
        return z.sum()

    def both() -> None:
        forward().backward()

    return (microseconds(both, 20) - microseconds(forward, 20)) / 50


def import_seconds(module: str) -> float:
    """Of `import module` in a fresh process, the process itself taken off; the median of nine."""

    def once(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    once(f"import {module}")  # writes the bytecode
    return statistics.median(once(f"import {module}") - once("pass") for _ in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="numpy", help="numpy or cpu")
    device = zoo.device(parser.parse_args().device)
    gc.disable()  # collections would fall into some batches and not into others
    print(f"Python {platform.python_version()}, numpy {np.__version__}, device {device.name}; us per op, 4 numbers\n")
    print("| through | add | exp | matmul 2x2 | added by this layer |")
    print("| --- | --- | --- | --- | --- |")
    above: list[float] | None = None
    for name, times in ladder(device):
        added = "" if above is None else f"{statistics.mean(t - u for t, u in zip(times, above, strict=True)):.2f}"
        print(f"| {name} | " + " | ".join(f"{t:.2f}" for t in times) + f" | {added} |")
        above = times
    print(f"\nbackward: {backward(device):.2f} us per recorded add")
    print(f"import numpy: {import_seconds('numpy'):.3f} s; import zoo: {import_seconds('zoo'):.3f} s")


if __name__ == "__main__":
    main()
