"""`zoo bench` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo.core.device import device

ROOT = Path(__file__).parents[2]


@pytest.fixture
def zoo(capsys):
    from zoo.cli.main import main

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["bench", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def told(result) -> list[str]:
    assert result[0] == 1 and result[1] == "" and "Traceback" not in result[2]
    return result[2].strip().splitlines()


def test_errors_are_three_lines(zoo, tmp_path):
    found = told(zoo("mnist_cn"))
    assert len(found) == 3 and "mnist_cn" in found[0] and "mnist_cnn" in found[2] and "kernels" in found[2]
    found = told(zoo("kernels", "--only", "no such case"))
    assert len(found) == 3 and "'no such case'" in found[0] and "resnet50" in found[1] and "--list" in found[2]
    assert len(told(zoo("kernels", "--save", str(tmp_path / "none" / "b.json")))) == 3


def test_list_shows_the_cases(zoo):
    code, out, _ = zoo("kernels", "--only", "attention", "--list", "--json")
    assert code == 0 and len(json.loads(out)["cases"]) == 4


@pytest.mark.usefixtures("native")
class TestMeasuring:
    CASE = ("mnist_cnn", "--only", "batch 1", "--seconds", "0", "--threads", "1")

    def test_roof(self, zoo, monkeypatch):
        monkeypatch.setattr("zoo.bench.machine.LONG", 0.001)
        code, out, _ = zoo("roof", "--json")
        ceilings = json.loads(out)["ceilings"]
        assert code == 0 and set(ceilings) == {"fma", "int8", "bf16", "read", "copy"}
        assert all(rate > 0 for kind, rate in ceilings.items() if kind not in ("int8", "bf16"))
        assert (ceilings["int8"] > 0) == ("avx512vnni" in device("cpu").native.features())
        assert (ceilings["bf16"] > 0) == ("avx512bf16" in device("cpu").native.features())

    def test_text_saved_and_taken_up_again(self, zoo, tmp_path):
        save, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
        code, out, err = zoo(*self.CASE, "--save", str(save), "--chart", str(chart))
        heading, row = out.strip().splitlines()
        assert code == 0 and heading.startswith("case") and row.startswith("mnist_cnn batch 1 ")
        assert chart.read_text().startswith("<svg") and "cases: 1" in err
        before = json.loads(save.read_text())
        code, out, _ = zoo(*self.CASE, "--save", str(save), "--json")
        again = json.loads(out)["rows"]
        assert code == 0 and (again == before["rows"] or not before["rows"][0]["clean"]), "measured once"

    def test_a_file_of_another_machine_is_left_alone(self, zoo, tmp_path):
        save = tmp_path / "bench.json"
        assert zoo(*self.CASE, "--save", str(save), "--quiet")[0] == 0
        text = save.read_text().replace('"threads": 1', '"threads": 3')
        save.write_text(text)
        found = told(zoo(*self.CASE, "--save", str(save)))
        assert len(found) == 3 and "threads: 3; here: 1" in found[1] and save.read_text() == text

    def test_ctrl_c_leaves_no_process(self, tmp_path):
        command = [sys.executable, "-m", "zoo", "bench", "mnist_cnn", "--seconds", "60"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children = wait_for_children(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130 and "Traceback" not in err
        assert gone(children)

    def test_killed_it_leaves_no_process(self):
        command = [sys.executable, "-m", "zoo", "bench", "mnist_cnn", "--seconds", "60"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children = wait_for_children(process.pid)
        process.kill()
        process.wait()
        assert gone(children)


def wait_for_children(parent: int) -> list[int]:
    """Those of a run that has begun to measure."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc")
    listing = Path(f"/proc/{parent}/task/{parent}/children")
    for _ in range(400):
        if children := [int(pid) for pid in listing.read_text().split()]:
            time.sleep(0.3)
            return children
        time.sleep(0.05)
    raise AssertionError("no candidate was started")


def gone(pids: list[int]) -> bool:
    """Ended within ten seconds; one that only waits to be reaped has."""
    for _ in range(200):
        states = [state(pid) for pid in pids]
        if all(s in ("", "Z", "X") for s in states):
            return True
        time.sleep(0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return False


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
