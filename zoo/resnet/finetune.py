"""Training on one's own pictures, a folder per class: data -> loss, in the Learner's terms."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.errors import DataError, ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.data.bad import Skipped
from zoo.data.folder import Labelled, Pictures, read_split
from zoo.nn import Linear, Sequential, global_avg_pool, losses
from zoo.nn.quantized import formats
from zoo.resnet import labels, preprocess
from zoo.resnet.augment import Augment
from zoo.resnet.evaluate import ranks, share, validation
from zoo.resnet.model import ResNet
from zoo.train import AdamW, Learner, Optimizer, Training, matrices_only
from zoo.train.recipe import recipe

TARGETS = ("convolution",)
"""Layers that LoRA goes around: all but the head, which is trained whole."""
HEAD = ("classifier",)
TRAINING = Training(
    epochs=10, batch=32, lr=1e-3, schedule="one_cycle", clip=0.0, ema=0.999, out=Path("runs/resnet")
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a training run gave. Accuracies are shares of the pictures that were held out."""

    out: Path
    epochs: int
    steps: int
    classes: tuple[str, ...]
    examples: int
    unseen: int
    top1: float
    top5: float
    head: str

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {**values, "out": str(self.out), "classes": list(self.classes)}

    def __str__(self) -> str:
        return f"{self.out}: {self.top1:.2%} on {self.unseen:,} unseen pictures of {len(self.classes)} classes"


@recipe("resnet")
def finetune(
    model: ResNet,
    *,
    data: Path,
    freeze: int = 0,
    no_flip: bool = False,
    no_crop: bool = False,
    colour: float = 0.1,
    mixup: float = 0.0,
    smoothing: float = 0.1,
    training: Training = TRAINING,
    quiet: bool = False,
) -> Iterator[Trained]:
    """Train a network on your own pictures: it keeps what it knows of pictures, and gets a head for your classes.

    data: a directory with one folder of pictures per class, or rows that name files and labels (docs/data.md); where
        there are no parts train and valid, every tenth picture of a class is held out to validate
    freeze: keep the stem and so many stages as they are: 0 trains everything, 4 (of 4) the head only
    no_flip: do not mirror pictures (where left and right differ, as in text)
    no_crop: always show the middle of a picture
    colour: change brightness, contrast and saturation by up to this share
    mixup: lay pictures over each other, with shares from Beta(mixup, mixup); 0.2 is usual, 0 does not
    smoothing: of the labels
    lora: rank of an adapter of the convolutions, which is trained beside weights that stay, with the head; 0 trains the
        weights themselves
    """
    skipped = training.skipped()
    train, held_out = read_split(data, skipped)
    if len(train.classes) < 2:
        why = f"{data} holds the class {train.classes[0]} only"
        raise DataError("there is nothing to tell apart", why, "Give two folders of pictures, or more.")
    if freeze and training.lora:
        raise ZooError("--freeze goes without --lora", "beside an adapter, all stays but the head", "Choose one.")
    base = None if model.source is None else model.source.shown
    model = model if formats(model) else model.astype("float32")
    model, head = with_head(model, train.classes, training.seed)
    training.adapt(model, TARGETS, also=HEAD)
    write = partial(training.write, port="resnet", base=base, also=HEAD)
    kept = frozen(model, freeze)
    model.recompute = training.checkpoint
    if not quiet:
        print(f"{head}{kept}", file=sys.stderr)
    seen = preprocess.of(model)
    learner = make_learner(
        model, train, held_out, training, augment=Augment(seen, not no_flip, not no_crop, colour, mixup),
        optimizer=AdamW(weight_decay=matrices_only(0.05)), smoothing=smoothing,
        settings={"freeze": freeze, "classes": list(train.classes)}, skipped=skipped, export=write, quiet=quiet,
    )  # fmt: skip
    training.fit(learner)
    rank = ranks(model, held_out, skipped=skipped)
    top1, top5 = share(rank, 1), share(rank, 5)
    done = Trained(
        training.out, len(learner.history), learner.step, train.classes, len(train), len(held_out), top1, top5, head
    )
    card = {
        "summary": f"{100 * done.top1:.2f} % on {done.unseen:,} unseen pictures",
        "accuracy": done.top1,
        "data": f"{done.examples:,} pictures of {len(done.classes)} classes, {done.unseen:,} held out",
        "epochs": done.epochs,
        "seed": training.seed,
    }
    write(model, training.out, card=card)
    yield done


def with_head(model: ResNet, classes: Sequence[str], seed: int) -> tuple[ResNet, str]:
    """The model with a classifier for these classes, and a line that says what became of its own: kept, where it names
    the same ones (put in their order), else replaced by a new one."""
    config = model.config
    known = {name: number for number, name in enumerate(labels.of(model) or ())}
    head = model.classifier[1]
    named = {str(i): name for i, name in enumerate(classes)}
    if set(known) == set(classes) and len(known) == config.num_labels and isinstance(head, Linear):
        order = np.asarray([known[name] for name in classes])
        model.classifier[1].load({k: np.asarray(v)[order] for k, v in head.state().items()})
        said = f"these weights know the {len(classes)} classes: the head is kept"
    else:
        new = Linear(config.hidden_sizes[-1], len(classes)).init(Generator(seed), model.device)
        model.classifier = Sequential(global_avg_pool, new)
        rest = len(model.spec()) - 2
        said = (
            f"the weights have {config.num_labels} classes, your data has {len(classes)}: the head is new "
            f"(classifier.1.weight, .bias); the other {rest} tensors are kept"
            if config.num_labels != len(classes)
            else f"the weights have {len(classes)} other classes: the head is new; the other {rest} tensors are kept"
        )
    model.config = dataclasses.replace(
        config, num_labels=len(classes), id2label=named, preprocessing=preprocess.of(model)
    )
    return model, said


def frozen(model: ResNet, stages: int) -> str:
    """Takes the stem and so many stages out of training; -> what to say about it."""
    every = model.resnet.encoder.stages
    if not 0 <= stages <= len(every):
        raise DataError(f"cannot freeze {stages} stages", f"the network has {len(every)}", "Give a number up to there.")
    if stages == 0:
        return ""
    for part in (model.resnet.embedder, *every[:stages]):
        part.freeze()
    trained = sum(p.size for p in model.parameters().values())
    return f"; {trained:,} of {sum(p.size for p in model.state().values()):,} values are trained"


def make_learner(
    model: ResNet, train: Labelled, held_out: Labelled, training: Training, *, augment: Augment, optimizer: Optimizer,
    smoothing: float, settings: dict[str, Any], skipped: Skipped | None = None,
    export: Callable[[Any, Path], Any] | None = None, quiet: bool = False,
) -> Learner:  # fmt: skip
    """Training on pictures of these classes, changed as `augment` does."""
    seen = augment.preprocessing
    pictures = Pictures(train, seen.square if augment.crop else seen.pixels, seen.least)
    whole = len(train) >= training.batch  # running statistics of a batch of one or two rows would be noise
    loader = training.loader(pictures, transform=augment, drop_last=whole, skipped=skipped)
    settings = {**settings, "smoothing": smoothing,
                "augment": [augment.flip, augment.crop, augment.colour, augment.mixup]}  # fmt: skip

    def loss(model: Any, batch: Any) -> Tensor:
        x, targets, others, part = batch
        logits = model(x)
        plain = losses.cross_entropy(logits, targets, label_smoothing=smoothing)
        if part == 1.0:
            return plain
        return plain * part + losses.cross_entropy(logits, others, label_smoothing=smoothing) * (1.0 - part)

    return training.learner(
        model, loader, loss=loss, optimizer=optimizer, validation=validation(held_out, seen, skipped=skipped),
        metrics=metrics, settings=settings, export=export, quiet=quiet,
    )  # fmt: skip


def metrics(model: Any, batch: Any) -> dict[str, Tensor]:
    pictures, targets = batch
    logits = model(pictures)
    right = ops.equal(logits.argmax(axis=-1), targets).astype("float32")
    return {"loss": ops.cross_entropy(logits, targets), "top1": right}
