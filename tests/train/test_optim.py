"""Optimizers against their formulas, written down once more in float64."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.nn import Module, Param, init
from zoo.train import SGD, Adam, AdamW, RMSprop, clip_global_norm, global_norm, gradients, matrices_only

LR = [0.1, 0.05, 0.2, 0.01, 0.1]


class Two(Module):
    """A matrix and a bias; the loss is a fixed quadratic, so that gradients are known."""

    def __init__(self):
        self.weight, self.bias = Param((3, 4), init.normal()), Param((4,), init.normal())


def gradient(p, step, seed):
    return 0.7 * p + np.random.default_rng((seed, step)).normal(size=p.shape)


def run(optimizer, device, steps=5):
    """The parameters after some steps in float64."""
    model = Two().init(0, device).astype("f64")
    start = {path: t.numpy().copy() for path, t in model.state().items()}
    for step in range(steps):
        grads = {
            p: zoo.tensor(gradient(t.numpy(), step, i), device=device) for i, (p, t) in enumerate(model.state().items())
        }
        optimizer.step(model, grads, LR[step])
    return start, {path: t.numpy() for path, t in model.state().items()}


def sgd(momentum=0.0, nesterov=False, decay=0.0):
    def rule(p, g, m, lr, t):
        g = g + decay * p
        if momentum:
            m["v"] = g if t == 1 else momentum * m["v"] + g
            g = g + momentum * m["v"] if nesterov else m["v"]
        return p - lr * g

    return rule


def adam(decay=0.0, decoupled=False, b1=0.9, b2=0.999, eps=1e-8):
    def rule(p, g, m, lr, t):
        if decoupled:
            p = p - lr * decay * p
        else:
            g = g + decay * p
        m["m"] = b1 * m.get("m", 0) + (1 - b1) * g
        m["v"] = b2 * m.get("v", 0) + (1 - b2) * g * g
        return p - lr * (m["m"] / (1 - b1**t)) / (np.sqrt(m["v"] / (1 - b2**t)) + eps)

    return rule


def rmsprop(alpha=0.99, momentum=0.0, centered=False, decay=0.0, eps=1e-8):
    def rule(p, g, m, lr, t):
        g = g + decay * p
        m["s"] = alpha * m.get("s", 0) + (1 - alpha) * g * g
        m["a"] = alpha * m.get("a", 0) + (1 - alpha) * g
        g = g / (np.sqrt(m["s"] - (m["a"] ** 2 if centered else 0)) + eps)
        m["b"] = momentum * m.get("b", 0) + g
        return p - lr * m["b"]

    return rule


RULES = [
    (SGD(), sgd()),
    (SGD(momentum=0.9, weight_decay=0.1), sgd(0.9, decay=0.1)),
    (SGD(momentum=0.8, nesterov=True), sgd(0.8, True)),
    (Adam(weight_decay=0.1), adam(0.1)),
    (Adam(betas=(0.5, 0.9), eps=1e-3), adam(b1=0.5, b2=0.9, eps=1e-3)),
    (AdamW(weight_decay=0.1), adam(0.1, decoupled=True)),
    (RMSprop(), rmsprop()),
    (RMSprop(alpha=0.9, momentum=0.5, centered=True, weight_decay=0.1), rmsprop(0.9, 0.5, True, 0.1)),
]


@pytest.mark.parametrize(
    ("optimizer", "rule"), RULES, ids=[f"{o.describe()['name']}-{i}" for i, (o, _) in enumerate(RULES)]
)
def test_rules(optimizer, rule, device):
    optimizer.load({}, device)  # as new
    start, found = run(optimizer, device)
    for i, (path, p) in enumerate(start.items()):
        p, memory = p.astype(np.float64), {}
        for step in range(5):
            p = rule(p, gradient(p, step, i), memory, LR[step], step + 1)
        np.testing.assert_allclose(found[path], p, rtol=1e-10, err_msg=path)


def test_weight_decay_of_matrices_only(device):
    plain, decayed = SGD(), SGD(weight_decay=matrices_only(0.5))
    _, a = run(plain, device, 1)
    start, b = run(decayed, device, 1)
    assert np.array_equal(a["bias"], b["bias"])
    np.testing.assert_allclose(a["weight"] - b["weight"], LR[0] * 0.5 * start["weight"], rtol=1e-6)


def test_a_parameter_without_gradient_stands_still_and_so_does_its_count(device):
    model, optimizer = Two().init(0, device), AdamW()
    bias = model.bias
    g = zoo.tensor(np.ones((3, 4), np.float32), device=device)
    optimizer.step(model, {"weight": g}, 0.1)
    assert model.bias is bias
    optimizer.step(model, {"weight": g, "bias": zoo.tensor(np.ones(4, np.float32), device=device)}, 0.1)
    state = optimizer.state()
    assert int(state["weight/step"]) == 2 and int(state["bias/step"]) == 1


@pytest.mark.parametrize(
    "make", [lambda: SGD(momentum=0.9), AdamW, lambda: RMSprop(momentum=0.9)], ids=["sgd", "adamw", "rmsprop"]
)
def test_state_goes_on_where_it_was(make, device):
    whole, first, second = make(), make(), make()
    a, b = Two().init(0, device), Two().init(0, device)
    for step in range(4):
        for model, optimizer in ((a, whole), (b, first if step < 2 else second)):
            if optimizer is second and step == 2:
                second.load({k: np.asarray(v) for k, v in first.state().items()}, device)
            grads = {
                p: zoo.tensor(gradient(t.numpy(), step, 0).astype(np.float32), device=device)
                for p, t in model.state().items()
            }
            optimizer.step(model, grads, 0.1)
    assert all(np.array_equal(t, b.state()[path]) for path, t in a.state().items())


def test_half_precision_parameters_keep_float32_moments(device):
    model = Two().init(0, device).astype("bf16")
    for optimizer in (AdamW(), RMSprop(), SGD(momentum=0.9)):
        g = model.map(lambda t: t * 0.1).state()
        optimizer.step(model, g, 0.01)
        assert model.weight.dtype == zoo.bfloat16
        moments = [t for name, t in optimizer.state().items() if not name.endswith("/step")]
        assert moments and all(t.dtype == zoo.float32 for t in moments)
    assert AdamW().state() == {}


def test_gradients_and_their_norm(device):
    model = Two().init(0, device)
    live = model.to(zoo.Autodiff(device))
    loss = (live.weight * live.weight).sum() * 0.5
    grads = gradients(loss, live)
    assert list(grads) == ["weight"]  # the loss does not depend on the bias
    np.testing.assert_allclose(grads["weight"], model.weight, rtol=1e-6)
    norm = np.linalg.norm(model.weight.numpy())
    assert abs(global_norm(grads) / norm - 1) < 1e-6
    clipped, before = clip_global_norm(grads, norm / 4)
    assert abs(before / norm - 1) < 1e-6 and abs(global_norm(clipped) / (norm / 4) - 1) < 1e-5
    kept, _ = clip_global_norm(grads, norm * 2)
    assert kept["weight"] is grads["weight"]


def test_a_foreign_state_is_refused():
    with pytest.raises(zoo.WeightsError, match="no state of an optimizer"):
        AdamW().load({"exp_avg": np.zeros(3)}, zoo.device("numpy"))


def test_parameters_move_one_after_the_other(device):
    """When one is moved, those before it are in the model already, and their old values are gone."""
    model = Two().init(0, device)
    seen = []

    class Watching(SGD):
        def move(self, p, g, memory, lr, decay):
            seen.append({path: value.numpy().copy() for path, value in model.parameters().items()})
            return super().move(p, g, memory, lr, decay)

    before = {path: value.numpy().copy() for path, value in model.parameters().items()}
    Watching().step(model, {path: ops.ones(p.shape, device=device) for path, p in model.parameters().items()}, 0.5)
    first, *_ = before
    assert len(seen) == len(before) > 1
    np.testing.assert_array_equal(seen[1][first], before[first] - np.float32(0.5))
    assert all((seen[0][path] == before[path]).all() for path in before)
