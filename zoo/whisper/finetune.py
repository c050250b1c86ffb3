"""Training on recordings: data -> loss, in the Learner's terms. All of the weights, or a LoRA adapter beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from zoo.core.tensor import Tensor
from zoo.data.files import find, held_out
from zoo.data.loader import Loader
from zoo.nn.quantized import formats
from zoo.train import AdamW, Training, matrices_only, tokens
from zoo.train.recipe import recipe
from zoo.whisper.augment import SpecAugment
from zoo.whisper.data import ByLength, Clip, Clips, Masking, files, read
from zoo.whisper.model import Whisper
from zoo.whisper.run import language_code
from zoo.whisper.tokenizer import Tokenizer

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Layers that LoRA goes around: all matrices of a block (Dettmers et al. 2023, section 4)."""
HELD_OUT = 0.1
TRAINING = Training(epochs=3, batch=8, out=Path("runs/whisper"))


@dataclass(frozen=True)
class Trained:
    """What a run gave. Losses are nats per token of the clips held out, before and after."""

    out: Path
    epochs: int
    steps: int
    clips: int
    unseen: int
    seconds: float
    before: float
    after: float
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "epochs": self.epochs, "steps": self.steps, "clips": self.clips,
                "unseen": self.unseen, "seconds": self.seconds, "loss_before": self.before, "loss": self.after,
                "trainable": self.trainable}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.out}: loss {self.after:.4f} on {self.unseen:,} unseen clips, {self.before:.4f} before"


def said(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and targets."""
    features, inputs, targets, _ = batch
    return model(features, inputs), targets


def loss(model: Any, batch: Any) -> Tensor:
    return tokens.loss(*said(model, batch))


def learned_tokens(batch: Any) -> int:
    return tokens.learned(batch[2])


@recipe("whisper")
def finetune(
    model: Whisper,
    *,
    data: Path,
    language: str = "en",
    task: Literal["transcribe", "translate"] = "transcribe",
    mask_time_prob: float = 0.05,
    mask_time_length: int = 10,
    mask_feature_prob: float = 0.0,
    mask_feature_length: int = 10,
    training: Training = TRAINING,
    quiet: bool = False,
) -> Iterator[Trained]:
    """Train on your own recordings: a manifest of rows {"audio": FILE, "text": ...} (zoo/whisper/data.py).

    data: a file of rows, or a directory (docs/data.md): train.jsonl and valid.jsonl; without the latter, a tenth is
        held out
    batch: clips per step, of about the same length
    lr: highest learning rate; without it, 1e-5, or 1e-3 with --lora
    language: of rows that do not say theirs: a code or a name
    task: what the texts are of what is said: the same language, or English
    mask_time_prob: share of the sound that is masked, in stretches (SpecAugment); 0 masks nothing
    mask_time_length: frames of such a stretch, of 10 ms
    mask_feature_prob: share of the mel bands that is masked
    mask_feature_length: bands of such a mask
    """
    train_file, valid_file = files(data)
    skipped, root = training.skipped(), find(data).root
    tokenizer, language = Tokenizer.of(model), language_code(language) or ""

    def clips(path: Path) -> list[Clip]:
        return read(path, tokenizer, model.config, language=language, task=task, root=root, skipped=skipped)

    train = clips(train_file)
    train, held = split(train) if valid_file is None else (train, clips(valid_file))
    rows, unseen = Clips(train, model.config, tokenizer.eot), Clips(held, model.config, tokenizer.eot)
    augment = SpecAugment(mask_time_prob, mask_time_length, mask_feature_prob, mask_feature_length)
    base = None if model.source is None else model.source.shown
    model.model.encoder.embed_positions.freeze()  # sinusoids, as published: transformers trains them neither
    lora, out, batch = training.adapt(model, TARGETS), training.out, training.batch
    training = training.at(1e-3 if lora else 1e-5)
    model.recompute = training.checkpoint
    kept = formats(model)
    write = partial(training.write, port="whisper", base=base)
    settings = {"language": language, "task": task,
                "masks": [mask_time_prob, mask_time_length, mask_feature_prob, mask_feature_length]}  # fmt: skip
    learner = training.learner(
        model,
        training.loader(rows, ByLength, transform=Masking(augment), skipped=skipped),
        loss=loss,
        optimizer=AdamW(betas=(0.9, 0.98), weight_decay=matrices_only(0.0 if lora else 0.01)),
        validation=Loader(unseen, batch, shuffle=False, skipped=skipped),
        counts=learned_tokens,
        unit="tokens",
        export=write,
        settings={**settings, **({"rounded": kept} if kept else {})},
        quiet=quiet,
    )
    before = tokens.nats_per_token(said, model, unseen, batch, skipped)
    training.fit(learner)
    done = Trained(
        out, len(learner.history), learner.step, len(train), len(held), round(sum(clip.seconds for clip in train), 2),
        before, tokens.nats_per_token(said, model, unseen, batch, skipped),
        sum(p.size for p in model.parameters().values()),
    )  # fmt: skip
    write(model, out, card={"summary": f"loss {done.after:.3f} on unseen clips", "loss": done.after})
    yield done


def split(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Every tenth is held out, at least one. Raises DataError if that leaves nothing to train on."""
    unseen = held_out(len(clips))
    return [c for c, out in zip(clips, unseen, strict=True) if not out], [
        c for c, out in zip(clips, unseen, strict=True) if out
    ]
