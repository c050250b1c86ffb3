"""Gradient checkpointing: the same gradients, with less kept."""

from __future__ import annotations

import tracemalloc

import numpy as np

import zoo
from zoo.core import ops
from zoo.nn import BatchNorm, Dropout, Linear, Module, Param, RMSNorm, init, recomputed
from zoo.nn.recompute import called


class Block(Module):
    def __init__(self, width: int = 16, dropout: float = 0.3):
        self.norm, self.up, self.drop = RMSNorm(width), Linear(width, 4 * width), Dropout(dropout)
        self.down = Linear(4 * width, width, bias=False)

    def __call__(self, x, scale=None):
        x = x if scale is None else x * scale
        return x + self.down(self.drop(ops.silu(self.up(self.norm(x)))))


class Stack(Module):
    def __init__(self, layers: int = 4, **settings):
        self.blocks = [Block(**settings) for _ in range(layers)]
        self.recompute = False

    def __call__(self, x):
        for block in self.blocks:
            x = recomputed(block, x) if self.recompute else block(x)
        return x


def inputs(device, width: int = 16, rows: int = 6):
    return zoo.tensor(np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32), device=device)


def of(device, recompute: bool, freeze: bool = False, variable: bool = False):
    """(loss, gradients by path, where the generator stands) of one step in training mode."""
    model = Stack().init(0, device)
    model.recompute = recompute
    if freeze:
        model.blocks[1].freeze()
    rng = zoo.random.Generator(5)
    live = model.to(zoo.Autodiff(device)).train(rng)
    x = inputs(device).to(zoo.Autodiff(device)) if variable else inputs(device)
    loss = ops.sum(ops.square(live(x)))
    grads = loss.backward()
    found = {path: grads[p].numpy() for path, p in live.parameters().items()}
    return float(loss), found | ({"x": grads[x].numpy()} if variable else {}), rng.offset


def test_the_gradients_are_the_same_bits(device):
    for settings in ({}, {"freeze": True}, {"variable": True}):
        plain, again = of(device, False, **settings), of(device, True, **settings)
        assert plain[0] == again[0] and plain[2] == again[2] > 0
        assert plain[1].keys() == again[1].keys()
        assert all(np.array_equal(plain[1][path], again[1][path]) for path in plain[1])
        assert all(np.abs(g).max() > 0 for g in again[1].values())


def test_without_a_variable_it_is_a_call(device):
    block = Block().init(0, device)
    x = inputs(device)
    assert np.array_equal(recomputed(block, x, None).numpy(), block(x).numpy())
    frozen = Block().init(0, device).freeze().to(zoo.Autodiff(device))
    assert np.array_equal(recomputed(frozen, x, 2.0).numpy(), block(x, 2.0).numpy())


def test_several_arguments_and_one_twice(device):
    autodiff = zoo.Autodiff(device)
    live = Block(dropout=0.0).init(0, device).to(autodiff)
    found = []
    for call in (lambda *a: live(*a), lambda *a: recomputed(live, *a)):
        x, scale = inputs(device).to(autodiff), inputs(device, rows=1).to(autodiff)
        y = call(call(x, scale), x)  # x goes into both
        grads = ops.sum(y * y).backward()
        found.append([grads[v].numpy() for v in (x, scale, live.up.weight)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


class Following(Module):
    """Reads a buffer that it then changes, and counts."""

    buffers = ("running", "calls")

    def __init__(self, width: int = 16):
        self.norm, self.up = BatchNorm(width), Linear(width, width)
        self.running, self.calls = Param((width,), init.ones), Param((), init.zeros, "int64")

    def __call__(self, x):
        y = self.up(self.norm(x)) * self.running
        self.running, self.calls = self.running * 0.5, self.calls + 1
        return y


def test_buffers_move_once(device):
    """The second time begins with those that the first began with, and leaves them where the first left them."""
    found = []
    for call in (called, recomputed):
        live = Following().init(0, device).to(zoo.Autodiff(device)).train()
        x = inputs(device).to(zoo.Autodiff(device))
        for _ in range(2):
            grads = ops.sum(ops.square(call(live, x) + call(live, x))).backward()
        state = {path: tensor.numpy() for path, tensor in live.state().items()}
        assert state["calls"] == state["norm.num_batches_tracked"] == 4 and np.all(state["running"] == 1 / 16)
        gradients = {path: grads[p].numpy() for path, p in live.parameters().items()}
        found.append({**state, **{f"d {path}": g for path, g in gradients.items()}, "dx": grads[x].numpy()})
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_it_keeps_less():
    """Of eight blocks: what goes into each, and the insides of one, instead of those of all."""
    device = zoo.device("numpy")
    peaks = {}
    for recompute in (False, True):
        model = Stack(8, width=64, dropout=0.0).init(0, device)
        model.recompute = recompute
        live, x = model.to(zoo.Autodiff(device)), inputs(device, 64, rows=2000)
        tracemalloc.start()
        ops.sum(live(x)).backward()
        peaks[recompute] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[True] < 0.5 * peaks[False], peaks
