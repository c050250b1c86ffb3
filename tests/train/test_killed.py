"""Killed at 30 moments, a run goes on 30 times, and comes to the bits of the run that nobody disturbed."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KILLS = 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_thirty_kills_change_nothing(tmp_path):
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "killed.py"), str(tmp_path / "run"), str(KILLS), "0"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *lives, last, found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == {"steps": 160, "same": {"bits": True, "history": True, "log": True, "best": True}}
    assert [life["status"] for life in lives] == [-signal.SIGKILL] * KILLS
    steps = [life["step"] for life in lives]
    assert steps == sorted(steps) and 10 < steps[-1] < 160  # nothing that was saved was ever lost
    assert last == {"status": 0, "died in": "", "half-written": [], "step": 160}
    # the moments were what they should be: within files, at their ends, and on a disk that takes its time
    half = [life for life in lives if life["half-written"]]
    assert len(half) > KILLS // 3 and sum(not life["died in"] for life in half) >= 3
    assert len({size for life in half for size in life["half-written"]}) > 5
    assert collections.Counter(life["died in"] for life in lives)["write"] > 5
