"""The options that every training has: what becomes of them, and who may not have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
from small_run import Net, blobs, loss

from zoo.core.errors import ZooError
from zoo.options import REQUIRED, Option, convert, find, options
from zoo.train import AdamW, Loader, Training, constant, cosine, linear, one_cycle
from zoo.train.recipe import recipe
from zoo.train.state import settings


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (Training(lr=1e-3), cosine(1e-3, 40, warmup=4, final=1e-4)),
        (Training(lr=1e-3, schedule="linear", warmup=0.25), linear(1e-3, 40, warmup=10, final=1e-4)),
        (Training(lr=1e-3, schedule="constant", warmup=3), constant(1e-3, warmup=3)),
        (Training(lr=1e-3, schedule="one_cycle"), one_cycle(1e-3, 40)),
        (Training(lr=1e-3, schedule="one_cycle", warmup=8), one_cycle(1e-3, 40, 0.2)),
        (Training(lr=1e-3, schedule="one_cycle", warmup=0), one_cycle(1e-3, 40, 0.0)),
    ],
)
def test_the_schedule_is_the_one_named(training: Training, expected: Any) -> None:
    rates = training.rates(40)
    assert [rates(step) for step in range(45)] == [expected(step) for step in range(45)]
    assert max(rates(step) for step in range(40)) <= 1e-3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one_cycle", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("warmup", [None, 0, 0.2, 0.5, 1, 20])
def test_short_runs_have_rates(schedule: Any, steps: int, warmup: float | None) -> None:
    rates = Training(lr=0.5, schedule=schedule, warmup=warmup).rates(steps)
    assert all(0 < rates(step) <= 0.5 for step in range(steps))


def test_the_learner_is_made_of_the_options() -> None:
    rows = Loader(blobs(50, 0), 10)
    training = Training(epochs=4, lr=0.1, clip=0.0, ema=0.5, accumulate=2, seed=3, out=Path("x"))
    learner = training.learner(Net().init(0, "numpy"), rows, loss=loss, optimizer=AdamW())
    assert (learner.clip, learner.accumulate, learner.seed, learner.out) == (None, 2, 3, Path("x"))
    assert learner.average is not None and learner.average.decay == 0.5
    assert training.total(rows) == 4 * 3 and Training(steps=7).total(rows) == 7
    kept = settings(learner)
    assert kept["lr"] == 0.1 and kept["epochs"] == 4 and not {"out", "resume", "log_every", "checkpoint"} & set(kept)


def test_steps_end_a_run() -> None:
    training = Training(steps=7, lr=0.01, out=None)  # type: ignore[arg-type]
    learner = training.learner(
        Net().init(0, "numpy"), Loader(blobs(50, 0), 10), loss=loss, optimizer=AdamW(), quiet=True
    )
    training.fit(learner)
    assert learner.step == 7 and len(learner.history) == 1


def test_a_default_rate_gives_way() -> None:
    assert Training().at(0.5).lr == 0.5 and Training(lr=0.1).at(0.5).lr == 0.1
    with pytest.raises(ValueError, match="no learning rate"):
        Training().rates(3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"batch": -1}, "batch cannot be -1"),
        ({"lr": float("nan")}, "lr cannot be nan"),
        ({"ema": 1.0}, "ema cannot be 1.0"),
        ({"lora": -2}, "lora cannot be -2"),
        ({"lora": 2, "without": ("lora",)}, "lora cannot be chosen"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ZooError, match=says):
        Training(**wrong)


@recipe("port")
def port(
    model: Any, *, data: Path, mode: Literal["a", "b"] = "a",
    training: Training = Training(epochs=2, batch=3, without=("lora",)),  # noqa: B008
) -> tuple[Any, ...]:  # fmt: skip
    """Trains.

    mode: how
    batch: rows
    """
    return model, data, mode, training


def test_options_are_given_by_name_or_whole() -> None:
    assert port(1, data=2, epochs=5)[3] == Training(epochs=5, batch=3, without=("lora",))
    assert port(1, data=2, training=Training(epochs=7), batch=9)[3] == Training(epochs=7, batch=9)
    assert port(1, data="a/b", out="c")[1:] == (
        Path("a/b"),
        "a",
        Training(2, batch=3, out=Path("c"), without=("lora",)),
    )
    with pytest.raises(TypeError, match="epoch"):
        port(1, data=2, epoch=5)
    with pytest.raises(ZooError, match="lora cannot be chosen"):
        port(1, data=2, lora=5)


def test_options_are_read_from_the_signature() -> None:
    summary, found = options(port, {"model"})
    by_name = {each.name: each for each in found}
    assert summary == "Trains." and "lora" not in by_name and "without" not in by_name
    assert by_name["data"].default is REQUIRED and by_name["mode"].group is None
    assert (by_name["batch"].default, by_name["batch"].help, by_name["batch"].group) == (3, "rows", "training")
    assert by_name["epochs"].help == "passes over the data"
    told = [name for name, each in by_name.items() if not each.help]
    assert told == ["data"], "every option of Training has its line in the docstring"


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (int, "3", 3), (int, 3, 3), (int, "many", None), (int, 2.5, None), (int, True, None),
        (float, "1e-3", 1e-3), (float, 2, 2.0), (float, "x", None),
        (bool, "true", True), (bool, "no", False), (bool, "maybe", None), (bool, 1, None),
        (str, "a b", "a b"), (Path, "a/b", Path("a/b")), (Path, 3, None),
        (Literal["cosine", "linear"], "linear", "linear"), (Literal["cosine", "linear"], "x", None),
        (float | None, "0.5", 0.5), (list[int], "1,2", [1, 2]), (list[str], ["a"], ["a"]), (list[int], [1.5], None),
    ],
)  # fmt: skip
def test_values_take_the_type_of_their_option(kind: Any, given: Any, value: Any) -> None:
    option = Option("it", kind, None, "")
    if value is None:
        with pytest.raises(ZooError, match="it cannot be") as told:
            convert(option, given, "somewhere")
        assert len(str(told.value).splitlines()) == 3
    else:
        found = convert(option, given, "somewhere")
        assert found == value and type(found) is type(value)


def test_none_is_a_value_of_what_may_be_left_out() -> None:
    assert convert(Option("it", float | None, 1.0, ""), "none", "") is None
    assert convert(Option("it", Path | None, None, ""), "none", "") is None
    assert convert(Option("it", str, "", ""), "none", "") == "none"


def test_unknown_names_are_told_with_the_nearest() -> None:
    known = {each.name: each for each in options(port, {"model"})[1]}
    assert find("training.epochs", known, "").name == find("epochs", known, "").name == "epochs"
    assert find("log-every", known, "").name == "log_every"
    with pytest.raises(ZooError) as told:
        find("epoch", known, "--set epoch=3")
    assert str(told.value).splitlines()[2] == "  Did you mean epochs?"


def test_every_option_is_a_field_with_a_default() -> None:
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(Training))
