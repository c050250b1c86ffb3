"""Learner: the loop around a model, with what every run needs: progress, a log, validation, checkpoints, exact resume.

The step itself is `Learner._step`; everything it is made of can be used without the Learner, see zoo.train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from zoo.core.autodiff import Autodiff
from zoo.core.errors import ZooError
from zoo.core.stats import memory
from zoo.core.tensor import Tensor
from zoo.data.loader import Loader, stream
from zoo.nn import Module
from zoo.nn.module import is_trainable
from zoo.nn.quantized import KINDS
from zoo.train.average import Average
from zoo.train.batch import on_device, size
from zoo.train.best import best, given_up
from zoo.train.captured import CapturedLoss, copied, in_place
from zoo.train.diagnosis import REPORT, Finding, diagnose, write_finding
from zoo.train.directory import BEST, RunDirectory, SaveEvery
from zoo.train.gradients import clip_global_norm, finite, gradients
from zoo.train.optim import Optimizer
from zoo.train.parallel import RowGenerator, Share, Stop, ranks
from zoo.train.precision import Precision
from zoo.train.progress import screen
from zoo.train.report import left_behind
from zoo.train.schedule import Schedule
from zoo.train.state import changing, put_back, settings, statistics, taken
from zoo.train.stopping import StopRequest
from zoo.train.watch import Epoch, Run, Step, Watcher, Watchers

CHECK = 100  # steps after which ranks compare their weights: a sum of 1 GB takes about a second

M = TypeVar("M", bound=Module)
Loss = Callable[[Any, Any], Tensor]
Metrics = Callable[[Any, Any], dict[str, Tensor]]


class Learner:
    """Trains a model, which has its weights and is on a plain device.

    loss(model, batch) -> scalar, in training mode and on the Autodiff device. metrics(model, batch) -> name: tensor
    with one value per example, in evaluation mode; their means over `validation` are reported after every epoch
    (without metrics: the loss). `schedule` gives the learning rate of each step. clip: the largest global norm of the
    gradients. ema: decay of a moving average of the weights, which is then what is validated and what the model holds
    in the end.

    capture: the loss depends on the batch's arrays, the weights and what dropout draws alone, and on no number or
    branch of Python that changes: then, where device and optimizer can, a step is recorded and replayed, to the same
    bits (zoo/train/captured.py).

    accumulate: batches per step, for the memory of one: their gradients are added, weighted by `counts`, how many
    entries the mean in `loss` is over in a batch (None: its rows). So a step has the gradient of one large batch also
    where batches hold different numbers of entries; a mean of means would not. The last step of an epoch may have
    fewer.

    precision: f32, or what a step works with, bf16 or f16: the weights are float32 then (zoo/train/precision.py).

    out: a directory for the checkpoints (after every epoch, when stopped, and every `save_every` steps (500) or minutes
    ("10min"; None: not); the newest `keep` stay), and what the run tells, every `log_every` steps and every epoch
    (zoo/train/journal.py). All randomness follows from `seed` and the seed of `data`: the same run on the same device
    gives the same bits, also when it is stopped anywhere and resumed.

    export(model, directory) writes the model as it is kept when training is done; after every epoch that validates best
    so far (zoo/train/best.py), it is given `out`/best.

    patience: training ends after so many epochs none of which validates better than the best before; then, and also
    when it gets to its end, the model holds the weights of the best epoch. 0: the last ones.

    settings: what else must be the same when the run is resumed, by name (what the schedule was made from, ...).

    watchers are told of the run (zoo/train/watch.py), after the screen (unless `quiet`) and the log. unit: what
    `counts` counts ("tokens"), for the speed that is shown.
    """

    def __init__(
        self,
        model: Module,
        data: Loader,
        *,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule,
        validation: Loader | None = None,
        metrics: Metrics | None = None,
        clip: float | None = None,
        ema: float | None = None,
        capture: bool = False,
        accumulate: int = 1,
        patience: int = 0,
        precision: str = "f32",
        counts: Callable[[Any], float] | None = None,
        out: str | Path | None = None,
        keep: int = 2,
        save_every: str | int | None = "10min",
        export: Callable[[Any, Path], Any] | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        unit: str = "examples",
        log_every: int = 10,
        quiet: bool = False,
        watchers: Sequence[Watcher] = (),
    ):
        self.model, self.data, self.validation = model, data, validation
        self.loss, self.metrics = loss, metrics
        self.optimizer, self.schedule, self.clip = optimizer, schedule, clip
        self.accumulate, self.counts = accumulate, counts or size
        self.precision = Precision(precision)
        self.average = None if ema is None else Average(ema)
        self.out = None if out is None else Path(out)
        self.directory = None if out is None else RunDirectory(out, keep)
        self._save_every, self.export = SaveEvery(save_every), export
        self.seed, self.log_every, self.unit = seed, log_every, unit
        self.settings = dict(settings or {})
        self.rng = RowGenerator(stream(seed, "training").seed)
        self.patience, self.best = patience, dict[str, Tensor]()
        """The best epoch's values of what training changes, where there is patience."""
        self.step, self.seconds = 0, 0.0
        self.history: list[Epoch] = []
        if any(isinstance(m, KINDS) and not m.frozen for _, m in model.named_modules()):
            why = "a step of training is far smaller than one of 8 or 4 bits"
            fix = "Train the full weights; or an adapter beside them: --lora 8."
            raise ZooError("rounded weights are not trained", why, fix)
        self.device = model.device
        self._in_place = in_place(self.device, optimizer)
        self._live = self._own(self.precision.masters(model)).to(Autodiff(self.device)).train(self.rng)
        self.ranks = ranks()
        self.ranks.share_cores(self.device)
        for loader in [data] if validation is None else [data, validation]:
            loader.part = (self.ranks.rank, self.ranks.size)
        files = [] if self.out is None else left_behind(self.out, log_every)
        self.watch = Watchers([*files, *([] if quiet else [screen()]), *watchers] if self.ranks.first else [])
        self._resumed, self._saved = False, (-1, -1)
        self._losses = [0.0, 0]  # sum and count of this epoch
        self._at: list[np.ndarray] = []  # the rows of each batch of the step at hand
        self._statistics = [(slot.holder, slot.key) for slot in self._live.slots().values() if slot.buffer]
        self._captured: CapturedLoss | None = None
        if capture and self._in_place and accumulate == 1 and not self._statistics:
            self._captured = CapturedLoss(self._live, loss, self.device, self.rng)

    @property
    def mean_loss(self) -> float:
        """Of the epoch's steps so far; of the epoch before at the start of one."""
        total, steps = self._losses
        return total / steps if steps else self.history[-1].loss if self.history else math.nan

    # the run

    def fit(self, epochs: int | None = None, *, steps: int | None = None) -> Module:
        """Trains until so many epochs, or steps, are done in all, those before a resume included. -> the model, in
        evaluation mode.

        Raises ZooError if the loss is not finite (the last checkpoint stays), if `out` holds another run, or another
        process trains into it; WeightsError if it cannot be written to. At Ctrl-C, SIGTERM and SIGHUP the step at hand
        is finished and saved; then KeyboardInterrupt, or SystemExit(143 or 129). See zoo/train/stopping.py.
        """
        if (epochs is None) == (steps is None):
            raise ValueError("fit needs epochs or steps")
        total = steps if steps is not None else (epochs or 0) * -(-len(self.data) // self.accumulate)
        with self.ranks.together():
            self._run_to(total)
        self._refresh()
        self.model.update(self.best)
        return self.model.eval()

    def _run_to(self, total: int) -> None:
        start, reason = time.perf_counter() - self.seconds, "finished"
        owned = self.directory if self.ranks.first else None
        with nullcontext() if owned is None else owned.held(self._resumed):
            self._save_every.saved(self.step)
            self.ranks.agree("what they train", {**settings(self), **self.data.state(), "steps": total})
            self.ranks.check(self.step, self._live.state())
            try:
                self.watch.opened(self._run(total))
                with StopRequest() as request:
                    stop = Stop(request, self.ranks)
                    self._train(total, start, stop)
                    self.seconds = time.perf_counter() - start
                    if self._saved != (self.step, len(self.history)):
                        self.save()
                    if stop.asked is not None:
                        stop.end(self._stopped())
            except BaseException as error:
                asked = isinstance(error, KeyboardInterrupt | SystemExit)
                reason = "stopped" if asked else str(error).partition("\n")[0] or type(error).__name__
                raise
            finally:
                self.watch.closed(reason)

    def _train(self, total: int, start: float, stop: Stop) -> None:
        while stop.asked is None:
            if len(self.history) < self.data.epoch:
                self.seconds = time.perf_counter() - start
                self._end_epoch(stop)
                continue
            if self.step >= total or given_up(self.history, self.patience):
                return
            last = time.perf_counter()
            for batches in self._groups():
                lr = self.schedule(self.step)
                value, norm, rows, count = self._step(batches, lr)
                self._losses = [self._losses[0] + value, self._losses[1] + 1]
                took, last = time.perf_counter() - last, time.perf_counter()
                epoch, seconds = self.data.epoch + 1, last - start
                self.watch.stepped(Step(self.step, epoch, value, lr, rows, count, norm, seconds, took, memory()))
                if self.step % CHECK == 0:
                    self.ranks.check(self.step, changing(self))
                stop.agree()
                if self.data.position == len(self.data):
                    continue  # the epoch ends: it is validated, then saved
                if self.step >= total or stop.asked is not None:
                    return
                if self.ranks.first_says(self._save_every.due(self.step)):
                    self.seconds = time.perf_counter() - start
                    self.save()

    def _groups(self) -> Iterator[list[Any]]:
        """The batches of each step that is left of the epoch."""
        group: list[Any] = []
        at: list[np.ndarray] = []
        for batch in self.data:
            group.append(batch)
            at.append(self.data.at)
            if len(group) == self.accumulate or self.data.position == len(self.data):
                self._at = at
                yield group
                group, at = [], []

    def _step(self, batches: list[Any], lr: float) -> tuple[float, float | None, int, float]:
        """-> the loss, the norm of the gradients where it was worked out (to clip them, or for the log), and how many
        rows and entries they are of."""
        counts = [float(self.counts(batch)) for batch in batches]
        whole = self.ranks.whole(counts, [size(batch) for batch in batches])
        value, seen, grads = 0.0, 0, dict[str, Tensor]()
        before = [holder[key] for holder, key in self._statistics]
        for i, batch in enumerate(batches):
            if counts[i] == 0:
                continue  # this rank has none of its entries
            self.rng.at(self.step * self.accumulate + i, whole.shares[i])
            weight = counts[i] / whole.count
            with self.precision.on(Autodiff(self.device)):
                loss, pulled = self._learned(batch, weight)
                value, seen = value + float(loss) * weight, seen + whole.shares[i].rows
                if not math.isfinite(value):
                    break
                for path, g in pulled().items():
                    grads[path] = grads[path] + g if path in grads else g
        value = float(self.ranks.gather(value).sum())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", batches, whole.shares, before)
        grads = self.precision.unscaled(self.ranks.sum(grads, self._live.parameters()))
        self._live.update(self.ranks.mean(statistics(self), seen))
        norm = None
        if self.clip is not None or (self.watch.each and (self.step + 1) % self.log_every == 0):
            grads, norm = clip_global_norm(grads, math.inf if self.clip is None else self.clip)
        if self.precision.fits(finite(grads) if norm is None else math.isfinite(norm)):
            self.optimizer.step(self._live, grads, lr, donate=self._in_place)
            if self.average is not None:
                self.average.update(self._live, self.device)
        elif self.precision.exhausted:
            what = "the gradients are not finite" if self.clip is None else f"the norm of the gradients is {norm}"
            raise self._diverged(what, batches, whole.shares, before)
        self.step += 1
        return value, norm, whole.rows, whole.count

    def _learned(self, batch: Any, weight: float) -> tuple[Tensor, Callable[[], dict[str, Tensor]]]:
        """The loss of a batch, and what gives the gradients of so much of it."""
        if self._captured is not None and weight == 1 and not self.precision.scales:
            loss, found = self._captured(batch)
            return loss, lambda: found
        loss = self.loss(self._live, on_device(batch, self.device))
        return loss, lambda: gradients(self.precision.scaled(loss, weight), self._live)

    def _end_epoch(self, stop: Stop) -> None:
        """Validates, reports, saves. A stop during validation leaves the epoch open: a resumed run validates again."""
        metrics = self.validate(stop) if self.validation is not None else {}
        if metrics is None:
            return
        total, steps = self._losses
        done = Epoch(self.data.epoch, self.step, total / steps, round(self.seconds, 3), metrics)
        self.history.append(done)
        self._losses = [0.0, 0]
        self.watch.validated(done)
        if best(self.history) is done:
            if self.patience:
                state = self.model.state()
                self.best = {path: state[path] for path in changing(self)}
            if self.export is not None and self.out is not None and self.ranks.first:
                self.export(self.model, self.out / BEST)
        self.save()
        if given_up(self.history, self.patience):
            kept = best(self.history)
            self.watch.say(f"no better epoch than {kept.epoch} in {self.patience}: training ends with its weights")

    def validate(self, stop: Stop | None = None) -> dict[str, float] | None:
        """Means of the metrics over the validation data, with the averaged weights where there are some. None if `stop`
        was asked for on the way."""
        if self.validation is None:
            raise ZooError("there is nothing to validate on", "the Learner was made without validation data", "")
        self._refresh()
        model = self.model.eval()
        sums: dict[str, float] = {}
        weights = 0.0
        for batch in self.validation.batches():
            if stop is not None and stop.here is not None:
                break
            n = float((size if self.metrics else self.counts)(batch))
            if n == 0:
                continue  # this rank has nothing of it
            placed = on_device(batch, self.device)
            found = self.metrics(model, placed) if self.metrics else {"loss": self.loss(model, placed)}
            for name, value in found.items():
                values = np.asarray(value, dtype=np.float64)
                sums[name] = sums.get(name, 0.0) + float(values.sum() if values.ndim else values * n)
            weights += n
        if stop is not None:
            stop.agree()
            if stop.asked is not None:
                return None
        return self.ranks.means(sums, weights)

    def _refresh(self) -> None:
        """Puts the weights of the run into the model: references, but for those that the next step writes to."""
        if self.average is not None and self.average.values:
            self.model.update(self.average.values)
        else:
            self.model.update(self._own(self._live.to(self.device)).state())

    def _own(self, model: M) -> M:
        """The model with what is trained in memory that nobody else has, where steps write to it."""

        def own(module: Module, name: str, value: Any) -> Any:
            return copied(value) if name[0] != "_" and is_trainable(module, name, value) else value

        return model.rebuilt(own) if self._in_place else model

    # stopping and going on

    def save(self) -> None:
        """Adds a checkpoint, if there is a directory for it. Raises WeightsError if it cannot be written; those that
        are there stay."""
        self.ranks.check(self.step, changing(self))
        if self.directory is None:
            return
        if self.ranks.first:
            state = taken(self)
            self.directory.save(self.step, state.groups, state.facts)
        self.ranks.wait()  # a process that ended before it is written would have the launcher end all
        self._save_every.saved(self.step)
        self._saved = (self.step, len(self.history))
        self._resumed = True  # what is there now is this run

    def resume(self) -> Learner:
        """Goes to where the newest whole checkpoint in `out` was taken. Raises WeightsError if there is none, or it is
        of another model, and ZooError if the run was begun with other settings."""
        if self.directory is None:
            raise ZooError("there is nothing to resume", "the Learner was made without a directory", "Give it `out`.")
        put_back(self, self.directory.newest(self.watch.say))
        self._refresh()
        self._resumed = True
        return self

    def _run(self, total: int) -> Run:
        sizes = [(slot.value.size, slot.trainable) for slot in self._live.slots().values() if not slot.buffer]
        return Run(
            name=type(self.model).__name__,
            step=self.step,
            total=total,
            steps_per_epoch=-(-len(self.data) // self.accumulate),
            trainable=sum(size for size, trainable in sizes if trainable),
            parameters=sum(size for size, _ in sizes),
            device=", ".join([self.device.name, *getattr(self.device, "details", ())]),
            unit=self.unit,
            settings=settings(self),
            out=self.out,
        )

    def _stopped(self) -> str:
        where = f"; {self.out} holds the run, --resume goes on" if self.out is not None else "; nothing was saved"
        return f"stopped after step {self.step}{where}"

    def _diverged(self, what: str, batches: list[Any], shares: list[Share], before: list[Tensor]) -> ZooError:
        """The step is repeated and looked at; what is found is told, and kept in `out` with the batch. before: running
        statistics, which a step changes besides the weights."""
        self.watch.say(f"step {self.step + 1}: {what}; looking for where it comes from")

        def rewind(number: int) -> None:
            self.rng.at(self.step * self.accumulate + number, shares[number])
            for (holder, key), value in zip(self._statistics, before, strict=True):
                holder[key] = value

        def place(batch: Any) -> Any:
            return on_device(batch, self.device)

        try:
            with self.precision.on(Autodiff(self.device)):
                found = diagnose(self._live, self.loss, batches, self._at, place, rewind, self.data.places)
        except Exception as error:  # what was found out by itself must not be lost to what cannot be repeated
            found = Finding("unknown", f"repeating the step failed: {error}")
        every = self.ranks.objects(found)
        finder = next((rank for rank, one in enumerate(every) if one.cause != "unknown"), 0)
        found = every[finder]
        epoch, batch = self.data.epoch + 1, self.data.position - len(batches) + 1 + found.batch
        at = f"step {self.step + 1}, epoch {epoch}, batch {batch} of {len(self.data)}"
        kept, told = "nothing was saved", ""
        if self.directory is not None:
            if finder == self.ranks.rank:
                facts = {"step": self.step + 1, "epoch": epoch, "what": what, "lr": self.schedule(self.step)}
                write_finding(self.directory.path, found, facts, batches[found.batch])
            kept, told = self.directory.kept(), f" {self.out}/{REPORT} has all that was found."
        why = "; ".join(part for part in (found.where, found.whose, kept) if part)
        return ZooError(f"training diverged: {what} at {at}", why, found.fix + told)
