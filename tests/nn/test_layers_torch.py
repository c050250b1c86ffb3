"""Layers, their gradients and the losses against torch's."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.nn import (
    Attention,
    AvgPool,
    BatchNorm,
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool,
    losses,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(a):
    """Channels first, as torch has them."""
    return np.moveaxis(a, -1, 1)


def weights_as_torch(layer):
    """torch keeps (O, I, *K), and (I, O, *K) for transposed convolution."""
    out = {}
    for path, t in layer.state().items():
        a = np.asarray(t)
        if a.ndim > 2:
            a = np.moveaxis(a, -1, 1)
            if type(layer).__name__.startswith("ConvTranspose"):
                groups = layer.groups
                a = np.concatenate([part.swapaxes(0, 1) for part in np.split(a, groups, axis=0)], axis=0)
        out[path] = torch.tensor(np.array(a))
    return out


SPATIAL = [
    (Conv1d(4, 6, 3, stride=2, padding=1), torch.nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 9, 4)),
    (
        Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        torch.nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        (2, 8, 7, 4),
    ),
    (Conv2d(4, 4, 5, groups=4, bias=False), torch.nn.Conv2d(4, 4, 5, groups=4, bias=False), (1, 8, 7, 4)),
    (
        ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1),
        torch.nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1),
        (2, 6, 4),
    ),
    (
        ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        (2, 5, 4, 4),
    ),
    (GroupNorm(2, 4), torch.nn.GroupNorm(2, 4), (2, 5, 4, 4)),
    (MaxPool(3, stride=2, padding=1), torch.nn.MaxPool2d(3, stride=2, padding=1), (2, 7, 6, 4)),
    (AvgPool(3, stride=2, padding=1), torch.nn.AvgPool2d(3, stride=2, padding=1), (2, 7, 6, 4)),
    (BatchNorm(4), torch.nn.BatchNorm2d(4), (3, 5, 4, 4)),
]


@pytest.mark.parametrize(("layer", "theirs", "shape"), SPATIAL, ids=lambda v: type(v).__name__)
def test_spatial_layers_and_gradients(layer, theirs, shape, device):
    layer = layer.map(lambda t: t).init(7, device)
    auto = zoo.Autodiff(device)
    theirs.load_state_dict(weights_as_torch(layer))
    theirs.zero_grad()
    theirs.train()
    live = layer.to(auto).train()
    x = values(*shape)
    mine, tx = zoo.tensor(x, device=device).to(auto), torch.tensor(first(x).copy(), requires_grad=True)
    y, ty = live(mine), theirs(tx)
    np.testing.assert_allclose(first(y.numpy()), ty.detach().numpy(), **CLOSE)
    g = values(*y.shape, seed=3)
    grads = (y * zoo.tensor(g, device=device)).sum().backward()
    ty.backward(torch.tensor(first(g).copy()))
    np.testing.assert_allclose(first(grads[mine].numpy()), tx.grad.numpy(), rtol=1e-4, atol=1e-4)
    layer.update({path: grads[p] for path, p in live.parameters().items()})  # the same rearrangement as the weights
    found = weights_as_torch(layer)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(found[name].numpy(), p.grad.numpy(), rtol=1e-4, atol=2e-4, err_msg=name)
    if isinstance(layer, BatchNorm):
        for name, t in theirs.named_buffers():
            np.testing.assert_allclose(np.asarray(live.state()[name]), t.numpy(), **CLOSE)


def test_linear_embedding_layer_norm(device):
    x = values(3, 5, 8)
    for layer, theirs in [(Linear(8, 6), torch.nn.Linear(8, 6)), (LayerNorm(8), torch.nn.LayerNorm(8))]:
        layer.init(0, device)
        theirs.load_state_dict(weights_as_torch(layer))
        y = layer(zoo.tensor(x, device=device))
        np.testing.assert_allclose(y, theirs(torch.tensor(x)).detach().numpy(), **CLOSE)
    table = Embedding(9, 4).init(0, device)
    ids = np.array([[8, 0, 3]])
    expected = F.embedding(torch.tensor(ids), torch.tensor(np.asarray(table.weight)))
    assert np.array_equal(table(zoo.tensor(ids, device=device)), expected.numpy())


def test_attention_is_torchs_multi_head_attention(device):
    layer = Attention(12, 3).init(0, device)
    p = {path: torch.tensor(np.asarray(t)) for path, t in layer.state().items()}
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    state = {
        "in_proj_weight": torch.cat([p[f"{n}_proj.weight"] for n in "qkv"]),
        "in_proj_bias": torch.cat([p[f"{n}_proj.bias"] for n in "qkv"]),
        "out_proj.weight": p["out_proj.weight"],
        "out_proj.bias": p["out_proj.bias"],
    }
    theirs.load_state_dict(state)
    x, cross = values(2, 4, 12), values(2, 6, 12, seed=1)
    mask = np.zeros((4, 6), np.float32)
    mask[:, 4:] = -np.inf
    y = layer(*(zoo.tensor(a, device=device) for a in (x, cross, mask)))
    t = torch.tensor(cross)
    expected, _ = theirs(torch.tensor(x), t, t, attn_mask=torch.tensor(mask))
    np.testing.assert_allclose(y, expected.detach().numpy(), **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore", [None, 2])
def test_cross_entropy(reduction, smoothing, ignore, device):
    x, t = values(4, 6, 5), np.random.default_rng(1).integers(0, 5, (4, 6))
    options = {"reduction": reduction, "label_smoothing": smoothing}
    auto = zoo.Autodiff(device)
    mine = zoo.tensor(x, device=device).to(auto)
    y = losses.cross_entropy(mine, zoo.tensor(t, device=device), ignore_index=ignore, **options)
    theirs = torch.tensor(x, requires_grad=True)
    flat = F.cross_entropy(
        theirs.reshape(-1, 5), torch.tensor(t).reshape(-1), ignore_index=-100 if ignore is None else ignore, **options
    )
    np.testing.assert_allclose(np.asarray(y).reshape(-1), flat.detach().numpy().reshape(-1), **CLOSE)
    g = y.sum().backward()[mine]
    flat.sum().backward()
    np.testing.assert_allclose(g.numpy(), theirs.grad.numpy(), **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_other_losses(reduction, device):
    a, b = values(4, 5) * 4, values(4, 5, seed=1)
    p = np.random.default_rng(2).uniform(size=(4, 5)).astype(np.float32)
    labels = np.array([0, 4, 2, 1])
    log_a, log_b = (torch.log_softmax(torch.tensor(v), -1).numpy() for v in (a, b))
    kl = F.kl_div(torch.tensor(log_a), torch.tensor(log_b), reduction="none", log_target=True).sum(-1)
    kl = {"mean": kl.mean(), "sum": kl.sum(), "none": kl}[reduction]

    def pair(x, y):
        return torch.tensor(x), torch.tensor(y)

    for mine, args, theirs in [
        (losses.mse, (a, b), F.mse_loss(*pair(a, b), reduction=reduction)),
        (losses.l1, (a, b), F.l1_loss(*pair(a, b), reduction=reduction)),
        (
            losses.bce_with_logits,
            (a * 20, p),
            F.binary_cross_entropy_with_logits(*pair(a * 20, p), reduction=reduction),
        ),
        (losses.nll_loss, (log_a, labels), F.nll_loss(*pair(log_a, labels), reduction=reduction)),
        (losses.kl_div, (log_a, log_b), kl),
    ]:
        y = mine(*(zoo.tensor(v, device=device) for v in args), reduction=reduction)
        np.testing.assert_allclose(y, theirs.numpy(), rtol=1e-5, atol=1e-5, err_msg=mine.__name__)
