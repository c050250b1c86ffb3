"""Training on text: data -> loss, in the Learner's terms. All of the weights, or a LoRA adapter beside them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.data.loader import Loader
from zoo.llama import tokenizer as tokenizers
from zoo.llama.corpus import corpus
from zoo.llama.model import Llama
from zoo.nn.quantized import formats
from zoo.train import AdamW, Training, matrices_only, tokens
from zoo.train.recipe import recipe

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that LoRA goes around: all matrices of a block (Dettmers et al. 2023, section 4)."""
TRAINING = Training(epochs=3, batch=4, out=Path("runs/llama"))


@dataclass(frozen=True)
class Trained:
    """What a run gave. Perplexities are of the tokens held out, before and after."""

    out: Path
    epochs: int
    steps: int
    tokens: int
    before: float
    after: float
    trainable: int

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "epochs": self.epochs, "steps": self.steps, "tokens": self.tokens,
                "perplexity_before": self.before, "perplexity": self.after, "trainable": self.trainable}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.out}: perplexity {self.after:.3f} on unseen text, {self.before:.3f} before"


def said(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and targets."""
    inputs, targets, texts = batch
    return model(inputs, texts=texts), targets


def loss(model: Any, batch: Any) -> Tensor:
    return tokens.loss(*said(model, batch))


def learned_tokens(batch: Any) -> int:
    return tokens.learned(batch[1])


def perplexity(model: Llama, data: Any) -> float:
    """Of packed rows: exp of the mean negative log-likelihood of the learned tokens."""
    return math.exp(tokens.nats_per_token(said, model, data))


@recipe("llama")
def finetune(
    model: Llama, *, data: Path, context: int = 256, training: Training = TRAINING, quiet: bool = False
) -> Iterator[Trained]:
    """Train on your own text: .txt, or .jsonl with text, prompt and completion, or messages.

    data: a file, or a directory with train and valid files (docs/data.md); without the latter, a tenth is held out
    batch: rows of --context tokens per step
    context: tokens of a row
    lr: highest learning rate; without it, 1e-4, or 1e-3 with --lora
    """
    tokenizer = tokenizers.of(model)
    if context > model.config.max_position_embeddings:
        why = f"the model sees {model.config.max_position_embeddings:,} tokens at once"
        raise ZooError(f"--context {context} is too long", why, "Choose a shorter one.")
    skipped = training.skipped()
    say = None if quiet else (lambda text: print(text, file=sys.stderr))
    train, unseen = corpus(data, tokenizer, model.config.vocab_size, context, skipped, say)
    base = None if model.source is None else model.source.shown
    lora, out = training.adapt(model, TARGETS), training.out
    training = training.at(1e-3 if lora else 1e-4)
    model.recompute = training.checkpoint
    kept = formats(model)
    write = partial(training.write, port="llama", base=base, task_type="CAUSAL_LM")
    learner = training.learner(
        model,
        training.loader(train, skipped=skipped),
        loss=loss,
        optimizer=AdamW(betas=(0.9, 0.95), weight_decay=matrices_only(0.0 if lora else 0.1)),
        validation=Loader(unseen, training.batch, shuffle=False),
        counts=learned_tokens,
        unit="tokens",
        export=write,
        settings={"context": context, **({"rounded": kept} if kept else {})},
        quiet=quiet,
    )
    before = perplexity(model, unseen)
    training.fit(learner)
    trainable = sum(parameter.size for parameter in model.parameters().values())
    done = Trained(out, len(learner.history), learner.step, train.learned, before, perplexity(model, unseen), trainable)
    write(model, out, card={"summary": f"perplexity {done.after:.2f} on unseen text", "perplexity": done.after})
    yield done
