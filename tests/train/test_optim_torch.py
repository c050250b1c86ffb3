"""Optimizers, clipping and schedules against torch.optim."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.nn import Module, Param, init
from zoo.train import SGD, Adam, AdamW, RMSprop, clip_global_norm, cosine, linear, one_cycle, step_decay

torch = pytest.importorskip("torch", reason="torch is not installed")

PAIRS = [
    (lambda: SGD(), lambda p: torch.optim.SGD(p, lr=1)),
    (lambda: SGD(momentum=0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, weight_decay=0.1)),
    (lambda: SGD(momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, nesterov=True)),
    (lambda: Adam(weight_decay=0.1), lambda p: torch.optim.Adam(p, weight_decay=0.1)),
    (lambda: AdamW(), lambda p: torch.optim.AdamW(p)),
    (lambda: AdamW(betas=(0.8, 0.99), eps=1e-4), lambda p: torch.optim.AdamW(p, betas=(0.8, 0.99), eps=1e-4)),
    (lambda: RMSprop(), lambda p: torch.optim.RMSprop(p)),
    (
        lambda: RMSprop(alpha=0.9, momentum=0.9, centered=True, weight_decay=0.01),
        lambda p: torch.optim.RMSprop(p, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.01),
    ),
]


class One(Module):
    def __init__(self):
        self.weight = Param((5, 7), init.normal())


@pytest.mark.parametrize(
    ("ours", "theirs"), PAIRS, ids=[f"{ours().describe()['name']}-{i}" for i, (ours, _) in enumerate(PAIRS)]
)
def test_ten_steps(ours, theirs, device):
    model, optimizer = One().init(0, device), ours()
    p = torch.nn.Parameter(torch.tensor(np.array(model.weight)))
    peer = theirs([p])
    for step in range(10):
        g = np.random.default_rng(step).normal(size=(5, 7)).astype(np.float32)
        lr = 0.1 / (1 + step)
        peer.param_groups[0]["lr"] = lr
        p.grad = torch.tensor(g)
        peer.step()
        optimizer.step(model, {"weight": zoo.tensor(g, device=device)}, lr)
    np.testing.assert_allclose(model.weight, p.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_clipping(device):
    arrays = [np.random.default_rng(i).normal(size=(4, i + 1)).astype(np.float32) for i in range(3)]
    params = [torch.nn.Parameter(torch.zeros(a.shape)) for a in arrays]
    for p, a in zip(params, arrays, strict=True):
        p.grad = torch.tensor(a)
    norm = torch.nn.utils.clip_grad_norm_(params, 0.5)
    ours, before = clip_global_norm({str(i): zoo.tensor(a, device=device) for i, a in enumerate(arrays)}, 0.5)
    assert abs(before / norm.item() - 1) < 1e-6
    for i, p in enumerate(params):
        np.testing.assert_allclose(ours[str(i)], p.grad.numpy(), rtol=1e-5)


S = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (one_cycle(0.1, 50), lambda o: S.OneCycleLR(o, 0.1, total_steps=50)),
        (
            one_cycle(1, 37, rise=0.2, start=10, end=100),
            lambda o: S.OneCycleLR(o, 1, total_steps=37, pct_start=0.2, div_factor=10, final_div_factor=100),
        ),
        (cosine(1, 30, final=0.1), lambda o: S.CosineAnnealingLR(o, 30, eta_min=0.1)),
        (step_decay(1, 10, 0.5), lambda o: S.StepLR(o, 10, 0.5)),
        (linear(1, 20, final=0.25), lambda o: S.LinearLR(o, 1.0, 0.25, 20)),
    ],
    ids=["one_cycle", "one_cycle-settings", "cosine", "step", "linear"],
)  # fmt: skip
def test_schedules(ours, theirs):
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    scheduler = theirs(peer)
    for step in range(30):
        np.testing.assert_allclose(ours(step), peer.param_groups[0]["lr"], rtol=1e-6, atol=1e-12, err_msg=str(step))
        peer.step()
        scheduler.step()
