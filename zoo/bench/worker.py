"""A candidate's own process: builds it once, then runs it as often as it is told to. `python -m zoo.bench.worker`

It answers requests on stdin, a JSON object per line, on what was its stdout; whatever the candidate prints goes to
stderr. One process serves one package for all cases, since importing torch takes longer than most cases; what an
earlier case built is gone when the next is built.

    {"build": "module:function", "settings": {...}, "package": "torch"}  -> {"seconds", "rms", "variant", "variants",
                                                                             "version"}
    {"run": 10}                                                          -> {"seconds", "waited"}
    {"peak": "module:function", "settings", "package", "variant"}        -> {"bytes"}; the first request of its process
"seconds" are those of a run; "waited" is the share of the time for which its threads were ready and had no core.
Anything that goes wrong: {"error": text}, with {"missing": module} for a module that is not installed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Any

import numpy as np

from zoo.bench.case import Run

RUNS = 4  # until memory is what it is in the middle of a long run
UNASKED = {
    "torch": ("torch", "torch._dynamo"),
    "transformers": ("torch", "torch._dynamo", "transformers"),
    "diffusers": (
        "torch", "torch._dynamo", "torch.ao.quantization", "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
    ),
    "openvino": ("torch", "openvino"),
}  # fmt: skip
"""What a package imports by and by, as its optimizers do: no part of what a candidate takes."""
TRIAL, LONG = 0.02, 0.3  # seconds for which a variant is tried, three times in turn; a run that takes LONG, once


def main() -> None:
    if hasattr(os, "setpgrp"):
        # Ctrl-C is the parent's to hear. And a stopped process whose parent dies is ended by the system, if it leads a
        # process group of its own (POSIX: an orphaned group with stopped members gets SIGHUP and SIGCONT).
        os.setpgrp()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "build" in request:
                run = None
                gc.collect()
                run, answer = build(request)
            elif "peak" in request:
                answer = peak(request)
            else:
                assert run is not None
                answer = timed(run, request["run"])
        except ModuleNotFoundError as error:
            answer = {"error": str(error), "missing": error.name}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def build(request: Mapping[str, Any]) -> tuple[Run, dict[str, Any]]:
    module, _, name = request["build"].partition(":")
    made = getattr(import_module(module), name)(**request["settings"])
    variants: Mapping[str, Run] = {"": made} if callable(made) else made
    size = rms(next(iter(variants.values()))())
    times: dict[str, float] = {}
    for _ in range(3 if len(variants) > 1 else 1):
        for name, run in variants.items():
            if times.get(name, 0.0) > LONG:
                continue
            if len(variants) > 1 and name not in times:
                run()  # the first of a layout may lay weights out
            once = seconds(run, 1)
            more = seconds(run, max(1, min(1000, int(TRIAL / once)))) if once < LONG else once
            times[name] = min(times.get(name, math.inf), once, more)
    best = min(times, key=times.__getitem__)
    if len(variants) > 1:
        variants[best]()
    try:
        version = metadata.version(request["package"])
    except metadata.PackageNotFoundError:
        version = ""
    answer = {"seconds": times[best], "rms": size, "variant": best, "variants": list(variants), "version": version}
    return variants[best], answer


def peak(request: Mapping[str, Any]) -> dict[str, int]:
    """The most memory that building a candidate and running it adds to what its libraries take once imported. Only
    memory of the process's own counts: pages of programs and of mapped files belong to the system.

    Raises OSError where the system does not say (it is Linux that does).
    """
    module, _, name = request["peak"].partition(":")
    made = getattr(import_module(module), name)
    for library in UNASKED.get(request["package"], ()):
        import_module(library)
    gc.collect()
    before = memory("RssAnon")
    made = made(**request["settings"])
    run = made if callable(made) else made[request["variant"]]
    for _ in range(RUNS):
        run()
    return {"bytes": memory("VmHWM") - memory("RssFile") - memory("RssShmem") - before}


def memory(kind: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind + ":"))


def seconds(run: Run, count: int) -> float:
    """Per run, of `count` in a row."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return max(time.perf_counter() - start, 1e-9) / count


def timed(run: Run, count: int) -> dict[str, float]:
    before = waiting()
    each = seconds(run, count)
    return {"seconds": each, "waited": (waiting() - before) / (each * count)}


def waiting() -> float:
    """Seconds that the threads of this process have waited for a core so far; 0 where the system does not say."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
    return total / 1e9


def rms(value: Any) -> float:
    """Root mean square of what a run returned: numbers, arrays, tensors of anybody's, or lists of them."""
    parts = value if isinstance(value, list | tuple) else [value]
    arrays = [_array(part) for part in parts]
    count = sum(a.size for a in arrays)
    return math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays) / count) if count else 0.0


def _array(value: Any) -> np.ndarray:
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().float()  # numpy knows no bfloat16 of torch's
    return np.asarray(value, dtype=np.float32)


if __name__ == "__main__":
    main()
