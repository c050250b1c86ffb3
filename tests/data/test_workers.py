"""Batches made by other processes: the same bits in the same order, errors with their cause, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.core.errors import DataError, ZooError
from zoo.core.random import Generator
from zoo.data.bad import BadRow, Skipped
from zoo.data.loader import Loader
from zoo.data.workers import AHEAD, WorkerTrace

posix = pytest.mark.skipif(os.name != "posix", reason="processes are ended the POSIX way")


class Rows:
    """Rows of different kinds of arrays; those in `bad` cannot be used. Whoever reads leaves a mark in `log`."""

    def __init__(self, rows: int, bad: tuple[int, ...] = (), log: Path | None = None, broken: int = -1):
        self.rows, self.bad, self.log, self.broken = rows, bad, log, broken

    def __len__(self) -> int:
        return self.rows

    def place(self, row: int) -> str:
        return f"rows.jsonl:{row + 1}"

    def __getitem__(self, rows: np.ndarray) -> Any:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()}\n")
        for row in rows.tolist():
            if row in self.bad:
                raise BadRow(row, self.place(row), "it is torn")
            if row == self.broken:
                raise KeyError("a mistake in the data set's own code")
        x = rows[:, None] * np.arange(5, dtype=np.float32)
        return {"rows": rows, "x": np.asfortranarray(x), "view": x[:, ::2], "empty": x[:, :0], "name": "n"}


def noise(batch: Any, rng: Generator) -> Any:
    return {**batch, "x": batch["x"] + rng.normal(batch["x"].shape, device="numpy").numpy()}


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) and np.asarray(a[k]).dtype == np.asarray(b[k]).dtype for k in a
    )


def both(data: Any, batch: int = 4, **options: Any) -> tuple[Loader, Loader]:
    return Loader(data, batch, **options), Loader(data, batch, workers=2, **options)


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_batches_are_the_same_bits_in_the_same_order(part):
    plain, working = both(Rows(43), seed=5, transform=noise, part=part)
    try:
        for _ in range(2):
            count = 0
            for a, b in zip(plain, working, strict=True):
                assert same(a, b) and np.array_equal(plain.at, working.at)
                count += 1
            assert count == len(plain)
        assert plain.state() == working.state()
        for stop in (0, 3):  # left in the middle, and begun at another place while answers are on their way
            for i, _ in enumerate(working.batches(7)):
                if i == stop:
                    break
            assert all(map(same, plain.batches(3, 2), working.batches(3, 2)))
        together = list(zip(working.batches(0), working.batches(1), strict=True))  # two at a time
        assert all(same(a, b) for (a, _), b in zip(together, plain.batches(0), strict=True))
        assert all(same(a, b) for (_, a), b in zip(together, plain.batches(1), strict=True))
    finally:
        working.close()


def test_arrays_can_be_written_to():
    working = Loader((np.zeros((4, 2)),), 2, workers=1)
    for (batch,) in working:
        batch += 1
    working.close()


def test_no_more_is_read_than_is_asked_for(tmp_path):
    working = Loader(Rows(400, log=tmp_path / "log"), 4, workers=2)
    batches = working.batches()
    for _ in range(3):
        next(batches)
    time.sleep(0.5)
    readers = (tmp_path / "log").read_text().split()
    assert len(readers) <= 3 + AHEAD * 2 and len(set(readers)) == 2 and str(os.getpid()) not in readers
    working.close()


def test_errors_come_with_the_traceback_of_the_worker():
    with pytest.raises(DataError, match=r"the row rows.jsonl:6\n.*torn") as raised:
        list(Loader(Rows(8, bad=(5,)), 4, workers=2))
    assert isinstance(raised.value, BadRow) and raised.value.row == 5
    with pytest.raises(KeyError, match="own code") as other:
        list(Loader(Rows(8, broken=2), 4, workers=2))
    assert isinstance(other.value.__cause__, WorkerTrace)
    assert "test_workers.py" in str(other.value.__cause__) and "__getitem__" in str(other.value.__cause__)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(DataError, match="cannot be read by worker processes"):
        list(Loader((np.zeros(4),), 2, transform=lambda batch, rng: batch, workers=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_left_out_when_asked(tmp_path, workers):
    bad = (3, 4, 8, 9, 10, 11)
    skipped = Skipped(tmp_path)
    loader = Loader(Rows(14, bad), 4, shuffle=False, workers=workers, skipped=skipped)
    for _ in range(2):
        found = [batch["rows"].tolist() for batch in loader]
        assert found == [[0, 1, 2], [5, 6, 7], [12], [12, 13]]  # the third is made of the next row that can be read
    loader.close()
    assert sorted(skipped.rows) == sorted(f"rows.jsonl:{row + 1}" for row in bad)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == len(bad)
    assert "6 rows were skipped" in str(skipped) and "rows.jsonl:4: it is torn" in str(skipped)
    with pytest.raises(DataError, match="no row of the data can be used"):
        list(Loader(Rows(3, (0, 1, 2)), 2, skipped=Skipped()))


def test_parts_of_batches_with_bad_rows_make_up_those_of_one_process():
    def make(part: tuple[int, int]) -> list[list[int]]:
        loader = Loader(Rows(14, (3, 4, 8)), 4, seed=1, part=part, skipped=Skipped())
        return [batch["rows"].tolist() for _ in range(2) for batch in loader]

    for whole, first, second in zip(make((0, 1)), make((0, 2)), make((1, 2)), strict=True):
        half = len(whole) // 2
        assert first == whole[:half] and second == whole[half:]


def children(session: int) -> list[int]:
    """Processes of a session that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


PROGRAM = """
import sys, time
import numpy as np
from zoo.data.loader import Loader

class Slow:
    def __len__(self):
        return 1000
    def __getitem__(self, rows):
        time.sleep({delay})
        return np.zeros((2, 1 << 20))    # more than fits in a socket, so that workers wait to be read

if __name__ == "__main__":
    for batch in Loader(Slow(), 2, workers=2):
        print("ready", flush=True)
        time.sleep(0.05)
"""


@posix
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0, 30])
@pytest.mark.parametrize("group", [False, True])
def test_no_process_is_left(tmp_path, sign, delay, group):
    """However the run ends: workers may be sending, computing or waiting. Ctrl-C goes to all of them."""
    if group and sign == signal.SIGKILL:
        pytest.skip("this ends all of them by itself")
    (tmp_path / "program.py").write_text(PROGRAM.format(delay=delay))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    if delay:  # until both workers are there: beside them, there is the tracker of multiprocessing
        deadline = time.monotonic() + 30
        while len(children(run.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
    else:
        run.stdout.readline()
    assert len(children(run.pid)) >= 3
    (os.killpg if group else os.kill)(run.pid, sign)
    run.wait(20)
    deadline = time.monotonic() + 10
    while (left := children(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left
    said = run.stderr.read()
    assert said.count("Traceback") == (1 if sign == signal.SIGINT else 0), said  # that of the program alone


@posix
def test_a_worker_that_is_killed_is_noticed():
    loader = Loader(Rows(400), 4, workers=2)
    batches = loader.batches()
    next(batches)
    assert loader._team is not None
    os.kill(loader._team._processes[0].pid, signal.SIGKILL)
    with pytest.raises(ZooError, match=r"worker process .* is gone\n.*signal 9"):
        list(batches)
    assert len(list(loader.batches())) == 100  # another team does it
    loader.close()


@posix
def test_a_script_without_its_guard_is_told_so(tmp_path):
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from zoo.data.loader import Loader
        list(Loader((np.zeros(4),), 2, workers=1))
    """)
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1 and "__main__" in done.stderr and "is gone" in done.stderr
