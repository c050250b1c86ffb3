"""Networks of convolutions, with the weights that ship with the repository, on the emulated GPU: as on numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.autodiff import Autodiff
from zoo.core.device import device as device_of
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import emulated
from zoo.mnist_cnn.finetune import loss
from zoo.train.optim import AdamW

ROOT = Path(__file__).parents[3]
GPU, NUMPY = emulated(), device_of("numpy")


def shipped(name: str) -> Any:
    return zoo.load(str(ROOT / "weights" / name), device="numpy")


def on(device: Any, *arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(device.from_host(a), device) for a in arrays]


def both(model: Any, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The answer on the GPU, numpy's, and what ran."""
    want = model(*on(NUMPY, *arrays)).numpy()
    stats(reset=True)
    got = model.to(GPU)(*on(GPU, *arrays)).numpy()
    return got, want, stats()


@pytest.fixture(params=["half", "wide"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which convolutions run beside weights in half precision: what goes through is as narrow, or left in float32."""
    if request.param == "wide":
        monkeypatch.setattr(GPU, "off", {"activations"})
    return {"half": "mma", "wide": "mixed"}[request.param]


def test_the_shipped_resnet_answers_as_on_numpy(kind: str) -> None:
    """In float16 what every layer gives is rounded by 0.03 %, of ten in a row."""
    pictures = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    got, want, seen = both(shipped("resnet"), pictures)
    assert seen[f"cuda.conv_{kind}"] > 8
    assert abs(got - want).max() <= (5e-3 if kind == "mma" else 1e-5) * abs(want).max()
    assert (got.argmax(-1) == want.argmax(-1)).all()


def test_a_step_of_the_shipped_unet(kind: str) -> None:
    rng = np.random.default_rng(1)
    unet = shipped("stable_diffusion").unet
    latents, text = (rng.normal(size=s).astype(np.float32) for s in ((2, 8, 8, 4), (2, 7, 64)))
    got, want, seen = both(unet, latents, np.array([500], np.int32), text)
    assert seen[f"cuda.conv_{kind}"] > 8
    assert abs(got - want).max() <= (1e-2 if kind == "mma" else 2e-5) * abs(want).max()


def test_a_training_step_of_the_digits_network() -> None:
    """Loss, gradients and what AdamW makes of the weights; without dropout."""
    rng = np.random.default_rng(2)
    model = shipped("mnist_cnn").astype("float32")
    pictures, labels = rng.random((3, 28, 28)).astype(np.float32), np.array([3, 1, 4], np.int32)

    def step(device: Any) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
        live = model.to(Autodiff(device)).eval()
        told = loss(live, on(device, pictures, labels))
        gradients = told.backward()
        by_name = {name: gradients[p] for name, p in live.parameters().items()}
        AdamW(weight_decay=0.1).step(live, by_name, lr=1e-3)
        return told.item(), *({k: v.numpy() for k, v in d.items()} for d in (by_name, live.state()))

    stats(reset=True)
    got = step(GPU)
    seen = stats()
    assert seen["cuda.conv_fma"] >= 2 and seen["cuda.conv_weight_fma"] == 2
    want = step(NUMPY)
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    for mine, theirs in zip(got[1:], want[1:], strict=True):
        for name, value in theirs.items():
            assert abs(mine[name] - value).max() <= 1e-5 * abs(value).max() + 1e-9, name
