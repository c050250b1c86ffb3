"""Each layer against its formula in numpy, and what it does in training."""

from __future__ import annotations

import math

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.nn import (
    Attention,
    AvgPool,
    BatchNorm,
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool,
    RMSNorm,
    Upsample,
    activation,
    global_avg_pool,
    init,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_linear(device):
    layer = Linear(5, 3).init(0, device)
    x = values(2, 4, 5)
    expected = x @ np.asarray(layer.weight).T + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(zoo.tensor(x, device=device)), expected, **CLOSE)
    np.testing.assert_allclose(layer(zoo.tensor(x, device=device), "relu"), np.maximum(expected, 0), **CLOSE)
    assert Linear(5, 3, bias=False).bias is None


def test_conv2d_is_the_sum_over_its_window(device):
    layer = Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2).init(0, device)
    x, w, b = values(2, 7, 8, 4), np.asarray(layer.weight), np.asarray(layer.bias)
    assert w.shape == (6, 3, 2, 2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = layer(zoo.tensor(x, device=device)).numpy()
    rows, columns = (7 + 2 - 3) // 2 + 1, (8 + 2 - 3) // 2 + 1
    expected = np.zeros((2, rows, columns, 6))
    for i in range(rows):
        for j in range(columns):
            for o in range(6):
                part = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3 : 2, (o // 3) * 2 : (o // 3) * 2 + 2]
                expected[:, i, j, o] = (part * w[o]).sum(axis=(1, 2, 3)) + b[o]
    np.testing.assert_allclose(y, expected, **CLOSE)


def test_conv1d(device):
    layer = Conv1d(3, 2, 3, padding=1).init(1, device)
    x, w = values(1, 5, 3), np.asarray(layer.weight)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    expected = np.stack([np.einsum("nkc,okc->no", padded[:, i : i + 3], w) for i in range(5)], axis=1)
    np.testing.assert_allclose(layer(zoo.tensor(x, device=device)), expected + np.asarray(layer.bias), **CLOSE)


@pytest.mark.parametrize(
    ("kind", "shape", "out"),
    [(ConvTranspose1d, (2, 5, 3), (2, 12, 4)), (ConvTranspose2d, (2, 5, 4, 3), (2, 12, 10, 4))],
)
def test_transposed_convolution_spreads_each_input_over_its_window(device, kind, shape, out):
    layer = kind(3, 4, 4, stride=2, padding=1, output_padding=2 if kind is ConvTranspose1d else (2, 2)).init(0, device)
    x, w = values(*shape), np.asarray(layer.weight)
    full = np.zeros((shape[0], *(2 * (n - 1) + 4 + 2 for n in shape[1:-1]), 4))
    for at in np.ndindex(*shape[1:-1]):
        window = tuple(slice(2 * i, 2 * i + 4) for i in at)
        full[(slice(None), *window)] += np.tensordot(x[(slice(None), *at)], w, axes=([1], [w.ndim - 1])).transpose(
            0, *range(2, w.ndim), 1
        )
    cut = tuple(slice(1, n - 1) for n in full.shape[1:-1])
    y = layer(zoo.tensor(x, device=device))
    assert y.shape == out
    np.testing.assert_allclose(y, full[(slice(None), *cut)] + np.asarray(layer.bias), **CLOSE)


def test_embedding_takes_rows(device):
    layer = Embedding(7, 3).init(0, device)
    ids = np.array([[1, 6], [0, 1]])
    assert np.array_equal(layer(zoo.tensor(ids, device=device)), np.asarray(layer.weight)[ids])


def test_norms_by_their_formulas(device):
    x = values(2, 3, 8) * 3 + 1
    t = zoo.tensor(x, device=device)
    w, b = values(8, seed=1), values(8, seed=2)
    layer = LayerNorm(8).load({"weight": w, "bias": b}, device=device)
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(t), standard * w + b, **CLOSE)
    np.testing.assert_allclose(LayerNorm(8, affine=False)(t), standard, **CLOSE)
    assert LayerNorm(8, bias=False).bias is None
    rms = RMSNorm(8, eps=1e-6).load({"weight": w}, device=device)
    np.testing.assert_allclose(rms(t), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w, **CLOSE)
    group = GroupNorm(2, 8).load({"weight": w, "bias": b}, device=device)
    g = x.reshape(2, 3, 2, 4)
    g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(group(t), g.reshape(x.shape) * w + b, **CLOSE)


def test_batch_norm_in_training_and_after(device):
    layer = BatchNorm(4, momentum=0.1).init(0, device)
    layer.train()
    mean, var = np.zeros(4), np.ones(4)
    for seed in range(3):
        x = values(5, 3, 3, 4, seed=seed) * 2 + 3
        y = layer(zoo.tensor(x, device=device)).numpy()
        flat = x.reshape(-1, 4).astype(np.float64)
        np.testing.assert_allclose(y, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), **CLOSE)
        mean, var = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * var + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.running_mean, mean, **CLOSE)
    np.testing.assert_allclose(layer.running_var, var, **CLOSE)
    assert layer.num_batches_tracked.item() == 3 and layer.num_batches_tracked.dtype == zoo.int64
    x = values(2, 4)
    after = layer.eval()(zoo.tensor(x, device=device))
    np.testing.assert_allclose(after, (x - mean) / np.sqrt(var + 1e-5), **CLOSE)
    assert layer.num_batches_tracked.item() == 3


def test_batch_norm_follows_on_plain_values_while_gradients_flow(device):
    layer = BatchNorm(4).init(0, device)
    live = layer.to(zoo.Autodiff(device)).train()
    x = zoo.tensor(values(6, 4), device=device).to(zoo.Autodiff(device))
    y = live(x)
    assert live.running_mean.device is device and live.running_var.device is device
    grads = (y * zoo.tensor(values(6, 4, seed=1), device=device)).sum().backward()
    assert set(live.parameters()) == {"weight", "bias"} and all(p in grads for p in live.parameters().values())
    # the output does not change when x is shifted or scaled, so the gradient is orthogonal to both directions
    g = grads[x].numpy()
    np.testing.assert_allclose(g.sum(0), 0, atol=1e-4)
    np.testing.assert_allclose((g * x.numpy()).sum(0), 0, atol=1e-3)


def test_batch_norm_averages_alike_without_momentum_and_rests_when_frozen(device):
    layer = BatchNorm(2, momentum=None).init(0, device).train()
    batches = [values(8, 2, seed=s) for s in range(4)]
    for x in batches:
        layer(zoo.tensor(x, device=device))
    np.testing.assert_allclose(layer.running_mean, np.mean([x.mean(0) for x in batches], axis=0), **CLOSE)
    before = layer.running_mean
    layer.freeze()
    layer(zoo.tensor(batches[0], device=device))
    assert layer.running_mean is before
    with pytest.raises(zoo.ShapeError, match="one value per channel"):
        layer.unfreeze()(zoo.tensor(batches[0][:1], device=device))


def heads(x, n):
    return x.reshape(*x.shape[:2], n, -1)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_its_formula(device, causal):
    layer = Attention(12, 4, kv_heads=2, cross_width=6, causal=causal).init(0, device)
    x, cross = values(2, 3, 12), values(2, 5, 6, seed=1)
    p = {path: np.asarray(t, dtype=np.float64) for path, t in layer.state().items()}
    q = heads(x @ p["q_proj.weight"].T + p["q_proj.bias"], 4)
    k = heads(cross @ p["k_proj.weight"].T + p["k_proj.bias"], 2).repeat(2, axis=2)
    v = heads(cross @ p["v_proj.weight"].T + p["v_proj.bias"], 2).repeat(2, axis=2)
    scores = np.einsum("blhd,bshd->bhls", q, k) / math.sqrt(3)
    if causal:
        scores = np.where(np.arange(5)[None, :] <= np.arange(3)[:, None] + 2, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhls,bshd->blhd", weights, v).reshape(2, 3, 12) @ p["out_proj.weight"].T + p["out_proj.bias"]
    np.testing.assert_allclose(layer(zoo.tensor(x, device=device), zoo.tensor(cross, device=device)), y, **CLOSE)


def test_dropout_zeroes_a_share_and_keeps_the_mean(device):
    layer, x = Dropout(0.3), ops.ones((100, 200), device=device)
    assert layer(x) is x
    y = layer.train(zoo.random.Generator(1))(x).numpy()
    assert abs((y == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    again = Dropout(0.3).train(zoo.random.Generator(1))
    assert np.array_equal(again(x), y) and not np.array_equal(again(x), y)  # the same stream, further on
    with pytest.raises(zoo.ZooError, match=r"model.train\(zoo.random.Generator"):
        Dropout(0.3).train()(x)
    with pytest.raises(ValueError, match="share"):
        Dropout(1.0)


def test_pooling_and_upsampling(device):
    x = values(1, 4, 6, 2)
    t = zoo.tensor(x, device=device)
    blocks = x.reshape(1, 2, 2, 3, 2, 2)
    np.testing.assert_array_equal(MaxPool(2)(t), blocks.max((2, 4)))
    np.testing.assert_allclose(AvgPool(2)(t), blocks.mean((2, 4)), **CLOSE)
    np.testing.assert_allclose(global_avg_pool(t), x.mean((1, 2)), **CLOSE)
    np.testing.assert_array_equal(Upsample(2)(t), x.repeat(2, 1).repeat(2, 2))
    assert MaxPool(3, stride=2, padding=1)(t).shape == (1, 2, 3, 2)


def test_activations_go_by_their_published_names(device):
    x = zoo.tensor(values(9), device=device)
    assert np.array_equal(activation("gelu_new")(x), ops.gelu_tanh(x)) and activation("swish") is ops.silu
    with pytest.raises(zoo.ZooError, match="Did you mean 'quick_gelu'"):
        activation("quickgelu")


def test_default_initial_values_have_torchs_bounds():
    for layer, fan_in in [
        (Linear(400, 300), 400),
        (Conv2d(16, 64, 3, groups=2), 8 * 9),
        (ConvTranspose2d(16, 64, 3), 64 * 9),  # torch counts it on the stored weight
    ]:
        layer.init(0, "numpy")
        bound = 1 / math.sqrt(fan_in)
        for tensor in layer.state().values():
            a = tensor.numpy()
            assert np.abs(a).max() <= bound and np.abs(a).max() > 0.9 * bound and abs(a.mean()) < 0.2 * bound


def test_initialisers_have_the_variance_of_their_papers():
    rng = zoo.random.Generator(0)
    for made, std in [
        (init.kaiming_normal(50), math.sqrt(2 / 50)),
        (init.kaiming_uniform(50), math.sqrt(2 / 50)),
        (init.xavier_uniform(30, 70), math.sqrt(2 / 100)),
        (init.normal(0.02), 0.02),
    ]:
        drawn = made(rng, (400, 400), "numpy").numpy()
        assert abs(drawn.std() / std - 1) < 0.01 and abs(drawn.mean()) < 0.02 * std


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Conv2d(3, 8, 3, groups=2), "groups"),
        (lambda: Conv2d(3, 8, (3, 3, 3)), "axes"),
        (lambda: GroupNorm(3, 8), "groups"),
        (lambda: Attention(10, 3), "heads"),
        (lambda: Attention(12, 4, kv_heads=3), "heads"),
    ],
)
def test_impossible_layers_are_refused_when_made(make, told):
    with pytest.raises(ValueError, match=told):
        make()
