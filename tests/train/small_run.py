"""A small run that has everything whose state could be forgotten: shuffling, augmentation, dropout, running statistics,
moments of the optimizer, a moving average, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo.core import ops
from zoo.nn import BatchNorm, Dropout, Linear, Module, losses
from zoo.train import AdamW, Learner, Loader, one_cycle

CENTRES = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32) * 2


def blobs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of points in six dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows).astype(np.int32)
    return CENTRES[labels] + rng.normal(size=(rows, 6)).astype(np.float32), labels


def jitter(batch: Any, rng: zoo.random.Generator) -> Any:
    x, labels = batch
    return x + rng.normal(x.shape, std=0.1, device="numpy").numpy(), labels


class Net(Module):
    def __init__(self) -> None:
        self.fc1, self.norm, self.drop, self.fc2 = Linear(6, 16), BatchNorm(16), Dropout(0.2), Linear(16, 3)

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.drop(ops.relu(self.norm(self.fc1(x)))))


def loss(model: Any, batch: Any) -> Any:
    return losses.cross_entropy(model(batch[0]), batch[1])


def metrics(model: Any, batch: Any) -> Any:
    logits = model(batch[0])
    hit = (logits.argmax(axis=-1) == batch[1]).astype("float32")
    return {"loss": ops.cross_entropy(logits, batch[1]), "accuracy": hit}


def make(out: Path | None = None, device: Any = "numpy", **changed: Any) -> Learner:
    """A learner with 8 batches per epoch, the last of them smaller."""
    settings: dict[str, Any] = {
        "loss": loss,
        "optimizer": AdamW(weight_decay=0.01),
        "schedule": one_cycle(0.05, 40),
        "validation": Loader(blobs(64, 2), 20, shuffle=False),
        "metrics": metrics,
        "clip": 1.0,
        "ema": 0.9,
        "quiet": True,
        "log_every": 1,
    }
    data = changed.pop("data", None) or Loader(blobs(123, 1), 16, seed=7, transform=jitter)
    model = changed.pop("model", None) or Net().init(0, device)
    return Learner(model, data, out=out, **{**settings, **changed})


def bits(learner: Learner) -> dict[str, bytes]:
    """Everything a run consists of, by path."""
    state = {f"model.{k}": np.asarray(v).tobytes() for k, v in learner._live.state().items()}
    state |= {f"optimizer.{k}": np.asarray(v).tobytes() for k, v in learner.optimizer.state().items()}
    if learner.average is not None:
        state |= {f"average.{k}": np.asarray(v).tobytes() for k, v in learner.average.values.items()}
    state["rng"] = repr(learner.rng).encode()
    state["data"] = repr(learner.data.state()).encode()
    state["step"] = repr(learner.step).encode()
    return state
