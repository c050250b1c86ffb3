"""Losses by their formulas, without torch."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.nn import losses


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_softmax(x):
    x = x.astype(np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def test_cross_entropy_with_smoothing_and_ignored_targets(device):
    x, t = values(6, 4) * 3, np.array([0, 3, 1, 1, 2, 0])
    log_p = log_softmax(x)
    target = np.eye(4)[t]
    tensors = [zoo.tensor(a, device=device) for a in (x, t)]
    plain = -(target * log_p).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(*tensors, reduction="none"), plain, rtol=1e-5)
    smooth = -((0.9 * target + 0.1 / 4) * log_p).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(*tensors, label_smoothing=0.1).item(), smooth.mean(), rtol=1e-5)
    kept = plain[t != 1].mean()
    np.testing.assert_allclose(losses.cross_entropy(*tensors, ignore_index=1).item(), kept, rtol=1e-5)
    outside = zoo.tensor(np.where(t == 1, -100, t), device=device)  # an ignored target need not be a class
    np.testing.assert_allclose(losses.cross_entropy(tensors[0], outside, ignore_index=-100).item(), kept, rtol=1e-5)


def test_losses_do_not_overflow(device):
    x = zoo.tensor(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), device=device)
    assert losses.cross_entropy(x, zoo.tensor([1, 1], device=device), reduction="none").tolist() == [2e4, 0.0]
    p = zoo.tensor(np.array([[0, 0], [1, 1]], np.float32), device=device)
    np.testing.assert_array_equal(losses.bce_with_logits(x, p, reduction="none"), [[1e4, 0], [1e4, 0]])


def test_kl_is_zero_between_equals_and_averages_over_rows(device):
    a, b = (log_softmax(values(3, 5, seed=s)).astype(np.float32) for s in (0, 1))
    t, u = zoo.tensor(a, device=device), zoo.tensor(b, device=device)
    assert abs(losses.kl_div(t, t).item()) < 1e-7
    np.testing.assert_allclose(losses.kl_div(t, u).item(), (np.exp(b) * (b - a)).sum(-1).mean(), rtol=1e-4)


def test_shapes_that_would_broadcast_are_refused(device):
    x, y = zoo.tensor(values(4, 1), device=device), zoo.tensor(values(4), device=device)
    for loss in (losses.mse, losses.l1, losses.bce_with_logits):
        with pytest.raises(zoo.ZooError, match="different shapes"):
            loss(x, y)
    with pytest.raises(zoo.ZooError, match="unknown reduction"):
        losses.mse(x, x, reduction="average")
