"""Every port's own `finetune`, stopped in the middle of an accumulation in the middle of an epoch and resumed, is the
run that was not stopped: weights, moments, averages, data order, random numbers, what was validated, what is kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_ports import PORTS

import zoo
from zoo import port as ports
from zoo.train import RunDirectory, checkpoint

TIMES = ("seconds",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """made(port) -> weights, options; each made once."""
    found: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in found:
            found[name] = PORTS[name](tmp_path_factory.mktemp(name))
        return found[name]

    return make


def state(out: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, but times."""
    found = checkpoint.load(RunDirectory(out).checkpoints()[0])
    values: dict[str, Any] = {
        f"{group}:{path}": (array.dtype, array.shape, array.tobytes())
        for group, some in found.groups.items()
        for path, array in some.items()
    }
    facts = {name: fact for name, fact in found.facts.items() if name not in TIMES}
    facts["history"] = [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in facts["history"]]
    return values | facts


def weights(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def train(name: str, ref: Path, device: Any, **options: Any) -> Any:
    (done,) = ports.get(name).finetune(zoo.load(ref, device=device), **options)  # type: ignore[misc]
    return done


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["whole", "lora"])
@pytest.mark.parametrize("name", PORTS)
def test_some_steps_and_the_rest_are_all_of_them(
    made: Any, tmp_path: Path, device: Any, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, own = made(name)
    options = {"steps": 6, "batch": 2, "accumulate": 2, "lr": 1e-3, "ema": 0.9, "quiet": True, "seed": 5, **own}
    options |= {"lora": 2} if kind == "lora" else {}
    train(name, ref, device, out=tmp_path / "whole", **options)

    from zoo.train import learner

    calls = []

    def stopping(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # the first of the two batches of the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(*given)

    gradients = learner.gradients
    with monkeypatch.context() as patch:
        patch.setattr(learner, "gradients", stopping)
        with pytest.raises(SystemExit) as end:
            train(name, ref, device, out=tmp_path / "parts", **options)
    assert end.value.code == 143 and len(calls) == 6
    stopped = state(tmp_path / "parts")
    assert stopped["step"] == 3 and stopped["data"]["position"] > 0
    assert not weights(tmp_path / "parts")
    train(name, ref, device, out=tmp_path / "parts", resume=True, **options)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["step"] == 6 and whole["history"] and any(key.startswith("average:") for key in whole)
    assert {key for key in {**whole, **parts} if whole.get(key) != parts.get(key)} == set()
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts") and weights(tmp_path / "whole")
    if name != "stable_diffusion":  # which validates nothing
        best = [
            {path.name: path.read_bytes() for path in (tmp_path / run / "best").iterdir()} for run in ("whole", "parts")
        ]
        assert best[0] == best[1] and zoo.load(tmp_path / "parts" / "best", device=device) is not None
    moved = [key for key in whole if key.startswith("model:") and whole[key] != stopped[key]]
    assert len(moved) > 1
