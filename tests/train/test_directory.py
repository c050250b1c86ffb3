"""The directory of a run: rotation, going back to what is whole, the lock, disks that are full or read-only."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import bits, blobs, make

import zoo
from zoo.hub import files
from zoo.hub.safetensors import write
from zoo.train import Loader, RunDirectory, Step, Watcher, checkpoint
from zoo.train.directory import SaveEvery


def steps(directory: Path) -> list[int]:
    return [checkpoint.load(path).facts["step"] for path in RunDirectory(directory).checkpoints()]


def test_the_newest_are_kept(tmp_path):
    make(tmp_path, save_every=3).fit(steps=8)
    assert steps(tmp_path) == [8, 6]
    make(tmp_path, save_every=1, keep=4).resume().fit(steps=10)
    assert steps(tmp_path) == [10, 9, 8, 6]
    make(tmp_path, keep=1, save_every=None).resume().fit(epochs=2)
    assert steps(tmp_path) == [16]
    with pytest.raises(zoo.ZooError, match="cannot keep 0 checkpoints"):
        make(tmp_path, keep=0)


def test_a_run_saves_after_steps_and_after_time(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(RunDirectory, "save", lambda self, step, groups, facts: saved.append(step))
    make(tmp_path, save_every="3").fit(epochs=2)
    assert saved == [3, 6, 8, 11, 14, 16]  # at the end of an epoch once, after its validation
    saved.clear()
    make(tmp_path, save_every=None).fit(steps=12)
    assert saved == [8, 12]
    clock = iter(range(1000))
    monkeypatch.setattr("zoo.train.directory.time.monotonic", lambda: next(clock))
    saved.clear()
    make(tmp_path, save_every="4s").fit(steps=7)  # a second for each look at the clock
    assert saved == [4, 7]


@pytest.mark.parametrize("pace", ["often", "10 parsecs", "0", "1.5", "-3", "", "min"])
def test_a_pace_that_is_none_is_refused(pace):
    with pytest.raises(zoo.ZooError, match="cannot save every") as error:
        SaveEvery(pace)
    assert "500" in error.value.fix and "10min" in error.value.fix


def test_a_state_between_the_epochs_is_part_of_the_run(tmp_path):
    """Saving changes nothing, and any of the checkpoints leads to the same end."""
    whole = make()
    whole.fit(steps=20)
    make(tmp_path / "run", save_every=1, keep=99).fit(steps=17)
    assert steps(tmp_path / "run") == list(range(17, 0, -1))
    for drop in range(16):  # the newest goes, one after the other
        again = tmp_path / "again"
        shutil.copytree(tmp_path / "run", again)
        resumed = make(again).resume()
        assert resumed.step == 17 - drop
        resumed.fit(steps=20)
        assert bits(resumed) == bits(whole)
        shutil.rmtree(again)
        RunDirectory(tmp_path / "run").checkpoints()[0].unlink()


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "web page"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path, capsys, harm):
    whole = make()
    whole.fit(steps=12)
    make(tmp_path, save_every=3).fit(steps=8)
    newest, before = RunDirectory(tmp_path).checkpoints()
    content = newest.read_bytes()
    harmed = {"cut": content[:-100], "empty": b"", "web page": b"<html>" * 99}.get(harm)
    if harmed is None:
        harmed = bytearray(content)
        harmed[-5] ^= 1
    newest.write_bytes(harmed)
    resumed = make(tmp_path, quiet=False).resume()
    said = capsys.readouterr().err
    assert f"{newest}: " in said and f"going on from {before}" in said
    resumed.fit(steps=12)
    assert bits(resumed) == bits(whole)
    assert newest.with_name(newest.name + ".damaged").read_bytes() == bytes(harmed)  # its step came again
    for path in RunDirectory(tmp_path).checkpoints():
        path.write_bytes(b"")
    with pytest.raises(zoo.WeightsError, match="cannot resume") as error:
        make(tmp_path).resume()
    assert error.value.why.count("it is empty") == 2 and "Begin anew" in error.value.fix


def test_another_version_is_refused_and_not_skipped(tmp_path):
    make(tmp_path, save_every=3).fit(steps=8)
    newest = RunDirectory(tmp_path).checkpoints()[0]
    write(newest, {"model:w": np.ones(1)}, {checkpoint.KEY: '{"version": 99}'})
    with pytest.raises(zoo.WeightsError) as error:
        make(tmp_path).resume()
    assert "version 99" in error.value.why


def test_a_directory_of_weights_is_not_overwritten(tmp_path):
    write(tmp_path / "model.safetensors", {"w": np.ones(3)})
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(zoo.ZooError, match="holds weights already") as error:
        make(tmp_path).fit(steps=1)
    assert "model.safetensors" in error.value.why and "another directory" in error.value.fix
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_what_does_not_fit_leaves_the_learner_as_it_was(tmp_path):
    make(tmp_path).fit(steps=3)
    other = make(tmp_path, data=Loader(blobs(123, 1), 16, seed=8))
    before = bits(other)
    with pytest.raises(zoo.DataError, match="seed was 7 and is 8"):
        other.resume()
    assert bits(other) == before
    wide = make(tmp_path, model=zoo.nn.Sequential(zoo.nn.Linear(6, 3)).init(0, "numpy"))
    with pytest.raises(zoo.WeightsError):
        wide.resume()
    assert wide.step == 0 and wide.data.position == 0


HOLD = """
import sys
from zoo.train import RunDirectory
with RunDirectory(sys.argv[1]).held(resumed=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": path}}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(zoo.ZooError, match="another process is training into") as error:
            make(tmp_path).fit(steps=1)
        assert "another directory" in error.value.fix and not RunDirectory(tmp_path).checkpoints()
        other.kill()
        other.wait()
    make(tmp_path).fit(steps=1)  # the lock goes with who held it
    make(tmp_path).resume().fit(steps=2)


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    make(tmp_path).fit(steps=1)
    left = [tmp_path / ".config.toml.12ab.tmp", tmp_path / "checkpoints" / ".step-00000002.safetensors.34cd.tmp"]
    for path in left:
        path.write_bytes(b"half")
    make(tmp_path).resume().fit(steps=2)
    assert not any(path.exists() for path in left)


def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    make(tmp_path).fit(steps=3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Fills(Watcher):
        def stepped(self, step: Step) -> None:
            patch.setattr(files.os, "fsync", full)

    with monkeypatch.context() as patch, pytest.raises(zoo.WeightsError, match="cannot write") as error:
        make(tmp_path, watchers=[Fills()]).resume().fit(steps=5)
    assert "the disk is full" in error.value.why and "step-00000003" in error.value.why
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
    whole, resumed = make(), make(tmp_path).resume()
    for run in (whole, resumed):
        run.fit(steps=5)
    assert bits(resumed) == bits(whole)


def test_a_place_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    for out in [tmp_path / "file", *([Path("/sys/zoo")] if sys.platform == "linux" else [])]:
        learner = make(out)
        with pytest.raises(zoo.WeightsError, match=f"cannot write {out}") as error:
            learner.fit(steps=1)
        assert learner.step == 0 and "Choose" in error.value.fix


def test_the_best_epoch_is_exported(tmp_path):
    values = iter([3.0, 2.0, float("nan"), 2.5, 2.0, 1.0])
    exported = []

    def metrics(model, batch):
        return {"loss": model(batch[0]).sum(axis=-1) * 0 + value[0]}

    value = [0.0]
    learner = make(tmp_path, metrics=metrics, export=lambda model, where: exported.append((learner.step, where)))
    validate = learner.validate

    def next_value(stop=None):
        value[0] = next(values)
        return validate(stop)

    learner.validate = next_value
    learner.fit(epochs=6)
    assert exported == [(at, tmp_path / "best") for at in (8, 16, 48)]
    assert zoo.train.best.best(learner.history).epoch == 6 and zoo.train.best.best([]) is None
