from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.nn import Linear, Module, lora

CPU = zoo.device("numpy")


class Net(Module):
    def __init__(self):
        self.first, self.second = Linear(4, 6), Linear(6, 3, bias=False)

    def __call__(self, x):
        return self.second(self.first(x, activation="relu"))


X = zoo.tensor(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), device=CPU)


def changed(net: Net, seed: int = 0) -> Net:
    """With an adapter that does something."""
    rng = np.random.default_rng(seed)
    for path, layer in lora.layers(net).items():
        shape = layer.lora_B.weight.shape
        net.set(f"{path}.lora_B.weight", zoo.tensor(rng.normal(size=shape).astype(np.float32), device=CPU))
    return net


def test_nothing_changes_at_first():
    net = Net().init(0, CPU)
    before = net(X).numpy()
    assert lora.attach(net, 2) == 2 and list(lora.layers(net)) == ["first", "second"]
    assert np.array_equal(net(X).numpy(), before)
    assert set(net.parameters()) == {f"{n}.lora_{k}.weight" for n in ("first", "second") for k in "AB"}


def test_the_change_is_low_rank_and_merges():
    net = Net().init(0, CPU)
    weight = net.first.weight.numpy()
    lora.attach(net, 2, alpha=6, targets=("first",))
    changed(net)
    a, b = net.first.lora_A.weight.numpy(), net.first.lora_B.weight.numpy()
    before = net(X).numpy()
    merged = lora.merge(net)
    assert np.allclose(merged.first.weight.numpy(), weight + 3.0 * b @ a, atol=1e-6)
    assert np.allclose(merged(X).numpy(), before, atol=1e-5)
    assert set(merged.parameters()) == {"first.weight", "first.bias", "second.weight"}


def test_only_the_adapter_has_a_gradient():
    net = Net().init(0, CPU)
    lora.attach(net, 2)
    live = changed(net).to(zoo.Autodiff(CPU))
    grads = ops.sum(ops.square(live(X))).backward()
    for parameter in live.parameters().values():
        assert np.abs(grads[parameter].numpy()).max() > 0
    assert live.first.base.weight.device is CPU


def test_a_layer_that_is_not_there():
    with pytest.raises(ZooError, match="no layer named third"):
        lora.attach(Net().init(0, CPU), 2, targets=("third",))
