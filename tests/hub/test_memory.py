"""Translating a checkpoint takes the memory of its largest tensor, not of the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.hub.safetensors import write
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.resnet.weights import TRANSFORMERS

ROOT = Path(__file__).parents[2]
PULL = """
import sys
from zoo.hub import pull

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

import zoo.resnet, huggingface_hub.hf_api
before = peak()
pull.pull("owner/name")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_of_translating_is_that_of_a_tensor(hub, weights, tmp_path) -> None:
    """Every tensor of it is turned from channels first to channels last."""
    config = ResNetConfig(layer_type="basic", hidden_sizes=(192, 576), depths=(1, 6), num_labels=2, batch_counts=False)
    spec = ResNet(config).spec()
    plan = TRANSFORMERS.export({name: np.broadcast_to(np.float32(1), p.shape) for name, p in spec.items()}, config)
    rng = np.random.default_rng(0)
    arrays = {}
    for step in plan.steps:
        shape = plan.apply(step, np.broadcast_to(np.float32(0), spec[step.source].shape)).shape
        arrays[step.target] = rng.random(shape, np.float32)
    largest, total = max(a.nbytes for a in arrays.values()), sum(a.nbytes for a in arrays.values())
    assert total > 10 * largest and largest > 10e6
    write(tmp_path / "published.safetensors", arrays)
    hub.revisions["main"] = {"model.safetensors": (tmp_path / "published.safetensors").read_bytes()}
    done = subprocess.run([sys.executable, "-c", PULL], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    used = int(done.stdout.split()[-1])
    assert used < 1.1 * largest + 64e6, f"{used / 1e6:.0f} MB for {total / 1e6:.0f} MB, largest {largest / 1e6:.0f} MB"
