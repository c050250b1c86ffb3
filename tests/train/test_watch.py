"""What watchers of a run are told, and when."""

from __future__ import annotations

import itertools
import json

import pytest
from small_run import Net, loss, make

import zoo
from zoo.train import Watcher, schedule
from zoo.train.journal import LOG


class Told(Watcher):
    def __init__(self):
        self.heard = []

    def opened(self, run):
        self.heard.append(("opened", run))

    def stepped(self, step):
        self.heard.append(("stepped", step))

    def validated(self, epoch):
        self.heard.append(("validated", epoch))

    def say(self, text):
        self.heard.append(("say", text))

    def closed(self, reason):
        self.heard.append(("closed", reason))

    def all(self, what):
        return [value for name, value in self.heard if name == what]


def test_a_watcher_is_told_of_everything_in_order(tmp_path):
    told = Told()
    learner = make(tmp_path, watchers=[told])
    learner.fit(epochs=2)
    assert [name for name, _ in told.heard] == ["opened", *["stepped"] * 8, "validated"] + ["stepped"] * 8 + [
        "validated", "closed"]  # fmt: skip
    run = told.all("opened")[0]
    assert (run.name, run.step, run.total, run.steps_per_epoch, run.epochs) == ("Net", 0, 16, 8, 2)
    assert run.parameters == run.trainable == 6 * 16 + 16 + 2 * 16 + 16 * 3 + 3 and run.device == "numpy"
    assert run.settings["clip"] == 1.0 and run.out == tmp_path and run.unit == "examples"
    steps = told.all("stepped")
    assert [s.step for s in steps] == list(range(1, 17)) and [s.epoch for s in steps] == [1] * 8 + [2] * 8
    assert [s.rows for s in steps[:8]] == [16] * 7 + [11] == [s.count for s in steps[:8]]
    assert [s.lr for s in steps] == [schedule.one_cycle(0.05, 40)(i) for i in range(16)]
    assert all(s.grad_norm > 0 and s.memory > 1e6 for s in steps)
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(steps))
    assert steps[-1].seconds >= sum(s.took for s in steps) and all(s.took > 0 for s in steps)
    assert told.all("validated") == learner.history and told.all("closed") == ["finished"]


def test_a_run_that_goes_on_says_from_where(tmp_path):
    make(tmp_path).fit(steps=3)
    told = Told()
    make(tmp_path, watchers=[told]).resume().fit(steps=5)
    assert told.all("opened")[0].step == 3 and [s.step for s in told.all("stepped")] == [4, 5]


def test_how_a_run_ended_is_told(tmp_path):
    class Stop(Told):
        def stepped(self, step):
            super().stepped(step)
            raise KeyboardInterrupt

    told = Stop()
    with pytest.raises(KeyboardInterrupt):
        make(watchers=[told]).fit(steps=3)
    assert [name for name, _ in told.heard] == ["opened", "stepped", "closed"] and told.all("closed") == ["stopped"]
    told = Told()
    with pytest.raises(zoo.ZooError):
        make(watchers=[told], loss=lambda model, batch: loss(model, batch) * float("nan")).fit(steps=3)
    assert told.all("closed") == ["training diverged: the loss is nan at step 1, epoch 1, batch 1 of 8"]


def test_without_clipping_the_norm_is_worked_out_for_logged_steps_only():
    told, alone = Told(), Told()
    make(watchers=[told], clip=None, log_every=4).fit(steps=8)
    assert [s.step for s in told.all("stepped") if s.grad_norm is not None] == [4, 8]
    make(watchers=[alone], clip=1e9, log_every=4).fit(steps=8)
    for a, b in zip(told.all("stepped"), alone.all("stepped"), strict=True):
        assert a.loss == b.loss and a.grad_norm in (None, b.grad_norm)


def test_entries_are_counted_as_the_mean_counts_them():
    told = Told()
    make(watchers=[told], counts=lambda batch: 3.0 * len(batch[0]), unit="tokens", accumulate=2).fit(steps=4)
    assert [s.count for s in told.all("stepped")] == [96, 96, 96, 81] and told.all("opened")[0].unit == "tokens"


def test_frozen_parts_are_not_counted_as_trainable():
    model, told = Net().init(0, "numpy"), Told()
    model.fc1.freeze()
    make(model=model, watchers=[told]).fit(steps=1)
    run = told.all("opened")[0]
    assert run.parameters - run.trainable == 6 * 16 + 16


def test_a_log_of_a_run_that_died_before_its_first_checkpoint_starts_anew(tmp_path):
    (tmp_path / LOG).write_text('{"step": 1, "epoch": 1, "loss": 9.0}\n')
    make(tmp_path).fit(steps=2)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 2]
