"""A candidate's own process: builds it once, then runs it as often as it is told to. `python -m zoo.bench.worker`

It answers requests on stdin, a JSON object per line, on what was its stdout; whatever the candidate prints goes to
stderr. One process serves one package for all cases, since importing torch takes longer than most cases; what an
earlier case built is gone when the next is built.

    {"build": "module:function", "settings": {...}, "package": "torch"}  -> {"seconds", "rms", "variant", "variants",
                                                                             "version", "dropped"}
    {"run": 10}                                                          -> {"seconds", "waited"}
    {"peak": "module:function", "settings", "package", "variant"}        -> {"bytes"}; the first request of its process
On a GPU (settings["device"]) a time ends when the GPU has nothing left to do, every variant has run WARM times before,
so that what is compiled or captured once is, and a compiled one that fails is in "dropped", with the reason.
"seconds" are those of a run; "waited" is the share of the time for which its threads were ready and had no core.
Anything that goes wrong: {"error": text}, with {"missing": module} for a module that is not installed.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from typing import Any

import numpy as np

from zoo.bench.case import ProcessorOnly, Run
from zoo.core.device import device as device_of

WARM = 4  # runs on a GPU: torch.compile's graphs take three
OURS, COMPILED = "zoo-models", "compiled"  # our package; in the names of variants by torch.compile
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
    finish: Callable[[], None] = done
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "build" in request:
                run = None
                gc.collect()
                finish = finisher(request["package"], request["settings"].get("device", "cpu"))
                run, answer = build(request, finish)
            elif "peak" in request:
                answer = peak(request)
            else:
                assert run is not None
                answer = timed(run, request["run"], finish)
        except ModuleNotFoundError as error:
            answer = {"error": str(error), "missing": error.name}
        except ProcessorOnly as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def done() -> None:
    """What the processor returns is complete."""


def finisher(package: str, device: str) -> Callable[[], None]:
    """What waits until a device has done all that this process gave it."""
    if device == "cpu":
        return done
    if package == OURS:
        return device_of(device).sync
    return lambda: sys.modules["torch"].cuda.synchronize(device)  # the peer has imported it by then


def build(request: Mapping[str, Any], finish: Callable[[], None] = done) -> tuple[Run, dict[str, Any]]:
    module, _, name = request["build"].partition(":")
    function, settings = getattr(import_module(module), name), request["settings"]
    on_gpu = settings.get("device", "cpu") != "cpu"
    if on_gpu and "device" not in inspect.signature(function).parameters:
        raise ProcessorOnly("it is measured on the processor alone")
    made = function(**settings)
    variants: Mapping[str, Run] = {"": made} if callable(made) else made
    dropped: dict[str, str] = {}
    if on_gpu:
        variants, dropped = warm(variants, finish)
    size = rms(next(iter(variants.values()))())
    times: dict[str, float] = {}
    for _ in range(3 if len(variants) > 1 else 1):
        for name, run in variants.items():
            if times.get(name, 0.0) > LONG:
                continue
            if len(variants) > 1 and name not in times:
                run()  # the first of a layout may lay weights out
            once = seconds(run, 1, finish)
            more = seconds(run, max(1, min(1000, int(TRIAL / once))), finish) if once < LONG else once
            times[name] = min(times.get(name, math.inf), once, more)
    best = min(times, key=times.__getitem__)
    if len(variants) > 1:
        variants[best]()
    try:
        version = metadata.version(request["package"])
    except metadata.PackageNotFoundError:
        version = ""
    answer = {"seconds": times[best], "rms": size, "variant": best, "variants": list(variants), "version": version}
    return variants[best], answer | ({"dropped": dropped} if dropped else {})


def warm(variants: Mapping[str, Run], finish: Callable[[], None]) -> tuple[dict[str, Run], dict[str, str]]:
    """(variants that ran WARM times, compiled ones that could not -> why)"""
    ready, dropped = dict[str, Run](), dict[str, str]()
    for name, run in variants.items():
        try:
            for _ in range(WARM):
                run()
            finish()
        except Exception as error:
            if COMPILED not in name:
                raise
            dropped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            ready[name] = run
    return ready, dropped


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


def seconds(run: Run, count: int, finish: Callable[[], None] = done) -> float:
    """Per run, of `count` in a row, until the last one is complete."""
    finish()
    start = time.perf_counter()
    for _ in range(count):
        run()
    finish()
    return max(time.perf_counter() - start, 1e-9) / count


def timed(run: Run, count: int, finish: Callable[[], None] = done) -> dict[str, float]:
    before = waiting()
    each = seconds(run, count, finish)
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
        value = value.detach().float().cpu()  # numpy knows no bfloat16 of torch's
    return np.asarray(value, dtype=np.float32)


if __name__ == "__main__":
    main()
