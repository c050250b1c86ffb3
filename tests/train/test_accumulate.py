"""Gradient accumulation: a step over several batches is the step over one large batch."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import Net, bits, blobs, loss, make

import zoo
from zoo.core.errors import ZooError
from zoo.nn import Linear, Sequential, losses, quantize
from zoo.train import SGD, Learner, Loader, constant

X, LABELS = blobs(48, 1)
LABELS = LABELS.copy()
LABELS[np.arange(48) % 8 < np.arange(48) // 8] = -100
"""Of the 6 batches of 8 rows, 8, 7, 6, 5, 4 and 3 rows are learned."""


def masked(model, batch):
    return losses.cross_entropy(model(batch[0]), batch[1], ignore_index=-100)


def counts(batch) -> int:
    return int((batch[1] != -100).sum())


def trained(batch: int, **settings) -> Learner:
    data = Loader((X, LABELS), batch, shuffle=False)
    model = Sequential(Linear(6, 16), Linear(16, 3)).init(0, "numpy")
    learner = Learner(
        model, data, loss=masked, optimizer=SGD(), schedule=constant(0.1), clip=0.5, quiet=True, **settings
    )
    learner.fit(epochs=2)
    return learner


def test_it_is_the_step_of_the_large_batch():
    large, small = trained(24), trained(8, accumulate=3, counts=counts)
    assert large.step == small.step == 4
    assert [e.loss for e in small.history] == pytest.approx([e.loss for e in large.history], rel=1e-6)
    mine, theirs = small.model.state(), large.model.state()
    assert all(np.allclose(mine[path].numpy(), theirs[path].numpy(), rtol=0, atol=1e-6) for path in theirs)
    wrong = trained(8, accumulate=3).model.state()  # weighted by rows: a mean of means
    assert max(np.abs(wrong[path].numpy() - theirs[path].numpy()).max() for path in theirs) > 1e-4


def test_the_last_step_of_an_epoch_may_have_fewer_batches():
    learner = make(accumulate=3)  # 8 batches per epoch
    learner.fit(epochs=2)
    assert learner.step == 6 and [e.step for e in learner.history] == [3, 6]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_some_steps_and_the_rest_are_all_of_them(tmp_path, stop):
    whole = make(accumulate=3)
    whole.fit(steps=5)
    make(tmp_path, accumulate=3).fit(steps=stop)
    resumed = make(tmp_path, accumulate=3, model=Net().init(99, "numpy")).resume()
    resumed.fit(steps=5)
    assert bits(resumed) == bits(whole)
    with pytest.raises(ZooError, match="other settings") as raised:
        make(tmp_path, accumulate=2).resume()
    assert "accumulate was 3 and is 2" in raised.value.why


def test_batches_without_a_number_stop_it():
    data = Loader((np.where(np.arange(48)[:, None] == 40, np.nan, X).astype(np.float32), blobs(48, 1)[1]), 8)
    learner = make(data=data, accumulate=6)
    with pytest.raises(ZooError, match="diverged"):
        learner.fit(epochs=1)


def test_rounded_weights_are_not_trained():
    model = quantize(Net().init(0, "numpy"), "int8")
    with pytest.raises(ZooError, match="not trained"):
        make(model=model, loss=loss)
    assert isinstance(zoo.nn.lora.attach(model, 2), int) and make(model=model, loss=loss).fit(steps=1)
