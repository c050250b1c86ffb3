"""A step that gives no number is taken apart: which module, which op, which parameter, which rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import Net, bits, blobs, loss, make

import zoo
from zoo.core import ops
from zoo.nn import Linear, Module
from zoo.train import SGD, Loader, RunDirectory, constant
from zoo.train.diagnosis import BATCH, REPORT

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what numpy says of such numbers


class Block(Module):
    def __init__(self) -> None:
        self.up, self.down = Linear(8, 16), Linear(16, 8)

    def __call__(self, x: Any) -> Any:
        return x + self.down(self.act(self.up(x)))

    def act(self, x: Any) -> Any:
        return ops.relu(x)


class Deep(Module):
    """Four residual blocks."""

    def __init__(self) -> None:
        self.inputs, self.layers, self.head = Linear(6, 8), [Block() for _ in range(4)], Linear(8, 3)

    def __call__(self, x: Any) -> Any:
        x = self.inputs(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def diverged(out: Path, **changed: Any) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    """Trains until it cannot go on. -> the error, the report, the batch that is kept."""
    learner = make(out, **{"schedule": constant(0.01), "ema": None, **changed})
    with pytest.raises(zoo.ZooError, match="training diverged") as error:
        learner.fit(epochs=3)
    assert len(str(error.value).splitlines()) == 3
    with np.load(out / BATCH) as batch:
        return error.value, json.loads((out / REPORT).read_text()), dict(batch)


class Bad(Linear):
    """A layer whose output is none from its `at`-th call in training on."""

    at, calls, value = 11, 0, float("nan")

    def __call__(self, x: Any, activation: str | None = None) -> Any:
        y = super().__call__(x, activation)
        self.__dict__["calls"] = self.calls + 1
        return y * self.value if self.calls >= self.at else y


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_layer_is_named(tmp_path, device, layer, value):
    model = Deep().init(0, device)
    model.layers[layer].down = bad = Bad(16, 8).init(0, device)
    bad.value = value
    error, report, batch = diverged(tmp_path, device=device, model=model)
    assert error.what.startswith("training diverged: the loss is nan at step 11, epoch 2, batch 3 of 8")
    path = f"layers.{layer}.down"
    assert f"{path} (Bad), in mul, is the first module whose output is not finite; its inputs lie in" in error.why
    assert (report["module"], report["kind"], report["op"], report["cause"]) == (path, "Bad", "mul", "activations")
    low, high = report["inputs"]
    assert 0 == low < high < 50  # behind a relu
    assert report["every_row"] and len(report["rows"]) == 16 and report["step"] == 11
    assert "every row of the batch gives it: row " in error.why
    assert "step-00000008" in error.why and "lower learning rate" in error.fix and str(tmp_path / REPORT) in error.fix
    assert batch["0"].shape == (16, 6) and batch["1"].dtype == np.int32
    assert (
        make(tmp_path, device=device, schedule=constant(0.01), ema=None, model=Deep().init(0, device)).resume().step
        == 8
    )


def test_code_between_the_parts_is_named(tmp_path):
    class Root(Block):
        def act(self, x: Any) -> Any:
            return ops.sqrt(x - 100.0)

    model = Deep().init(0, "numpy")
    model.layers[1] = Root().init(0, "numpy")
    error, report, _ = diverged(tmp_path, model=model)
    assert "the code of layers.1 (Root), in sqrt, before it calls layers.1.down is the first" in error.why
    assert report["op"] == "sqrt" and report["module"] == "layers.1"


def test_the_loss_function_is_named(tmp_path):
    def shifted(model: Any, batch: Any) -> Any:
        return ops.log(model(batch[0]).sum() * 0.0 - 1.0) + loss(model, batch)

    error, report, _ = diverged(tmp_path, loss=shifted, model=Deep().init(0, "numpy"))
    assert "every module's output is finite; the loss function makes nan of them, in log" in error.why
    assert report["op"] == "log" and report["module"] is None


def test_the_parameter_is_named_whose_gradient_is_none(tmp_path, device):
    """sqrt has no derivative at 0, which is where the gradient of what was before it is infinite, times 0."""

    class Root(Block):
        def act(self, x: Any) -> Any:
            return ops.sqrt(ops.relu(x) * 0.0)

    model = Deep().init(0, device)
    model.layers[2] = Root().init(0, device)
    for clip in (1.0, None):
        out = tmp_path / str(clip)
        error, report, _ = diverged(out, device=device, model=model, clip=clip)
        assert ("the norm of the gradients is nan" if clip else "the gradients are not finite") in error.what
        assert report["cause"] == "gradients" and report["parameter"] in ("layers.2.up.weight", "layers.2.up.bias")
        assert "on the way back, the gradient of layers.2.up." in error.why
        assert report["step"] == 1 and "there is no checkpoint yet" in error.why


@pytest.mark.parametrize("bad", [[40], [3, 77, 78], [122]])
def test_the_rows_are_named(tmp_path, device, bad):
    x, labels = blobs(123, 1)
    x[bad, 2] = np.nan

    class Files:
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, rows: Any) -> Any:
            return x[rows], labels[rows]

        def place(self, row: int) -> str:
            return f"picture{row}.png"

    error, report, batch = diverged(tmp_path, device=device, data=Loader(Files(), 123, seed=3))
    assert sorted(report["rows"]) == bad and report["cause"] == "data" and not report["every_row"]
    assert "the batch itself holds nan, in 0 (float32 (123, 6))" in error.why and "picture" in error.why
    assert (
        f"alone {'gives' if len(bad) == 1 else 'give'} it" in error.why and "Correct or remove those rows" in error.fix
    )
    order = np.argsort(blobs(123, 1)[0][:, 0])  # the batch holds them all
    assert len(batch["0"]) == len(order) and np.isnan(batch["0"]).sum() == len(bad)


def test_a_row_that_is_finite_and_too_large_is_named(tmp_path):
    x, labels = blobs(123, 1)
    x[50] = 3e38
    error, report, _ = diverged(tmp_path, data=Loader((x, labels), 16, seed=3), model=Deep().init(0, "numpy"))
    assert report["rows"] == [50] and report["cause"] == "data" and report["parameter"] == "head.weight"
    assert "row 50 alone gives it" in error.why and "too large for a norm" in error.why


def test_too_large_for_a_layer(tmp_path):
    x, labels = blobs(123, 1)
    x[50] = 3e38
    model = Deep().init(0, "numpy")
    model.set("inputs.weight", model.inputs.weight * 0 + 1.0)
    error, report, _ = diverged(tmp_path, data=Loader((x, labels), 16, seed=3), model=model)
    assert report["rows"] == [50] and report["module"] == "inputs" and report["kind"] == "Linear"
    assert report["inputs"][1] == pytest.approx(3e38, rel=1e-3) and "row 50 alone gives it" in error.why


def test_the_batch_of_an_accumulation_is_named(tmp_path):
    x, labels = blobs(123, 1)
    x[50] = np.nan
    data = Loader((x, labels), 16, seed=3)
    number = next(i for i, rows in enumerate(data.plan(0)) if 50 in rows)
    error, report, _ = diverged(tmp_path, data=data, accumulate=4)
    assert f"batch {number + 1} of 8" in error.what and report["rows"] == [50] and report["batch"] == number % 4


def test_weights_that_were_none_before(tmp_path):
    model = Net().init(0, "numpy")
    model.set("fc1.bias", zoo.tensor(np.array([0.0] * 15 + [np.inf], np.float32), device="numpy"))
    error, report, _ = diverged(tmp_path, model=model)
    assert "fc1.bias holds inf before the step" in error.why and report["cause"] == "weights"


def test_a_learning_rate_that_is_too_high(tmp_path):
    error, report, _ = diverged(
        tmp_path, model=Deep().init(0, "numpy"), optimizer=SGD(), schedule=constant(1e6), clip=None
    )
    assert report["cause"] in ("activations", "gradients") and report["every_row"] and report["lr"] == 1e6
    assert "lower learning rate" in error.fix and 1 < report["step"] < 9
    high = report["inputs"][1] if report["inputs"] else 1e9
    assert high > 1e6


def test_too_large_for_a_norm(tmp_path):
    error, report, _ = diverged(tmp_path, loss=lambda model, batch: loss(model, batch) * 1e25)
    assert "the norm of the gradients is inf" in error.what and "every gradient is finite, but too large" in error.why
    assert report["cause"] == "gradients" and report["parameter"]


def test_looking_changes_nothing_and_leaves_nothing(tmp_path):
    """What was patched to look is as it was, and the state is that of before the step."""
    before, device = {cls: cls.__call__ for cls in (Linear, Net, zoo.nn.BatchNorm)}, zoo.Autodiff("numpy")
    x, labels = blobs(123, 1)
    x[122] = np.nan
    learner = make(data=Loader((x, labels), 16, shuffle=False), ema=None)
    with pytest.raises(zoo.ZooError, match="at step 8"):
        learner.fit(epochs=1)
    assert {cls: cls.__call__ for cls in before} == before and "bind" not in vars(device)
    whole = make(data=Loader((np.nan_to_num(x), labels), 16, shuffle=False), ema=None)
    whole.fit(steps=7)
    mine, theirs = bits(learner), bits(whole)
    for position in ("data", "rng"):  # of batch 8, which the other run has not come to
        mine.pop(position), theirs.pop(position)
    assert mine == theirs


def test_a_loss_that_cannot_be_repeated_does_not_hide_what_happened(tmp_path):
    def twice(model: Any, batch: Any, calls: list[int] = []) -> Any:  # noqa: B006
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("only once")
        return loss(model, batch) * float("nan")

    error, report, _ = diverged(tmp_path, loss=twice)
    assert "the loss is nan at step 1" in error.what and "repeating the step failed: only once" in error.why
    assert report["cause"] == "unknown" and RunDirectory(tmp_path).checkpoints() == []
