"""Other people's ResNets with random weights, as they publish them; and where the real ones are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


class Others:
    """Their networks, in torch."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch", reason="torch is not installed")

    def randomised(self, net: Any, seed: int = 0) -> Any:
        """Random statistics and scales for every batch norm, so that each of its numbers is seen in the logits."""
        rng = self.torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, self.torch.nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5, generator=rng)
                module.bias.data.uniform_(-0.5, 0.5, generator=rng)
                module.running_mean.uniform_(-0.5, 0.5, generator=rng)
                module.running_var.uniform_(0.5, 2.0, generator=rng)
                module.num_batches_tracked.fill_(7)
        return net.eval()

    def arrays(self, net: Any) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}

    def logits(self, net: Any, pictures: np.ndarray) -> np.ndarray:
        """Of channels-last pictures."""
        with self.torch.no_grad():
            y = net(self.torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))
        return getattr(y, "logits", y).numpy()


@pytest.fixture(scope="session")
def others() -> Others:
    return Others()


@pytest.fixture(scope="session")
def real() -> Any:
    """A file of the real test material; the test is skipped where it is absent."""

    def find(*parts: str) -> Path:
        path = DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no real data: {path} does not exist (set ZOO_TEST_DATA)")
        return path

    return find


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 33, 38, 3)).astype(np.float32)
