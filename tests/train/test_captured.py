"""The captured step of training: the bits of the step as it is, and nothing that somebody holds changes under them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_run import bits, loss, metrics

import zoo
from zoo.core import ops
from zoo.core.autodiff import Autodiff
from zoo.core.device import device
from zoo.core.errors import DeviceError, ZooError
from zoo.core.random import Generator
from zoo.core.stats import stats
from zoo.nn import Conv2d, Dropout, Linear, Module
from zoo.train import SGD, AdamW, Average, Learner, Loader, constant, gradients
from zoo.train.batch import on_device
from zoo.train.captured import CapturedLoss

try:
    CPU: Any = device("cpu")
except DeviceError:
    CPU = None

pytestmark = pytest.mark.skipif(CPU is None, reason="the cpu device is not here")


class Net(Module):
    """Everything that a captured step of the digits' network has."""

    def __init__(self) -> None:
        self.conv, self.drop, self.fc1, self.fc2 = Conv2d(1, 5, 3), Dropout(0.3), Linear(45, 16), Linear(16, 3)

    def __call__(self, x: Any) -> Any:
        x = ops.relu(ops.max_pool(self.conv((x - 0.5) / 2.0), 2))
        return self.fc2(self.drop(self.fc1(x.reshape(x.shape[0], -1), activation="relu")))


def pictures(rows: int = 44, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows).astype(np.int32)
    return (rng.normal(size=(rows, 8, 8, 1)) + labels[:, None, None, None]).astype(np.float32), labels


def make(out: Any = None, **changed: Any) -> Learner:
    """Three batches of an epoch, the last of them smaller."""
    settings: dict[str, Any] = {
        "loss": loss, "optimizer": AdamW(), "schedule": constant(0.01), "capture": True, "quiet": True,
        "validation": Loader(pictures(20, 1), 10, shuffle=False), "metrics": metrics,
    }  # fmt: skip
    model = changed.pop("model", None) or Net().init(0, CPU)
    return Learner(model, Loader(pictures(), 16, seed=3), out=out, **{**settings, **changed})


@pytest.mark.parametrize(
    "settings",
    [{}, {"clip": 0.1, "ema": 0.9}, {"log_every": 1}, {"accumulate": 2}, {"precision": "bf16"}, {"precision": "f16"},
     {"optimizer": SGD(momentum=0.9)}],
    ids=str,
)  # fmt: skip
def test_the_same_bits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stats(reset=True)
    captured = make(**settings)
    captured.fit(steps=11)
    counted = stats(reset=True)
    monkeypatch.setattr(CPU, "off", {"capture"})
    if "optimizer" in settings:
        settings = {"optimizer": SGD(momentum=0.9)}
    plain = make(**settings)
    plain.fit(steps=11)
    assert bits(captured) == bits(plain)
    assert captured.history[-1].metrics == plain.history[-1].metrics
    assert not stats().get("capture.recorded")
    fits = not ({"accumulate", "optimizer"} & set(settings) or settings.get("precision") == "f16")
    assert counted.get("capture.recorded", 0) == (2 if fits else 0), "one for each size of a batch"
    assert counted.get("capture.replayed", 0) == (9 if fits else 0)


def test_a_resumed_run(tmp_path: Any) -> None:
    whole = make()
    whole.fit(steps=11)
    make(tmp_path).fit(steps=5)
    resumed = make(tmp_path, model=Net().init(9, CPU)).resume()
    resumed.fit(steps=11)
    assert bits(resumed) == bits(whole)


def test_nobody_elses_weights_change() -> None:
    """Steps write to the run's own memory: not to the model as it was given, as it was validated, or to the average."""

    def taken(model: Any) -> dict[str, bytes]:
        return {path: np.asarray(t).tobytes() for path, t in model.state().items()}

    model = Net().init(0, CPU)
    before, held = taken(model), model.state()
    learner = make(model=model)
    learner.fit(steps=3)
    assert {path: np.asarray(t).tobytes() for path, t in held.items()} == before
    validated, average = taken(learner.model), Average(0.5)
    average.update(learner._live, CPU)
    first = {path: np.asarray(t).tobytes() for path, t in average.values.items()}
    places = {path: t.handle.value.ctypes.data for path, t in learner._live.parameters().items()}
    for batches in learner._groups():
        learner._step(batches, 0.01)
    assert taken(learner.model) == validated != taken(learner._live)
    assert {path: np.asarray(t).tobytes() for path, t in average.values.items()} == first
    assert {path: t.handle.value.ctypes.data for path, t in learner._live.parameters().items()} == places


def step(function: Any = loss) -> tuple[CapturedLoss, Any]:
    rng = Generator(5)
    model = Net().init(0, CPU).to(Autodiff(CPU)).train(rng)
    return CapturedLoss(model, function, CPU, rng), model


def test_weights_that_came_to_lie_elsewhere() -> None:
    learned, model = step()
    batch = pictures(8)
    learned(batch), learned(batch)
    model.load(Net().init(1, CPU).state())
    stats(reset=True)
    learned.rng.offset, got = 70, None
    got = float(learned(batch)[0])
    assert stats()["capture.recorded"] == 1
    model.rng.offset = 70
    assert got == float(loss(model, on_device(batch, CPU)))


def test_numbers_go_on_behind_those_drawn() -> None:
    """A replay takes as many as the step did, and another one draws others."""
    learned, model = step()
    batch, found, offsets = pictures(8), [], []
    for _ in range(3):
        value, grads = learned(batch)
        found.append((float(value), {path: np.array(g) for path, g in grads.items()}))
        offsets.append(learned.rng.offset)
    model.rng.offset = 0
    for (value, grads), offset in zip(found, offsets, strict=True):
        again = loss(model, on_device(batch, CPU))
        assert float(again) == value and model.rng.offset == offset
        for path, g in gradients(again, model).items():
            np.testing.assert_array_equal(g.numpy(), grads[path])
    assert len({value for value, _ in found}) == 3


def test_a_target_that_is_no_class() -> None:
    """Told in a replay as it is without one."""
    learned, _ = step()
    x, labels = pictures(8)
    learned((x, labels))
    plain = float(learned((x, labels))[0])
    for wrong in (3, -1):
        bad = labels.copy()
        bad[5] = wrong
        with pytest.raises((ZooError, IndexError)):
            learned((x, bad))
    learned.rng.offset = learned._drawn[(x.shape, labels.shape)]
    assert float(learned((x, labels))[0]) == plain


def test_what_a_replay_would_not_draw_anew_is_refused() -> None:
    def noisy(model: Any, batch: Any) -> Any:
        return loss(model, (batch[0] + model.rng.normal(batch[0].shape, device=CPU), batch[1]))

    with pytest.raises(ZooError, match="cannot be captured"):
        step(noisy)[0](pictures(8))
    assert zoo.tensor([1.0], device=CPU).item() == 1, "nothing is recorded any more"


def test_other_devices_run_the_step_as_it_is() -> None:
    rng = Generator(5)
    model = Net().init(0, "numpy").to(Autodiff("numpy")).train(rng)
    learned = CapturedLoss(model, loss, device("numpy"), rng)
    stats(reset=True)
    values = [float(learned(pictures(8))[0]) for _ in range(2)]
    assert values[0] != values[1] and not any(name.startswith("capture") for name in stats())


def test_adamw_in_place() -> None:
    """The same numbers; of memory that may not be written to, elsewhere."""
    rng = np.random.default_rng(0)
    given = [rng.uniform(0.1, 1, (70, 301)).astype(np.float32) for _ in range(4)]
    settings = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    wanted = [y.copy() for y in CPU.ops.adamw_step(*given, **settings)]
    read_only = given[0].copy()
    read_only.flags.writeable = False
    elsewhere = CPU.ops.adamw_step(read_only, *[a.copy() for a in given[1:]], **settings, donate=True)
    mine = [a.copy() for a in given]
    here = CPU.ops.adamw_step(*mine, **settings, donate=True)
    assert here[0] is mine[0] and here[1] is mine[2] and here[2] is mine[3] and elsewhere[0] is not read_only
    for got in (here, elsewhere):
        for a, b in zip(got, wanted, strict=True):
            assert a.tobytes() == b.tobytes()
    np.testing.assert_array_equal(mine[1], given[1])
    np.testing.assert_array_equal(read_only, given[0])
