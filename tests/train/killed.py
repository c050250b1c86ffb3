"""A run that is killed again and again: `python killed.py DIR KILLS SEED`. -> one line of JSON for each life.

The processes are forked off this one, which has everything imported, and die by SIGKILL: half of them at a random
moment of a life on a slow disk, half in a random operation on the disk. None is told, and none can clean up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from small_run import bits, blobs, jitter, loss, make

import zoo
from zoo.core import ops
from zoo.hub import safetensors
from zoo.nn import BatchNorm, Dropout, Linear, Module
from zoo.train import Learner, Loader, RunDirectory
from zoo.train.directory import BEST
from zoo.train.journal import LOG

STEPS = 160
LIFE = 0.25
"""Seconds, at most, until a process is killed: a few checkpoints."""
SLOW = 0.002
"""Seconds of an operation on the slow disk: a checkpoint has some twenty."""


class Net(Module):
    """Wide enough that its tensors reach the disk one by one, and not in one piece at the end."""

    def __init__(self) -> None:
        self.fc1, self.norm, self.drop, self.fc2 = Linear(6, 512), BatchNorm(512), Dropout(0.2), Linear(512, 3)

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.drop(ops.relu(self.norm(self.fc1(x)))))


def learner(out: Path) -> Learner:
    device = zoo.device()  # the fastest that is here
    return make(
        out, device, model=Net().init(0, device), data=Loader(blobs(123, 1), 16, seed=7, transform=jitter),
        accumulate=3, save_every=1, keep=2, loss=loss,
        export=lambda model, directory: safetensors.write(directory / "best.safetensors", arrays(model)),
    )  # fmt: skip


def arrays(model: Module) -> dict[str, np.ndarray]:
    return {path: np.asarray(tensor) for path, tensor in model.state().items()}


def live(out: Path, told: int, last: int | None) -> None:
    """A process: goes on with the run to its end. last: the operation on the disk in which it dies; None: the disk is
    slow, and somebody else will end it."""
    count = 0

    def operation(name: str) -> None:
        nonlocal count
        count += 1
        if last is None:
            time.sleep(SLOW)
        elif count == last:
            os.write(told, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def before(holder: Any, name: str) -> None:
        real = getattr(holder, name)

        def call(*args: Any, **named: Any) -> Any:
            operation(name)
            return real(*args, **named)

        setattr(holder, name, call)

    for name in ("replace", "unlink"):
        before(Path, name)
    before(os, "fsync")
    write_each = safetensors.write_each

    def slowly(path: Any, infos: Any, parts: Any, metadata: Any = None) -> None:
        def each(name: str) -> Any:
            operation("write")
            return parts(name)

        write_each(path, infos, each, metadata)

    safetensors.write_each = slowly
    run = learner(out)
    if RunDirectory(out).checkpoints():
        run.resume()
    os.write(told, b".")
    run.fit(steps=STEPS)


def fork(out: Path, last: int | None, after: float | None) -> dict[str, Any]:
    """A life; it is killed `after` so many seconds of training, unless it kills itself, or may end."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ear)
        try:
            live(out, mouth, last)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(mouth)
    said = os.read(ear, 1)
    if after is not None and said:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    while part := os.read(ear, 64):
        said += part
    os.close(ear)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [path.stat().st_size for path in out.rglob("*.tmp")]
    newest = RunDirectory(out).checkpoints()
    return {"status": status, "died in": said.decode()[1:], "half-written": left,
            "step": int(newest[0].stem[5:]) if newest else 0}  # fmt: skip


def main(out: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(kills):
        if number % 2:
            life = fork(out, last=draw.randrange(1, 200), after=None)
        else:
            life = fork(out, last=None, after=draw.uniform(0, LIFE))
        print(json.dumps(life), flush=True)
    print(json.dumps(fork(out, last=10**9, after=None)), flush=True)
    whole, resumed = learner(out.with_name("whole")), learner(out).resume()
    whole.fit(steps=STEPS)
    history = [[(e.epoch, e.step, e.loss, e.metrics) for e in run.history] for run in (whole, resumed)]
    logs = [[log_line(line) for line in (run.out / LOG).read_text().splitlines()] for run in (whole, resumed)]
    best = [(run.out / BEST / "best.safetensors").read_bytes() for run in (whole, resumed)]
    same = {"bits": bits(whole) == bits(resumed), "history": history[0] == history[1], "log": logs[0] == logs[1],
            "best": best[0] == best[1]}  # fmt: skip
    print(json.dumps({"steps": resumed.step, "same": same}))


def log_line(line: str) -> dict[str, Any]:
    return {
        name: value
        for name, value in json.loads(line).items()
        if name not in ("seconds", "memory", "examples_per_second")
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
