"""The Learner: it learns, repeats bit by bit, stops and goes on exactly, and says what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from small_run import CENTRES, Net, bits, blobs, loss, make

import zoo
from zoo.core import ops
from zoo.nn import losses
from zoo.train import SGD, AdamW, Learner, Loader, RunDirectory, constant, matrices_only
from zoo.train import __doc__ as HOW_TO
from zoo.train.journal import LOG


def test_it_learns_and_reports(device, tmp_path):
    learner = make(tmp_path, device)
    model = learner.fit(epochs=5)
    assert model is learner.model and not model.training
    first, last = learner.history[0], learner.history[-1]
    assert (first.epoch, first.step) == (1, 8) and (last.epoch, last.step) == (5, 40)
    assert last.loss < first.loss and last.metrics["accuracy"] > 0.95
    x, labels = blobs(64, 2)
    logits = model(zoo.tensor(x, device=device)).numpy()
    assert (logits.argmax(-1) == labels).mean() == pytest.approx(last.metrics["accuracy"])
    records = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    steps = [r for r in records if "lr" in r]
    assert [r["step"] for r in steps] == list(range(1, 41)) and steps[0]["lr"] == pytest.approx(0.05 / 25)
    assert [r["metrics"] for r in records if "metrics" in r] == [e.metrics for e in learner.history]


def test_the_same_run_gives_the_same_bits_and_another_seed_does_not(device):
    runs = [make(device=device, seed=s) for s in (0, 0, 1)]
    for run in runs:
        run.fit(steps=12)
    assert bits(runs[0]) == bits(runs[1])
    assert bits(runs[0])["model.fc1.weight"] != bits(runs[2])["model.fc1.weight"]


@pytest.mark.parametrize("stop", [1, 5, 8, 9])  # within an epoch, at its end, after it
def test_ten_steps_are_some_and_the_rest(device, tmp_path, stop):
    whole = make(device=device)
    whole.fit(steps=10)
    make(tmp_path, device).fit(steps=stop)
    resumed = make(tmp_path, device, model=Net().init(99, device)).resume()
    assert resumed.step == stop
    resumed.fit(steps=10)
    assert bits(resumed) == bits(whole)
    fields = [(e.epoch, e.step, e.loss, e.metrics) for e in resumed.history]
    assert fields == [(e.epoch, e.step, e.loss, e.metrics) for e in whole.history]
    logged = [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert logged == sorted(logged) and logged[-1] == 10 and len(logged) == 11  # ten steps and one epoch


@pytest.mark.parametrize("optimizer", [lambda: SGD(momentum=0.9), lambda: AdamW()], ids=["sgd", "adamw"])
def test_resume_without_average_clipping_or_validation(tmp_path, optimizer):
    plain = {"ema": None, "clip": None, "validation": None, "schedule": constant(0.01)}
    whole = make(optimizer=optimizer(), **plain)
    whole.fit(epochs=2)
    make(tmp_path, optimizer=optimizer(), **plain).fit(steps=3)
    resumed = make(tmp_path, optimizer=optimizer(), **plain).resume()
    resumed.fit(epochs=2)
    assert bits(resumed) == bits(whole) and resumed.history[1].metrics == {}


def test_the_log_of_a_run_that_died_is_cut_where_it_goes_on(tmp_path):
    make(tmp_path).fit(steps=5)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 6, "epoch": 1, "loss": 0.5}\n{"step": 7, "ep')
    resumed = make(tmp_path).resume()
    resumed.fit(steps=7)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_nan_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
    calls = []

    def turns_nan(model, batch):
        calls.append(1)
        y = loss(model, batch)
        return y * float("nan") if len(calls) == 11 else y

    learner = make(tmp_path, loss=turns_nan)
    with pytest.raises(zoo.ZooError) as caught:
        learner.fit(epochs=3)
    assert caught.value.what == "training diverged: the loss is nan at step 11, epoch 2, batch 3 of 8"
    assert str(RunDirectory(tmp_path).checkpoints()[0]) in caught.value.why
    assert "repeated from the same state, the loss and the gradients of the step are finite" in caught.value.why
    assert make(tmp_path).resume().step == 8  # the end of epoch 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    learner = make(tmp_path, clip=None)
    learner.fit(epochs=1)
    learner._live.set("fc2.bias", zoo.tensor(np.array([1, np.inf, 1], np.float32), device="numpy"))
    with pytest.raises(zoo.ZooError, match=r"fc2\.bias holds values that are not finite"):
        learner.save()
    assert np.isfinite(make(tmp_path, clip=None).resume()._live.fc2.bias.numpy()).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # which numpy says of 0 * inf
def test_gradients_that_are_not_finite_stop_a_clipped_run():
    learner = make(loss=lambda model, batch: loss(model, batch) + ops.sqrt((model.fc2.bias * 0.0).sum()))
    with pytest.raises(zoo.ZooError, match=r"the norm of the gradients is (inf|nan) at step 1, epoch 1, batch 1 of 8"):
        learner.fit(steps=1)


def test_a_run_is_not_overwritten_by_another(tmp_path):
    make(tmp_path).fit(steps=2)
    (file,) = RunDirectory(tmp_path).checkpoints()
    before = file.read_bytes()
    with pytest.raises(zoo.ZooError, match="holds a run already") as caught:
        make(tmp_path).fit(steps=2)
    assert "--resume" in caught.value.fix
    assert file.read_bytes() == before


def test_what_cannot_be_resumed_says_why(tmp_path):
    with pytest.raises(zoo.WeightsError, match="there is no checkpoint in it"):
        make(tmp_path).resume()
    with pytest.raises(zoo.ZooError, match="without a directory"):
        make().resume()
    make(tmp_path).fit(steps=2)
    with pytest.raises(zoo.ZooError, match="other settings") as caught:
        make(tmp_path, ema=0.99, optimizer=AdamW(weight_decay=0.5)).resume()
    assert "ema was 0.9 and is 0.99" in caught.value.why and "'weight_decay': 0.01" in caught.value.why
    with pytest.raises(zoo.ZooError, match=r"lr was None and is 0\.1"):
        make(tmp_path, settings={"lr": 0.1}).resume()
    with pytest.raises(zoo.DataError, match="seed was 7 and is 8"):
        make(tmp_path, data=Loader(blobs(123, 1), 16, seed=8)).resume()
    with pytest.raises(zoo.WeightsError, match="do not fit Linear"):
        make(tmp_path, model=zoo.nn.Linear(6, 3).init(0, "numpy")).resume()


def test_frozen_parts_stay_and_are_saved(tmp_path):
    model = Net().init(0, "numpy")
    model.fc1.freeze()
    model.norm.freeze()
    before = model.state()
    after = make(tmp_path, model=model).fit(steps=4).state()
    frozen = [path for path in before if path.startswith(("fc1", "norm"))]
    assert len(frozen) == 7 and all(np.array_equal(before[p], after[p]) for p in frozen)
    assert not np.array_equal(before["fc2.weight"], after["fc2.weight"])
    again = Net().init(5, "numpy")
    again.fc1.freeze()
    again.norm.freeze()
    resumed = make(tmp_path, model=again).resume()
    assert np.array_equal(resumed.model.state()["fc1.weight"], before["fc1.weight"])


def test_the_average_is_what_is_validated_and_handed_over():
    learner = make(ema=0.9)
    shadow, steps = None, 0
    for _ in range(6):
        learner.fit(steps=learner.step + 1)
        now = np.asarray(learner._live.fc2.weight, dtype=np.float64)
        share = 1 - min(0.9, (1 + steps) / (10 + steps))
        shadow, steps = now if shadow is None else shadow + (now - shadow) * share, steps + 1
    np.testing.assert_allclose(learner.model.fc2.weight, shadow, rtol=1e-5, atol=1e-7)
    assert not np.allclose(learner.model.fc2.weight, learner._live.fc2.weight)


def test_validation_is_a_mean_over_examples_and_the_loss_by_default():
    learner = make(metrics=None, ema=None, validation=Loader(blobs(50, 2), 16, shuffle=False))
    x, labels = blobs(50, 2)
    whole = losses.cross_entropy(learner.model(zoo.tensor(x, device="numpy")), zoo.tensor(labels, device="numpy"))
    assert learner.validate()["loss"] == pytest.approx(whole.item(), rel=1e-5)
    with pytest.raises(zoo.ZooError, match="nothing to validate on"):
        make(validation=None).validate()


def test_fit_can_go_on_in_the_same_process():
    at_once, in_parts = make(), make()
    at_once.fit(epochs=2)
    for epoch in (1, 2):
        in_parts.fit(epochs=epoch)
    assert bits(at_once) == bits(in_parts)
    with pytest.raises(ValueError, match="epochs or steps"):
        at_once.fit()


def test_batches_may_be_dicts():
    x, labels = blobs(32, 1)
    learner = Learner(
        Net().init(0, "numpy"),
        Loader({"x": x, "labels": labels}, 8),
        loss=lambda model, batch: losses.cross_entropy(model(batch["x"]), batch["labels"]),
        optimizer=SGD(),
        schedule=constant(0.1),
        quiet=True,
    )
    learner.fit(epochs=1)
    assert learner.step == 4


def test_plain_lines_where_stderr_is_no_terminal(capsys):
    make(quiet=False).fit(epochs=2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 4
    assert re.fullmatch(r"epoch 2: loss 0\.\d{4} · validation: loss 0\.\d{4}, accuracy [01]\.\d{4} · \d+ s", lines[1])
    assert re.fullmatch(r"trained Net: 195 parameters, 16 steps in 0:\d\d, [\d.]+ [MG]B of memory", lines[2])
    assert lines[3].startswith("best epoch: ") and "accuracy" in lines[3]


def test_settings_are_compared_by_value(tmp_path):
    decay = {"optimizer": AdamW(weight_decay=matrices_only(0.1))}
    make(tmp_path, settings={"sizes": (1, 2)}, **decay).fit(steps=1)
    assert make(tmp_path, settings={"sizes": (1, 2)}, **decay).resume().step == 1
    with pytest.raises(zoo.ZooError, match=r"matrices_only\(decay=0.1\).* and is .*matrices_only\(decay=0.2\)"):
        make(tmp_path, settings={"sizes": (1, 2)}, optimizer=AdamW(weight_decay=matrices_only(0.2))).resume()


def test_importing_the_layers_and_the_trainer_brings_in_nothing_heavy():
    heavy = {"torch", "rich", "typer", "cupy", "huggingface_hub", "PIL"}
    program = f"import sys, zoo.nn, zoo.train; print({heavy} & set(sys.modules))"
    root = str(Path(zoo.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert found.stdout.strip() == "set()", found.stdout + found.stderr


def test_the_loop_of_ones_own_in_the_docs_runs_and_learns():
    code = HOW_TO.split("loop of one's own:")[1]
    labels = np.random.default_rng(0).integers(0, 3, 800)
    names = {
        "zoo": zoo, "losses": losses, "Net": Net, "images": CENTRES[labels], "labels": labels,
        **{name: getattr(zoo.train, name) for name in zoo.train.__all__},
    }  # fmt: skip
    exec(textwrap.dedent(code), names)
    found = names["model"](zoo.tensor(CENTRES)).numpy().argmax(-1)
    assert list(found) == [0, 1, 2]
