"""Where a port and its reference part: both run once on one input, module by module.

    comparison = compare("llama", "models/tiny")    # the reference in torch, in a process of its own
    print(comparison)                               # a tree of errors, the first difference, its likely cause

`activations` holds what the reference gave (an .npz that `store` wrote): then no torch is needed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zoo.compare.align import module_names
from zoo.compare.comparison import Comparison, compare_traces
from zoo.compare.find import config_of, find_port, home_of
from zoo.compare.trace import Trace, record
from zoo.core.errors import ZooError
from zoo.hub import refs
from zoo.hub.formats import read
from zoo.hub.load import identify, load
from zoo.port import Port

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2, "int8": 0.2, "int4": 0.5}
"""Relative to the largest value of a module's output: float32's sums in another order, or how coarse weights are."""

__all__ = ["Comparison", "Trace", "compare", "compare_devices", "compare_traces", "record", "reference_trace"]


def compare(
    port: Port | str,
    reference: str,
    *,
    activations: Path | None = None,
    store: Path | None = None,
    device: Any = None,
    dtype: Any = None,
    tolerance: float | None = None,
) -> Comparison:
    """A port against its reference, both with the weights of `reference` (a directory, file or pulled repository) and
    on the port's example.

    port: its record, name, or the path of its folder. activations: the reference's, stored; without them the port's
    reference.py runs. store: where to keep them. dtype: of our weights; the reference's are float32.
    Raises ZooError if the port says no example, or its reference does not run.
    """
    found, package = (port, home_of(port)) if isinstance(port, Port) else _both(port)
    theirs = Trace.load(activations) if activations else reference_trace(found, package, reference)
    if store is not None:
        theirs.save(store)
    model = load(_place(reference), port=found, device=device, dtype=dtype or "float32")
    ours = record(model, _example(found, model.config), f"{found.name} on {model.device.name}")
    paths = [call.path for call in theirs.calls]
    names = module_names(_plan(found, reference, model), [path for path, _ in model.named_modules()], paths)
    limit = TOLERANCES.get(str(dtype or "float32"), 1e-4) if tolerance is None else tolerance
    return compare_traces(model, ours, theirs, names, limit)


def compare_devices(
    port: Port | str, ref: str, first: Any, second: Any, *, dtype: Any = None, tolerance: float | None = None
) -> Comparison:
    """A port on `first` against itself on `second`, which counts as the reference."""
    found = port if isinstance(port, Port) else _both(port)[0]
    traces = []
    for device in (first, second):
        model = load(_place(ref), port=found, device=device, dtype=dtype)
        traces.append((model, record(model, _example(found, model.config), f"{found.name} on {device}")))
    (model, ours), (_, theirs) = traces
    names = {path: path for path, _ in model.named_modules()}
    return compare_traces(model, ours, theirs, names, 1e-4 if tolerance is None else tolerance)


def reference_trace(port: Port, package: str, ref: str) -> Trace:
    """Runs the port's reference.py in a process of its own. Raises ZooError with the end of what it said."""
    config = config_of(port, ref)
    _example(port, config)
    checkpoint = refs.resolve(_place(ref))
    where = checkpoint.directory or checkpoint.file
    module = sys.modules.get(package)
    folder = str(Path(module.__file__).parent) if module is not None and module.__file__ else package
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "reference.npz"
        command = [sys.executable, "-m", "zoo.compare.reference", folder, str(where), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not out.exists():
            last = "\n".join(done.stderr.strip().splitlines()[-3:]) or "it said nothing"
            fix = "pip install torch transformers; or give stored activations: --activations FILE."
            if "No module named 'torch'" not in last and "No module named 'transformers'" not in last:
                fix = f"Mend load and call in {package}.reference."
            raise ZooError(f"the reference of {port.name} did not run", last, fix)
        return Trace.load(out)


def _both(name: str) -> tuple[Port, str]:
    found = find_port(name)
    return found.port, found.package


def _place(ref: str) -> Any:
    return Path(ref) if Path(ref).exists() else ref


def _example(port: Port, config: Any) -> tuple[Any, ...]:
    if port.example is None:
        fix = "Give its Port an example: a function of the config that returns a tuple of arrays."
        raise ZooError(f"{port.name} cannot be compared", "its record has no example input", fix)
    return port.example(config)


def _plan(port: Port, ref: str, model: Any) -> Any:
    checkpoint = refs.resolve(_place(ref))
    with read(checkpoint.file) as tensors:
        known = identify(checkpoint, tensors, port)
        return known.table.load(tensors.infos, model.spec(), known.config)
