"""What can be said about any training, and what becomes of it: the options that every port's `finetune` has.

    TRAINING = Training(epochs=3, batch=4, lr=1e-4, out=Path("runs/mine"))      the port's defaults

    @recipe("mine")
    def finetune(model, *, data: Path, context: int = 256, training: Training = TRAINING, quiet: bool = False):
        rows = training.loader(...)
        learner = training.learner(model, rows, loss=loss, optimizer=AdamW(), quiet=quiet)
        model = training.fit(learner)

A caller gives them as they are, `finetune(model, data=d, epochs=5, lr=1e-3)`, or whole: `training=Training(...)`; the
command line makes a flag of each.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoo import hub
from zoo.core.errors import ZooError
from zoo.data.bad import Skipped
from zoo.data.loader import Loader
from zoo.hub import adapter
from zoo.nn import Module, lora
from zoo.options import GIVEN, MODEL, options
from zoo.train import config
from zoo.train import schedule as schedules
from zoo.train.estimate import Estimated, estimate, of_estimate
from zoo.train.learner import Learner, Loss, Metrics
from zoo.train.optim import Optimizer
from zoo.train.parallel import launched

Result = TypeVar("Result")
FREE = {"free": True}
"""Of options that may change when a run is resumed: they change no bit of what it gives."""
HIDDEN = {"free": True, "option": False}
"""Of fields that are no options."""
FINAL = 10
"""What cosine and linear divide the highest rate by in the end (Brown et al. 2020)."""
RISE = 0.3
"""Share of the steps in which one_cycle rises (Smith & Topin 2018)."""


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    epochs: passes over the data
    steps: end after so many steps, whatever --epochs says
    batch: examples per step
    lr: highest learning rate
    schedule: of the learning rate after its rise: cosine and linear fall to a tenth, one_cycle to nothing
    warmup: steps in which the rate rises; below 1, a share of all steps. Without it, a tenth, at most 100 (one_cycle:
        three tenths)
    clip: largest norm of all gradients together; larger ones are scaled down to it. 0 does not
    ema: decay of a moving average of the weights, which is then what is kept; 0.999 is usual, 0 does not
    accumulate: batches per step, of which one at a time is in memory
    patience: end after so many epochs without a lower validation loss, and keep the best epoch's weights; 0 does not
    checkpoint: activations of the layers are worked out again for the gradient, which takes less memory and more time
    precision: of a step's products and their results; weights stay in 32 bits. On cpu and numpy, bf16 and f16 take 1.3
        to 5 times as long, and save little memory
    lora: rank of an adapter, which is trained beside weights that stay; 0 trains the weights themselves
    dora: the adapter learns the lengths of the weights' rows too (DoRA), in more time for each step
    workers: processes that read and prepare batches ahead of the training; 0 does it in between. The bits are the same
    skip_bad: leave out rows that cannot be used; they are counted, and listed in --out's skipped.jsonl
    seed: the same seed on the same device gives the same weights
    estimate: only say what the run will take: memory, time and disk, from its first steps, which are then forgotten
    out: directory for the weights, their config and the log
    resume: go on from where an earlier run into --out stopped
    keep: how many checkpoints to go on from are kept, the newest
    save_every: steps (500) or time (90s, 10min, 2h) between checkpoints; there is one after each epoch too
    log_every: steps between two lines of the log
    """

    epochs: int = 3
    steps: int | None = None
    batch: int = 8
    lr: float | None = None
    schedule: Literal["cosine", "linear", "one_cycle", "constant"] = "cosine"
    warmup: float | None = None
    clip: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    patience: int = 0
    checkpoint: bool = field(default=False, metadata=FREE)
    precision: Literal["f32", "bf16", "f16"] = "f32"
    lora: int = 0
    dora: bool = False
    workers: int = field(default=0, metadata=FREE)
    skip_bad: bool = field(default=False, metadata=FREE)
    seed: int = 0
    estimate: bool = field(default=False, metadata=FREE)
    out: Path = field(default=Path("runs/run"), metadata=FREE)
    resume: bool = field(default=False, metadata=FREE)
    keep: int = field(default=2, metadata=FREE)
    save_every: str = field(default="10min", metadata=FREE)
    log_every: int = field(default=10, metadata=FREE)
    without: tuple[str, ...] = field(default=(), metadata=FREE)
    """Options that a port does not have."""
    start: Mapping[str, Any] | None = field(default=None, compare=False, metadata=HIDDEN)
    """Where the model came from, for config.toml: weights, device, dtype. None: what the model says of it."""
    config: str | None = field(default=None, compare=False, metadata=HIDDEN)
    """The text of config.toml; `recipe` makes it."""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "steps": 1, "batch": 1, "lr": 0, "warmup": 0, "clip": 0, "accumulate": 1, "patience": 0,
                 "lora": 0, "workers": 0, "keep": 1, "log_every": 1}  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ZooError(f"{name} cannot be {value}", "", f"It is {bound} at least.")
        if self.dora and not self.lora:
            raise ZooError("dora is a kind of adapter", "there is none", "Give its rank too: --lora 8.")
        if not 0 <= self.ema < 1:
            raise ZooError(f"ema cannot be {self.ema}", "it is the share of an average that stays", "It is below 1.")
        for name in self.without:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ZooError(f"{name} cannot be chosen", "this model trains without it", "Leave it out.")

    def at(self, lr: float) -> Training:
        """With this learning rate, where none was given."""
        return self if self.lr is not None else dataclasses.replace(self, lr=lr)

    def adapt(
        self, model: Module, targets: Collection[str] = (), *, also: Collection[str] = (), alpha: float | None = None
    ) -> bool:
        """Puts the adapter that is asked for around these layers (zoo/nn/lora.py). -> whether there is one.

        Raises ZooError if the model has one already.
        """
        if lora.layers(model):
            fix = "`zoo export ADAPTER DIRECTORY --merge` makes plain weights of both: begin with those."
            raise ZooError("training does not begin with an adapter", "its base would not be where it was", fix)
        if self.lora:
            lora.attach(model, self.lora, alpha=alpha, dora=self.dora, targets=targets, also=also, seed=self.seed)
        return self.lora > 0

    def loader(self, data: Any, kind: type[Loader] = Loader, **settings: Any) -> Loader:
        """The batches of data that are trained on. `settings`: those of the kind of Loader that are the port's own."""
        return kind(data, self.batch, seed=self.seed, workers=self.workers, **settings)

    def skipped(self) -> Skipped | None:
        """For what reads the data: where rows that cannot be used are told, if they are to be left out. Of processes
        that train together, one writes them; an estimate writes none."""
        written = not self.estimate and launched()[0] == 0
        return Skipped(self.out if written else None, self.resume) if self.skip_bad else None

    def total(self, rows: Loader) -> int:
        """Steps of the whole run."""
        return self.epochs * -(-len(rows) // self.accumulate) if self.steps is None else self.steps

    def rates(self, total: int) -> schedules.Schedule:
        """The learning rate of each of so many steps."""
        if self.lr is None:
            raise ValueError("there is no learning rate: Training(lr=...), or training.at(...)")
        if self.schedule == "one_cycle":
            rise = RISE if self.warmup is None else self.warmup if self.warmup < 1 else self.warmup / total
            return schedules.one_cycle(self.lr, total, rise)
        warmup = min(100, total // 10) if self.warmup is None else self.warmup
        steps = int(warmup * total if warmup < 1 else warmup)
        if self.schedule == "constant":
            return schedules.constant(self.lr, steps)
        shape = schedules.cosine if self.schedule == "cosine" else schedules.linear
        return shape(self.lr, total, steps, final=self.lr / FINAL)

    def learner(
        self,
        model: Module,
        rows: Loader,
        *,
        loss: Loss,
        optimizer: Optimizer,
        validation: Loader | None = None,
        metrics: Metrics | None = None,
        counts: Callable[[Any], float] | None = None,
        capture: bool = False,
        unit: str = "examples",
        export: Callable[[Any, Path], Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> Learner:
        """The Learner that trains like this. `settings`: what the port adds to what must be the same on a resume;
        export(model, directory): how it writes a model, for the best one so far.

        Raises Estimated if no more than an estimate is asked for: `recipe` makes it the result.
        """
        writer = [] if self.config is None else [config.Writer(self.config)]
        made = Learner(
            model, rows, loss=loss, optimizer=optimizer, schedule=self.rates(self.total(rows)), validation=validation,
            metrics=metrics, clip=self.clip or None, ema=self.ema or None, capture=capture, accumulate=self.accumulate,
            patience=self.patience, precision=self.precision, counts=counts, unit=unit,
            out=None if self.estimate else self.out, keep=self.keep, save_every=self.save_every, export=export,
            seed=self.seed, settings={**self.settings(), **(settings or {})}, log_every=self.log_every,
            quiet=quiet or self.estimate, watchers=writer,
        )  # fmt: skip
        if self.estimate:
            can = [name for name in ("checkpoint", "lora") if name not in self.without and not getattr(self, name)]
            raise Estimated(estimate(made, self.total(rows), keep=self.keep, can=can))
        return made

    def write(
        self, model: Any, directory: Path, *, port: str, base: str | None, card: Mapping[str, Any] | None = None,
        also: Collection[str] = (), task_type: str | None = None,
    ) -> None:  # fmt: skip
        """The model in a directory that `zoo.load` reads: the adapter around `base`, or all of its weights with what
        the card says of them (zoo/hub/adapter.py: also, task_type)."""
        if self.lora:
            adapter.save(model, directory, base or "", also=also, port=port, task_type=task_type)
        else:
            hub.save(model, directory, port=port, card={**(card or {}), **({"base": base} if base else {})})

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("free")}

    def fit(self, learner: Learner) -> Module:
        """Runs it, from where it stopped if that is asked for. -> the model, in evaluation mode. Of several ranks
        (zoo/train/parallel.py), the first alone comes back from it; the processes of the others end."""
        if self.resume:
            learner.resume()
        try:
            model = learner.fit(self.epochs) if self.steps is None else learner.fit(steps=self.steps)
        finally:
            learner.data.close()
            if learner.data.skipped:
                learner.watch.say(str(learner.data.skipped))
        learner.ranks.leave_the_rest_to_the_first()
        return model


def recipe(port: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Of a port's `finetune`: it takes the fields of its `training` by their names too, and its run writes down what it
    was told (zoo/train/config.py)."""

    def wrap(function: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(function)
        default = signature.parameters["training"].default
        names = {f.name for f in dataclasses.fields(default)} - set(signature.parameters)
        every = options(function, {MODEL, *GIVEN})[1]
        paths = {each.name for each in every if each.kind in (Path, Path | None)}

        @functools.wraps(function)
        def call(*models: Any, training: Training = default, **given: Any) -> Result:
            given |= {name: Path(given[name]) for name in paths & set(given) if isinstance(given[name], str)}
            training = dataclasses.replace(training, **{name: given.pop(name) for name in names & set(given)})
            bound = signature.bind(*models, training=training, **given)
            bound.apply_defaults()
            told = {**bound.arguments, **vars(training)}
            start = _origin(told) if training.start is None else training.start
            text = config.text(port, start, every, told)
            training = dataclasses.replace(training, config=text)
            if training.estimate:
                return of_estimate(function, *models, training=training, **given)  # type: ignore[return-value]
            return function(*models, training=training, **given)

        return call

    return wrap


def _origin(told: Mapping[str, Any]) -> dict[str, Any]:
    """Weights and device of a model that was loaded by its user."""
    model, device = told.get(MODEL), told.get("device")
    source = getattr(model, "source", None)
    device = getattr(model, "device", device)
    return {"weights": getattr(source, "shown", None), "device": getattr(device, "name", device)}
