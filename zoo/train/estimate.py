"""What a training run will take, before it is begun: `zoo finetune ... --estimate`.

    estimate(learner, steps)      # of a Learner without a directory: it takes some steps and is of no use after them

Nothing is modelled that can be measured: the run's own steps are taken, on its own batches, and one or two batches of
validation. The first step is not timed (memory is fetched, kernels choose their tiles); then as many are as fit into
two seconds, at least one. What counts is the median of stretches of steps: a hiccup of the machine spoils one of them,
while bursts (of batches that workers made ahead) are within each.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.core.stats import available_memory, memory, peak_memory
from zoo.nn.quantized import formats
from zoo.train.optim import SGD
from zoo.train.watch import Step, Watcher, Watchers

if TYPE_CHECKING:
    from zoo.train.learner import Learner

TIMED = 2.0  # seconds of steps, and of validation
STRETCHES = 9


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a run. `program`: Python, code and data. `free`: what this process may have, None
    where the system does not say."""

    program: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int | None
    """None: not measured, since the rest alone does not fit."""
    total: int
    free: int | None


@dataclass(frozen=True)
class Estimate:
    """What a run takes: bytes and seconds. `checkpoints`: those kept beside the weights."""

    model: str
    device: str
    parameters: int
    trainable: int
    batch: int
    steps: int
    steps_per_epoch: int
    memory: Memory
    step_seconds: float | None
    """None: not measured."""
    epoch_seconds: float | None
    """With its validation."""
    seconds: float | None
    checkpoint_bytes: int
    disk_bytes: int
    advice: tuple[str, ...] = ()

    alone = True

    @property
    def fits(self) -> bool | None:
        return None if self.memory.free is None else self.memory.total <= self.memory.free

    def to_json(self) -> dict[str, Any]:
        return {"estimate": {**asdict(self), "fits": self.fits, "advice": list(self.advice)}}

    def __str__(self) -> str:
        m = self.memory
        free = f" of {_size(m.free)} that are free: it {'fits' if self.fits else 'does not fit'}" if m.free else ""
        lines = [f"{self.model}: {self.trainable:,} of {self.parameters:,} parameters are trained, on {self.device}"]
        if m.activations is None:
            lines.append(f"memory   more than {_size(m.total)}{free}")
        else:
            lines.append(f"memory   {_size(m.total)}{free}")
        parts = {"weights": m.weights, "gradients": m.gradients, "optimizer": m.optimizer, "average": m.average,
                 f"activations of {self.batch} rows": m.activations, "program and data": m.program}  # fmt: skip
        lines += [f"         {_size(part):>8}  {name}" for name, part in parts.items() if part]
        if self.seconds is not None and self.epoch_seconds is not None:
            epochs = self.steps / self.steps_per_epoch
            lines.append(
                f"time     {_time(self.seconds)}: {epochs:g} epochs of {_time(self.epoch_seconds)}, "
                f"{self.steps_per_epoch:,} steps of {_time(self.step_seconds)} each, and validation"
            )
        lines.append(
            f"disk     {_size(self.disk_bytes)}: checkpoints of {_size(self.checkpoint_bytes)} each, and weights"
        )
        lines += [("to fit   " if i == 0 else "         ") + line for i, line in enumerate(self.advice)]
        return "\n".join(lines)


class Estimated(Exception):
    """Ends a port's training before it begins: `estimate` is its result."""

    def __init__(self, estimate: Estimate):
        super().__init__(str(estimate))
        self.estimate = estimate


def of_estimate(finetune: Callable[..., Any], *models: Any, **options: Any) -> Iterator[Estimate]:
    """The result of a port's training that ends so. The models stay as they were: twins of them are trained."""
    twins = [None if model is None else model.map(lambda tensor: tensor) for model in models]
    try:
        yield from finetune(*twins, **options)
    except Estimated as end:
        yield end.estimate


class _Enough(Exception):
    """Ends the steps."""


class _Clock(Watcher):
    """The steps' times; raises _Enough, on all ranks, after TIMED seconds without the first."""

    def __init__(self, ranks: Any) -> None:
        self.ranks, self.took = ranks, list[float]()

    def stepped(self, step: Step) -> None:
        self.took.append(step.took)
        if self.ranks.first_says(sum(self.took[1:]) >= TIMED):
            raise _Enough

    @property
    def seconds(self) -> float:
        """Of a step."""
        took = self.took[1:] or self.took
        stretches = np.array_split(took, min(len(took), STRETCHES))
        return float(np.median([stretch.mean() for stretch in stretches]))


class _Few:
    """The first batches of a Loader."""

    def __init__(self, loader: Any, count: int):
        self.loader, self.count = loader, count

    def batches(self) -> Iterator[Any]:
        return itertools.islice(self.loader.batches(), self.count)


def estimate(learner: Learner, steps: int, *, keep: int = 2, can: Collection[str] = ()) -> Estimate:
    """Of a run of so many steps in all. `learner` was made without a directory; its model and its data are of no use
    afterwards. keep: checkpoints that stay. can: options that the model has, for the advice.
    """
    held, free = memory() or 0, available_memory()
    slots = learner._live.slots().values()
    parameters = [slot.value.size for slot in slots if not slot.buffer]
    trainable = [slot.value.size for slot in slots if slot.trainable]
    changing = sum(_bytes(s.value) for s in slots if s.trainable or (s.buffer and not s.module.frozen))
    weights, gradients = sum(_bytes(slot.value) for slot in slots), 4 * sum(trainable)  # float32 beside any dtype
    average = 0 if learner.average is None else weights
    moments = gradients * (1 if isinstance(learner.optimizer, SGD) else 2)
    activations, total, step, validation = None, held + gradients + moments + average, None, 0.0
    limit = None if free is None else held + free
    if limit is None or total <= limit:
        before = peak_memory() or 0
        _forget_peak()
        step, validation = _timed(learner, steps)
        fullest = peak_memory() or 0
        moments = sum(map(_bytes, learner.optimizer.state().values()))
        activations = max(0, fullest - held - gradients - moments - average)
        total = max(before, fullest)
    per_epoch = -(-len(learner.data) // learner.accumulate)
    checkpoint = changing + moments + average
    checkpoints = min(keep + 1, max(1, steps // per_epoch))  # one more while it is written
    found = Memory(max(0, held - weights), weights, gradients, moments, average, activations, total, limit)
    return Estimate(
        model=type(learner.model).__name__,
        device=learner.device.name,
        parameters=sum(parameters),
        trainable=sum(trainable),
        batch=learner.data.batch,
        steps=steps,
        steps_per_epoch=per_epoch,
        memory=found,
        step_seconds=step,
        epoch_seconds=None if step is None else step * per_epoch + validation,
        seconds=None if step is None else step * steps + validation * (steps // per_epoch),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * checkpoints + changing * (1 if learner.export is None else 2),
        advice=_advice(learner, found, can),
    )


def _bytes(value: Any) -> int:
    return int(value.size * value.dtype.itemsize)


def _timed(learner: Learner, steps: int) -> tuple[float, float]:
    """Seconds of a step, and of a whole validation."""
    clock, validation = _Clock(learner.ranks), learner.validation
    learner.watch, learner.validation, learner.patience = Watchers([clock]), None, 0
    with contextlib.suppress(_Enough):
        learner.fit(steps=steps)
    learner.data.close()
    if validation is None:
        return clock.seconds, 0.0
    count, few = len(validation), 1
    for _ in range(2):  # the first time, memory is fetched
        learner.validation = _Few(validation, few)  # type: ignore[assignment]
        start = time.perf_counter()
        learner.validate()
        seconds = (time.perf_counter() - start) / few
        few = int(learner.ranks.gather(min(count, max(1, int(TIMED / seconds))))[0])
    validation.close()
    return clock.seconds, seconds * count


def _forget_peak() -> None:
    """So that what was held at once while weights were loaded does not hide what the steps hold: proc(5), clear_refs.
    Where the system does not do it, activations are told too large."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _advice(learner: Learner, m: Memory, can: Collection[str]) -> tuple[str, ...]:
    """What to change, if it does not fit."""
    if m.free is None or m.total <= m.free:
        return ()
    advice, over, batch = [], m.total - m.free, learner.data.batch
    if m.activations and "checkpoint" in can:
        advice.append("--checkpoint keeps what goes into each layer only, for about a third more time")
    if m.activations and batch > 1:
        fewer = max(1, math.floor(batch * (m.activations - over) / m.activations))
        advice.append(f"--batch {fewer} --accumulate {-(-batch // fewer) * learner.accumulate} takes the same steps")
    state = m.gradients + m.optimizer + m.average
    if "lora" in can:
        advice.append(f"--lora 8 trains an adapter, and most of the {_size(state)} for gradients and moments is spared")
    elif not formats(learner.model) and state < m.weights:  # an adapter
        advice.append(f"--dtype int8 rounds the weights that stay: {_size(m.weights)} become about a quarter")
    return tuple(advice or ["Take a smaller model, or a machine with more memory."])


def _size(nbytes: float | None) -> str:
    value = float(nbytes or 0)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _time(seconds: float | None) -> str:
    value = seconds or 0.0
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
