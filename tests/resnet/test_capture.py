"""A network that is run on one picture after the other is recorded and replayed: the bits of the network itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.capture import Capture
from zoo.core.stats import stats
from zoo.core.testing.emulator import emulated
from zoo.nn import quantize
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet


def agrees(model: ResNet, size: int) -> Any:
    """-> what was recorded."""
    network = Capture(model, model.device)
    stats(reset=True)
    for seed in range(3):
        seen = np.random.default_rng(seed).normal(size=(1, size, size, 3)).astype(np.float32)
        found = network(seen).numpy().copy()
        assert found.tobytes() == model(zoo.tensor(seen, device=model.device)).numpy().tobytes()
    assert stats()["capture.recorded"] == 1 and stats()["capture.replayed"] == 2
    ((_, replay),) = network._known.values()
    return replay


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_on_cpu(layer_type: str, rounded: bool) -> None:
    """Every convolution and the pooling are native calls; Python runs what follows the mean over pixels alone."""
    device = zoo.device("cpu")
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=(32, 64), depths=(1, 2), layer_type=layer_type, num_labels=10
    )  # fmt: skip
    model = ResNet(config).init(0, device).eval()
    if rounded:
        quantize(model, "int8")
    replay = agrees(model.prepare(), 32)
    assert sum(type(part) is not tuple for part in replay.parts) <= 1


def test_on_an_emulated_gpu() -> None:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1), layer_type="basic", num_labels=10, small_stem=True
    )  # fmt: skip
    agrees(ResNet(config).init(0, emulated()).eval().prepare(), 8)
