"""Checkpoints: exact round trip, and refusal of what is none."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.hub.safetensors import write
from zoo.train import checkpoint


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "c.safetensors"
    groups = {
        "model": {"a.b": np.array([1 / 3, -0.0, 5e-45], np.float32), "h": np.array([[1.5]]).astype(zoo.bfloat16)},
        "optimizer": {"a.b/exp_avg": np.arange(3.0), "a.b/step": np.array(7, np.int64)},
    }
    facts = {"step": 3, "seconds": 0.1 + 0.2, "rng": [2**64 - 1, 2**60], "none": None}
    checkpoint.save(path, groups, facts)
    found = checkpoint.load(path)
    assert {k: found.facts[k] for k in facts} == facts
    for group, tensors in groups.items():
        assert set(found.groups[group]) == set(tensors)
        for name, a in tensors.items():
            b = found.groups[group][name]
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"model": {"w": np.ones(3)}}, {"step": 1})
    with pytest.raises(zoo.ZooError, match="w holds values that are not finite") as caught:
        checkpoint.save(path, {"model": {"w": np.array([1, np.nan, 1])}}, {"step": 2})
    assert "step 2" in caught.value.why
    with pytest.raises(zoo.WeightsError, match="dtype"):
        checkpoint.save(path, {"model": {"w": np.ones(3, np.complex64)}}, {"step": 2})
    assert checkpoint.load(path).facts["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(zoo.WeightsError, match="no such file"):
        checkpoint.load(path)
    write(path, {"w": np.ones(3)})
    with pytest.raises(zoo.WeightsError, match="nothing about a run"):
        checkpoint.load(path)
    write(path, {"w": np.ones(3)}, {checkpoint.KEY: '{"version": 99}'})
    with pytest.raises(zoo.WeightsError, match="version 99"):
        checkpoint.load(path)
    checkpoint.save(path, {"model": {"w": np.ones(300)}}, {"step": 1})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(zoo.WeightsError, match="cannot read"):
        checkpoint.load(path)
