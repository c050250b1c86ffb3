"""Options of `zoo finetune` from flags, --set and --config: which goes before which, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

COMMAND = ["finetune", "scaler", "--device", "numpy", "--quiet"]


def learned(zoo: Any, *options: Any) -> float:
    """epochs * lr + seed: what the scaler adds to 0 and says of 1."""
    code, _, err = zoo(*COMMAND, "--out", "made", *map(str, options))
    assert code == 0, err
    return float(zoo("run", "scaler", "--weights", "made", "-q", "--device", "numpy")[1])


def refused(zoo: Any, *options: Any) -> list[str]:
    code, out, err = zoo(*COMMAND, "--out", "made", *map(str, options))
    assert code == 1 and out == "" and not Path("made").exists()
    return [line.strip() for line in err.splitlines()]


def test_flags_go_before_set_before_the_file_before_defaults(zoo: Any, scaler: Path) -> None:
    Path("some.toml").write_text('model = "scaler"\nseed = 7\n[scaler]\nepochs = 10\nlr = 3\n')
    assert learned(zoo) == 2 * 0.5
    assert learned(zoo, "--config", "some.toml") == 10 * 3 + 7
    assert learned(zoo, "--config", "some.toml", "--set", "lr=2.5", "--set", "scaler.seed=0") == 25
    assert learned(zoo, "--config", "some.toml", "--set", "lr=2.5", "--lr", 1, "--set", "seed=1") == 11
    assert learned(zoo, "--config", "some.toml", "--epochs", 2) == 2 * 3 + 7, "also where the flag is the default"


def test_the_file_says_where_to_start(zoo: Any, scaler: Path) -> None:
    Path("some.toml").write_text('weights = "scaler"\nepochs = 1\nlr = 1\n')
    assert learned(zoo, "--config", "some.toml") == 6 + 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set", "epoch=3"], ["zoo: there is no option 'epoch'", "--set epoch=3", "Did you mean epochs?"]),
        (["--set", "training.batch=3"], ["zoo: there is no option 'training.batch'"]),
        (["--set", "epochs=many"], ["zoo: epochs cannot be 'many'", "--set epochs=many", "It is a whole number."]),
        (["--set", "epochs"], ["zoo: cannot set 'epochs'", "it has no =", "Write --set KEY=VALUE."]),
        (["--config", "absent.toml"], ["zoo: cannot read absent.toml", "No such file or directory"]),
        (["--config", "broken.toml"], ["zoo: cannot read broken.toml"]),
        (["--config", "picture.toml"], ["zoo: cannot read picture.toml", "it is no text"]),
        (["--config", "other.toml"], ["zoo: other.toml is of llama", "this trains scaler",
                                      "zoo finetune llama --config other.toml"]),
        (["--config", "typo.toml"], ["zoo: there is no option 'epocs'", "typo.toml, under [scaler]",
                                     "Did you mean epochs?"]),
        (["--config", "type.toml"], ["zoo: lr cannot be 'fast'", "type.toml", "It is a number."]),
        (["--config", "flag.toml"], ["zoo: epochs cannot be True", "flag.toml", "It is a whole number."]),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_told_in_three_lines(zoo: Any, scaler: Path, options: Any, told: list[str]) -> None:
    for name, text in (("broken", "epochs = = 3"), ("other", 'model = "llama"'), ("typo", "[scaler]\nepocs = 3"),
                       ("type", 'lr = "fast"'), ("flag", "epochs = true")):  # fmt: skip
        Path(f"{name}.toml").write_text(text)
    Path("picture.toml").write_bytes(b"\x89PNG\xff")
    found = refused(zoo, *options)
    assert found[: len(told)] == told and len(found) == 3


def test_what_must_be_given_may_come_from_anywhere(zoo: Any, scaler: Path) -> None:
    code, out, err = zoo("finetune", "resnet", "--quiet")
    assert code == 2 and "Missing option '--data'" in err and out == ""
    Path("some.toml").write_text('data = "nowhere"')
    for options in (["--config", "some.toml"], ["--set", "data=nowhere"]):
        code, _, err = zoo("finetune", "resnet", "--quiet", "--weights", "scaler", *options)
        assert code == 1 and "Missing" not in err
