"""The reference's side: runs a torch module once and writes what every one of its modules got and gave.

    python -m zoo.compare.reference PORT DIRECTORY OUT.npz

PORT is a port's module ("zoo.llama"), or the path of its folder; its reference.py has `load(directory)` and
`call(module, *arrays)`, the port's `example` gives the arrays. It runs in a process of its own: nothing in the zoo
imports torch.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zoo.compare.find import config_of, find_port
from zoo.compare.trace import Call, Trace, first_tensor


def record(module: Any, run: Any, about: str) -> Trace:
    """The calls of a torch module while `run()` runs it."""
    import torch

    calls: list[Call] = []
    clock, starts = [0], dict[int, list[int]]()

    def before(part: Any, args: Any) -> None:
        clock[0] += 1
        starts.setdefault(id(part), []).append(clock[0])

    def after(path: str) -> Any:
        def hook(part: Any, args: Any, options: Any, result: Any) -> None:
            clock[0] += 1
            given = [_host(v) for v in (*args, *options.values()) if isinstance(v, torch.Tensor)]
            output = first_tensor(result, torch.Tensor)
            host = None if output is None else _host(output)
            calls.append(Call(path, type(part).__name__, given, {}, host, starts[id(part)].pop(), clock[0]))

        return hook

    handles = []
    for path, part in module.named_modules():
        handles += [
            part.register_forward_pre_hook(before),
            part.register_forward_hook(after(path), with_kwargs=True),
        ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(calls, about)


def _host(tensor: Any) -> np.ndarray:
    array = tensor.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy().copy()


def main(port: str, directory: str, out: str) -> None:
    import torch

    found = find_port(port)
    reference = importlib.import_module(f"{found.package}.reference")
    config = config_of(found.port, directory)
    assert found.port.example is not None
    arrays = found.port.example(config)
    module = reference.load(Path(directory))
    trace = record(module, lambda: reference.call(module, *arrays), f"torch {torch.__version__}")
    trace.save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
