"""A training process that is told to stop, or killed, leaves a run that goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import bits, loss, make

from zoo.train import RunDirectory
from zoo.train.journal import LOG

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")

PROGRAM = """
import os, signal, sys, time
from small_run import loss, make

calls = 0
def watched(model, batch):
    global calls
    calls += model.training
    if calls == {at} and model.training:
        {act}
    return loss(model, batch)

make({out!r}, loss=watched).fit(epochs=100)
"""


def start(out: Path, at: int, act: str) -> subprocess.Popen:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    program = PROGRAM.format(out=str(out), at=at, act=act)
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("name", "code"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_stopped_process_finishes_its_step_and_goes_on_exactly(tmp_path, name, code):
    process = start(tmp_path, 5, f"os.kill(os.getpid(), signal.{name})")
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    if name == "SIGINT":
        assert f"KeyboardInterrupt: stopped after step 5; {tmp_path} holds the run, --resume goes on" in err
    resumed = make(tmp_path).resume()
    assert resumed.step == 5
    resumed.fit(steps=10)
    whole = make()
    whole.fit(steps=10)
    assert bits(resumed) == bits(whole)


def test_a_killed_process_goes_on_from_its_last_checkpoint(tmp_path):
    process = start(tmp_path, 10**9, "pass")
    deadline = time.time() + 60
    while time.time() < deadline and not RunDirectory(tmp_path).checkpoints():
        time.sleep(0.01)
    time.sleep(0.05)  # somewhere in a later epoch, or in the writing of a checkpoint
    process.kill()
    process.communicate()
    resumed = make(tmp_path).resume()
    assert resumed.step >= 8 and resumed.step % 8 == 0
    at = resumed.step + 3
    resumed.fit(steps=at)
    whole = make()
    whole.fit(steps=at)
    assert bits(resumed) == bits(whole)
    assert (tmp_path / LOG).read_text().count("\n") == at + at // 8


def test_a_second_interrupt_does_not_wait(tmp_path):
    twice = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    process = start(tmp_path, 11, twice)
    _, err = process.communicate(timeout=60)
    assert "interrupted twice" in err and process.returncode == -signal.SIGINT
    assert make(tmp_path).resume().step == 8


def test_a_stop_during_validation_validates_again_after_resume(tmp_path):
    whole = make()
    whole.fit(epochs=2)

    def interrupting(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": model(batch[0]).sum(axis=-1)}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 8"):
        make(tmp_path, metrics=interrupting).fit(epochs=2)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = make(tmp_path).resume()
    assert resumed.history == []
    resumed.fit(epochs=2)
    assert bits(resumed) == bits(whole)
    assert [e.metrics for e in resumed.history] == [e.metrics for e in whole.history]


def test_a_terminal_that_is_closed_stops_it_saved(tmp_path):
    """Whatever is said to the terminal from then on fails, and must not keep the checkpoint from being written."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    act = "pass\n    print('a line', file=sys.stderr, flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(out=str(tmp_path), at=0, act=act)],
        env={**os.environ, "PYTHONPATH": path}, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while seen.count(b"a line") < 20:
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(timeout=60) == 129
    resumed = make(tmp_path).resume()
    assert resumed.step >= 19 and not list(tmp_path.rglob("*.tmp"))
    at = resumed.step + 3
    whole = make()
    for run in (resumed, whole):
        run.fit(steps=at)
    assert bits(resumed) == bits(whole)


def test_under_nohup_it_goes_on(tmp_path):
    def hangs_up(model, batch):
        os.kill(os.getpid(), signal.SIGHUP)
        return loss(model, batch)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert make(tmp_path, loss=hangs_up).fit(steps=4) is not None
    finally:
        signal.signal(signal.SIGHUP, before)
    assert make(tmp_path).resume().step == 4


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_stop_within_an_accumulation_goes_on_exactly(tmp_path, stop):
    whole = make(accumulate=3)
    whole.fit(steps=5)
    calls = []

    def interrupting(model, batch):
        calls.append(model.training)
        if sum(calls) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    with pytest.raises(SystemExit) as end:
        make(tmp_path, accumulate=3, loss=interrupting).fit(steps=5)
    assert end.value.code == 143
    resumed = make(tmp_path, accumulate=3).resume()
    assert resumed.step == -(-stop // 3)
    resumed.fit(steps=5)
    assert bits(resumed) == bits(whole)
