"""Early stopping: after how many epochs, with which weights, and that a resumed run gives up where the whole did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import blobs, make

from zoo.train import Learner, Loader
from zoo.train.best import given_up
from zoo.train.watch import Epoch


def worse(**changed: Any) -> Learner:
    """What is learned in training is wrong in validation: labels there are others, so the first epoch is the best."""
    x, labels = blobs(64, 2)
    return make(validation=Loader((x, (labels + 1) % 3), 20, shuffle=False), **changed)


def weights(learner: Learner) -> dict[str, bytes]:
    return {path: np.asarray(tensor).tobytes() for path, tensor in learner.model.state().items()}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_weights_of_the_best_epoch_are_kept(ema: float | None) -> None:
    learner = worse(patience=2, ema=ema)
    learner.fit(epochs=5)
    assert [epoch.epoch for epoch in learner.history] == [1, 2, 3]
    losses = [epoch.metrics["loss"] for epoch in learner.history]
    assert losses == sorted(losses)
    one = worse(ema=ema)
    one.fit(epochs=1)
    assert weights(learner) == weights(one)
    assert learner.validate() is not None and learner.step == 24


def test_without_patience_the_last_are_kept() -> None:
    learner, last = worse(), worse(patience=9)
    learner.fit(epochs=3)
    last.fit(epochs=3)
    assert len(learner.history) == len(last.history) == 3
    one = worse()
    one.fit(epochs=1)
    assert weights(last) == weights(one) != weights(learner), "to the end, it keeps the best too"


def test_a_run_that_gets_better_goes_on_to_its_end() -> None:
    learner = make(patience=2)
    learner.fit(epochs=4)
    assert len(learner.history) == 4


@pytest.mark.parametrize("stop", [3, 8, 13, 16, 20])
def test_a_resumed_run_gives_up_at_the_same_epoch(tmp_path: Path, stop: int) -> None:
    whole = worse(patience=2)
    whole.fit(epochs=5)
    worse(patience=2, out=tmp_path).fit(steps=stop)
    parts = worse(patience=2, out=tmp_path).resume()
    parts.fit(epochs=5)
    assert weights(parts) == weights(whole) and parts.step == whole.step
    again = worse(patience=2, out=tmp_path).resume()
    again.fit(epochs=5)
    assert again.step == whole.step and weights(again) == weights(whole), "a run that gave up is over"


@pytest.mark.parametrize(
    ("metrics", "patience", "over"),
    [
        ([{"loss": 1.0}, {"loss": 2.0}], 1, True),
        ([{"loss": 1.0}, {"loss": 2.0}], 2, False),
        ([{"loss": 2.0}, {"loss": 1.0}], 1, False),
        ([{"accuracy": 0.5}, {"accuracy": 0.6}], 1, False),
        ([{"accuracy": 0.6}, {"accuracy": 0.5}], 1, True),
        ([{"loss": 1.0}, {"loss": float("nan")}], 1, True),
        ([{"loss": 1.0}, {"loss": 1.0}], 1, True),
        ([{}, {}], 1, False),
        ([], 1, False),
        ([{"loss": 1.0}, {"loss": 2.0}], 0, False),
    ],
)
def test_when_it_gives_up(metrics: list[dict[str, float]], patience: int, over: bool) -> None:
    history = [Epoch(i + 1, 10 * (i + 1), 0.0, 0.0, found) for i, found in enumerate(metrics)]
    assert given_up(history, patience) is over
