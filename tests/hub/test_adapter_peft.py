"""Adapters of matrices and convolutions against PEFT: what they give, how they learn, their files, and what is merged.

The network is the PyTorch example's MNIST CNN in torch, whose first matrix after the convolutions reads channels first.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import zoo
from zoo.core.tensor import Tensor
from zoo.hub import adapter, load, save
from zoo.hub.export import export
from zoo.hub.safetensors import read
from zoo.mnist_cnn.config import MnistConfig
from zoo.mnist_cnn.model import MEAN, STD, MnistCNN
from zoo.nn import lora, losses
from zoo.train import SGD, AdamW, gradients

CONFIG = MnistConfig(channels=(4, 6), kernel_size=5, hidden_size=11, pool_after_conv1=True)
LAYERS = ["conv1", "conv2", "fc1", "fc2"]
PICTURES = np.random.default_rng(0).random((6, 28, 28), np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 6).astype(np.int32)


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch", reason="torch is not installed; PEFT runs on it")
    return pytest.importorskip("peft", reason="peft is not installed; it is the reference")


@pytest.fixture
def base(tmp_path):
    """As published."""
    save(MnistCNN(CONFIG).init(0, "numpy"), tmp_path / "saved", port="mnist_cnn")
    return export(tmp_path / "saved", tmp_path / "base").directory


def in_torch(base):
    import torch
    from torch.nn import functional

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            first, second = CONFIG.channels
            self.conv1 = torch.nn.Conv2d(1, first, 5)
            self.conv2 = torch.nn.Conv2d(first, second, 5)
            self.fc1 = torch.nn.Linear(CONFIG.features, CONFIG.hidden_size)
            self.fc2 = torch.nn.Linear(CONFIG.hidden_size, 10)

        def forward(self, x):
            x = functional.max_pool2d(functional.relu(self.conv1((x[:, None] - MEAN) / STD)), 2)
            x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
            return self.fc2(functional.relu(self.fc1(x.flatten(1))))

    net = Net()
    with read(base / "model.safetensors") as tensors:
        net.load_state_dict({name: torch.tensor(np.array(array)) for name, array in tensors.items()})
    return net.eval()


def drawn(model, seed: int = 1):
    """The adapter's numbers, so that it does something."""
    rng = np.random.default_rng(seed)
    for path, parameter in model.parameters().items():
        if not path.endswith("vector"):
            model.set(path, zoo.tensor(rng.normal(0, 0.2, parameter.shape).astype(np.float32), device=model.device))
    return model


def ours_of(model) -> np.ndarray:
    return model(zoo.tensor(PICTURES, device=model.device)).numpy()


def theirs_of(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(PICTURES)).numpy()


PATTERNS = {"rank_pattern": {"conv2": 3}, "alpha_pattern": {"fc1": 3, "conv2": 5}}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("more", [{}, PATTERNS, {"use_rslora": True}, {"target_modules": r"conv\d|.*fc1"},
                                  {"exclude_modules": ["fc1"], "use_rslora": True, "rank_pattern": {"conv2": 3}}],
                         ids=["plain", "patterns", "rslora", "regex", "without"])  # fmt: skip
def test_we_read_what_peft_writes_and_merge_as_it_does(peft, base, tmp_path, dora, more):
    import torch

    settings = {"r": 2, "lora_alpha": 5, "target_modules": LAYERS, "use_dora": dora, **more}
    theirs = peft.get_peft_model(in_torch(base), peft.LoraConfig(**settings)).eval()
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.copy_(torch.tensor(rng.normal(0, 0.3, tuple(p.shape)).astype(np.float32)))
            elif "magnitude" in name:
                p.mul_(torch.tensor(rng.uniform(0.5, 2, tuple(p.shape)).astype(np.float32)))
    theirs.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    (tmp_path / "theirs" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    expected = theirs_of(theirs)
    for device in ("numpy", "cpu"):
        ours = load(tmp_path / "theirs", device=device)
        assert all(layer.lora_magnitude_vector is not None for layer in lora.layers(ours).values()) == dora
        # float32 through four layers, logits of a few units
        assert np.abs(ours_of(ours) - expected).max() < 2e-5 * np.abs(expected).max()
    assert np.abs(expected - theirs_of(in_torch(base))).max() > 0.1  # it does something

    merged = export(tmp_path / "theirs", tmp_path / "merged", merge=True).directory
    whole = theirs.merge_and_unload().state_dict()
    with read(merged / "model.safetensors") as tensors:
        assert set(tensors) == set(whole)
        for name, array in tensors.items():
            wanted = whole[name].numpy()
            # the change is a sum of `rank` products, of which the last bits differ
            assert array.shape == wanted.shape and np.abs(array - wanted).max() < 1e-6 * np.abs(wanted).max(), name


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_reads_what_we_write(peft, base, tmp_path, dora):
    ours = load(base, device="numpy")
    lora.attach_to(ours, {"conv1": (1, 2.0), "conv2": (3, 0.5), "fc1": (3, 0.7), "fc2": (3, 0.5)}, dora=dora)
    adapter.save(drawn(ours), tmp_path / "ours", str(base), task_type=None)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["rank_pattern"] == {"^conv1": 1} and config["use_dora"] is dora
    read_by_peft = peft.PeftModel.from_pretrained(in_torch(base), tmp_path / "ours").eval()
    expected = theirs_of(read_by_peft)
    assert np.abs(ours_of(ours) - expected).max() < 2e-5 * np.abs(expected).max()
    again = load(tmp_path / "ours", device="numpy")
    assert np.array_equal(ours_of(again), ours_of(ours))


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_they_learn_alike(peft, base, tmp_path, dora, kind, device):
    """The same adapters after five steps from the same beginning: gradients agree, those of the magnitudes too."""
    import torch

    ours = load(base, device=device)
    lora.attach(ours, 2, alpha=4, dora=dora)
    adapter.save(drawn(ours), tmp_path / "start", str(base), task_type=None)
    theirs = peft.PeftModel.from_pretrained(in_torch(base), tmp_path / "start", is_trainable=True)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.size for p in ours.parameters().values())
    lr = 0.02 if kind == "sgd" else 5e-3
    made = torch.optim.SGD(trained, lr=lr) if kind == "sgd" else torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    rule = SGD() if kind == "sgd" else AdamW(weight_decay=0.01)
    live = ours.to(zoo.Autodiff(ours.device)).eval()  # no dropout
    pictures, labels = (Tensor(ours.device.from_host(a), ours.device) for a in (PICTURES, LABELS))
    told = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(PICTURES)), torch.tensor(LABELS).long())
        made.zero_grad()
        loss.backward()
        made.step()
        mine = losses.cross_entropy(live(pictures), labels)
        rule.step(live, gradients(mine, live), lr)
        told.append((float(mine), loss.item()))
    assert told[-1][0] < told[0][0] and np.allclose(*zip(*told, strict=True), rtol=1e-4)
    ours.update(live.state())
    adapter.save(ours, tmp_path / "ours", str(base))
    theirs.save_pretrained(tmp_path / "theirs")
    with (
        read(tmp_path / "ours" / "adapter_model.safetensors") as mine,
        read(tmp_path / "theirs" / "adapter_model.safetensors") as found,
        read(tmp_path / "start" / "adapter_model.safetensors") as before,
    ):
        assert set(mine) == set(found)
        for name, array in mine.items():
            moved = np.linalg.norm(found[name] - before[name])
            assert moved > 0 and np.linalg.norm(array - found[name]) < 2e-3 * moved, name


def test_modules_that_are_trained_whole(peft, base, tmp_path):
    import torch

    settings = peft.LoraConfig(r=2, target_modules=["conv2", "fc1"], modules_to_save=["fc2"])
    theirs = peft.get_peft_model(in_torch(base), settings).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    (tmp_path / "theirs" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    ours = load(tmp_path / "theirs", device="numpy")
    assert np.allclose(ours_of(ours), theirs_of(theirs), atol=1e-4)
    assert {path for path in ours.parameters() if "lora" not in path} == {"fc2.weight", "fc2.bias"}
    adapter.save(ours, tmp_path / "ours", str(base), also=("fc2",), task_type=None)
    again = peft.PeftModel.from_pretrained(in_torch(base), tmp_path / "ours").eval()
    assert np.allclose(ours_of(ours), theirs_of(again), atol=1e-4)
