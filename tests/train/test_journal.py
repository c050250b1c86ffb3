"""What a run leaves: the log, the table, its facts, TensorBoard's events; of resumed runs too."""

from __future__ import annotations

import csv
import os

import numpy as np
import pytest
from small_run import loss, make

import zoo
from zoo.train import tensorboard
from zoo.train.journal import FACTS, LOG, TABLE, Table, read


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_the_log_says(tmp_path):
    learner = make(tmp_path, log_every=3)
    learner.fit(epochs=2)
    found = read(tmp_path)
    assert [r["step"] for r in found.steps] == [3, 6, 9, 12, 15] and [r["step"] for r in found.epochs] == [8, 16]
    table = rows(tmp_path / TABLE)
    assert [int(r["step"]) for r in table] == [3, 6, 8, 9, 12, 15, 16]
    for record, row in zip(found.steps, [r for r in table if r["loss"]], strict=True):
        assert {k: float(v) for k, v in row.items() if v} == record
        assert record["grad_norm"] > 0 and record["memory"] > 1e6 and record["examples_per_second"] > 0
    for epoch, row in zip(learner.history, [r for r in table if r["epoch_loss"]], strict=True):
        assert float(row["epoch_loss"]) == epoch.loss and row["lr"] == ""
        assert {k: float(row[f"validation_{k}"]) for k in epoch.metrics} == epoch.metrics


def test_a_resumed_run_cuts_log_and_table_and_goes_on(tmp_path):
    make(tmp_path).fit(steps=10)
    with (tmp_path / LOG).open("a") as file:  # it went on, and was killed in the middle of a line
        file.write('{"step": 11, "epoch": 2, "loss": 7.5}\n{"step": 12, "ep')
    with (tmp_path / TABLE).open("a") as file:
        file.write("11,2,7.5\n12,")
    make(tmp_path).resume().fit(steps=14)
    table, log = rows(tmp_path / TABLE), read(tmp_path)
    assert [int(r["step"]) for r in table] == [*range(1, 9), 8, *range(9, 15)]
    assert [r["step"] for r in log.steps] == list(range(1, 15)) and log.steps[10]["loss"] != 7.5
    assert [float(r["loss"]) for r in table if r["loss"]] == [r["loss"] for r in log.steps]


def test_the_speed_is_of_the_steps_alone(tmp_path):
    import time

    def slow(model, batch):
        time.sleep(0.05)
        return {"loss": loss(model, batch)}

    make(tmp_path, metrics=slow, unit="tokens", counts=lambda batch: 10 * len(batch[0])).fit(epochs=2)
    steps = read(tmp_path).steps
    assert all(r["examples_per_second"] > 16 / 0.15 for r in steps)  # with validation's four batches it would be below
    assert all(r["tokens_per_second"] == pytest.approx(10 * r["examples_per_second"], abs=0.1) for r in steps)


def test_the_facts_say_what_was_trained_and_how_it_ended(tmp_path):
    make(tmp_path / "a").fit(steps=3)
    facts = read(tmp_path / "a").facts
    assert facts["name"] == "Net" and facts["total"] == 3 and facts["settings"]["seed"] == 0
    assert facts["ended"] == "finished" and facts["started"] <= facts["ended_at"] and facts["pid"] == os.getpid()
    assert facts["versions"]["numpy"] == np.__version__ and facts["device"].startswith("numpy")
    with pytest.raises(zoo.ZooError):
        make(tmp_path / "b", loss=lambda model, batch: loss(model, batch) * float("nan")).fit(steps=3)
    assert read(tmp_path / "b").facts["ended"].startswith("training diverged: the loss is nan at step 1")


def test_what_is_no_run_says_so_and_one_without_facts_is_still_read(tmp_path):
    with pytest.raises(zoo.DataError, match="holds no run"):
        read(tmp_path)
    with pytest.raises(zoo.DataError, match="holds no run") as caught:
        read(tmp_path / "nowhere")
    assert caught.value.why == "no such directory"
    make(tmp_path).fit(steps=2)
    (tmp_path / FACTS).write_text('{"name": "N')
    assert read(tmp_path).facts == {} and len(read(tmp_path).steps) == 2


def test_a_table_takes_new_columns(tmp_path):
    table = Table(tmp_path / "t.csv", [])
    table.write({"a": 1})
    table.write({"a": 2, "b": "x, y"})
    table.write({"b": "z"})
    table.close()
    assert (tmp_path / "t.csv").read_text() == 'a,b\n1,\n2,"x, y"\n,z\n'


def test_tensorboard_reads_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(tmp_path).fit(steps=10)
    # a run that was killed after step 12: its file has what the resumed one does again
    killed = make(tmp_path).resume()
    killed.save = lambda: None
    killed.fit(steps=12)
    make(tmp_path).resume().fit(steps=16)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3
    events = EventAccumulator(str(tmp_path)).Reload()
    log = read(tmp_path)
    for name in ("loss", "lr", "grad_norm", "memory", "examples_per_second"):
        found = events.Scalars(f"train/{name}")
        assert [e.step for e in found] == [r["step"] for r in log.steps] == list(range(1, 17)), name
        assert [e.value for e in found] == pytest.approx([r[name] for r in log.steps], rel=1e-6), name  # float32
    found = events.Scalars("validation/accuracy")
    assert [(e.step, e.value) for e in found] == [(r["step"], np.float32(r["metrics"]["accuracy"])) for r in log.epochs]


def test_without_tensorboard_there_are_no_event_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "installed", lambda: False)
    make(tmp_path).fit(steps=2)
    assert not list(tmp_path.glob("events*"))


def test_the_checksum_is_crc32c():
    # RFC 3720, B.4: 32 bytes of zeros give 8a9136aa; masked: rotated right by 15, plus a282ead8
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensorboard._masked(bytes(32)) == masked.to_bytes(4, "little")
