"""The tree: paths, filling, moving, freezing, printing, and what it says when something does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.nn import Attention, BatchNorm, Conv2d, Dropout, Linear, Module, Param, Sequential, init


class Layer(Module):
    def __init__(self):
        self.self_attn = Attention(8, 2, kv_heads=1, bias=False)
        self.mlp = Linear(8, 8)

    def __call__(self, x):
        return x + self.mlp(x + self.self_attn(x))


class Net(Module):
    def __init__(self):
        self.config = {"classes": 3, "names": ["a", "b"]}
        self.conv = Conv2d(1, 8, 3, padding=1)
        self.norm = BatchNorm(8)
        self.drop = Dropout(0.5)
        self.layers = [Layer() for _ in range(3)]
        self.heads = {"main": Linear(8, 3)}
        self.scale = Param((1,), init.ones)
        self._table = zoo.tensor(np.arange(8, dtype=np.float32), device="numpy")

    def __call__(self, x):
        x = self.drop(self.norm(self.conv(x)))
        x = x.reshape(x.shape[0], -1, 8) + self._table
        for layer in self.layers:
            x = layer(x)
        return self.heads["main"](x.mean(axis=1)) * self.scale


def images(n=2, device="numpy"):
    return zoo.tensor(np.linspace(-1, 1, n * 16, dtype=np.float32).reshape(n, 4, 4, 1), device=device)


def test_paths_are_attribute_paths_in_order_of_definition():
    paths = list(Net().spec())
    assert paths[:3] == ["conv.weight", "conv.bias", "norm.weight"]
    assert "layers.2.self_attn.q_proj.weight" in paths
    assert "heads.main.bias" in paths and paths[-1] == "scale"
    assert not any("_table" in p or "config" in p for p in paths)


def test_a_model_from_a_config_has_shapes_and_no_memory():
    spec = Net().spec()
    assert spec["conv.weight"].shape == (8, 3, 3, 1) and spec["conv.weight"].dtype == zoo.float32
    assert spec["norm.num_batches_tracked"].shape == () and spec["norm.num_batches_tracked"].dtype == zoo.int64
    huge = Linear(1 << 20, 1 << 20)  # 4 TB
    assert huge.spec()["weight"].shape == (1 << 20, 1 << 20)


def test_every_use_of_an_unfilled_model_says_how_to_fill_it():
    net, layer = Net(), Linear(4, 2)
    x = zoo.tensor(np.ones((1, 4), np.float32), device="numpy")
    uses = [
        lambda: net(images()),
        lambda: layer(x),
        lambda: layer(x.to(zoo.Autodiff("numpy"))),
        lambda: x * layer.weight,
        lambda: layer.weight * 2,
        lambda: layer.weight[0],
        lambda: layer.weight.reshape(-1),
        lambda: layer.weight.numpy(),
        lambda: ops.concat([layer.weight, layer.weight]),
        net.state,
        net.parameters,
    ]
    for use in uses:
        with pytest.raises(zoo.ZooError, match="no weights yet") as caught:
            use()
        assert "model.init(rng)" in str(caught.value) and "model.load(...)" in str(caught.value)


def test_init_is_the_same_on_every_device_and_differs_by_seed(device):
    a, b, c = Net().init(0, "numpy").state(), Net().init(0, device).state(), Net().init(1, device).state()
    assert all(np.array_equal(a[p], b[p]) for p in a)
    assert not np.array_equal(a["conv.weight"], c["conv.weight"])
    assert Net().init(0, device).device is device


def test_init_fills_only_what_is_unfilled():
    net = Net().init(0, "numpy")
    before = net.conv.weight
    net.heads["new"] = Linear(8, 2)
    net.init(5, "numpy")
    assert net.conv.weight is before
    assert net.state()["heads.new.weight"].shape == (2, 8)


def test_parameters_leave_out_buffers_and_frozen_parts():
    net = Net().init(0, "numpy")
    parameters, state = net.parameters(), net.state()
    buffers = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(state) - set(parameters) == buffers
    net.layers[0].freeze()
    assert not any(p.startswith("layers.0.") for p in net.parameters())
    assert set(net.state()) == set(state)
    net.unfreeze()
    assert set(net.parameters()) == set(parameters)


def test_state_and_load_are_inverse(device):
    net = Net().init(3, device)
    arrays = {path: np.asarray(t) for path, t in net.state().items()}
    twin = Net().load(arrays, device=device)
    assert twin.device is device
    assert all(np.array_equal(arrays[p], t) for p, t in twin.state().items())
    assert np.array_equal(net.eval()(images(device=device)), twin.eval()(images(device=device)))


def test_load_keeps_the_dtype_of_floats_or_casts_to_the_one_wanted():
    arrays = {path: np.asarray(t) for path, t in Net().init(0, "numpy").state().items()}
    arrays["norm.num_batches_tracked"] = arrays["norm.num_batches_tracked"].astype(np.int32)
    half = {p: a.astype(zoo.bfloat16) if a.dtype == np.float32 else a for p, a in arrays.items()}
    kept, widened = Net().load(half, device="numpy").spec(), Net().load(half, device="numpy", dtype="f32").spec()
    assert kept["conv.weight"].dtype == zoo.bfloat16 and widened["conv.weight"].dtype == zoo.float32
    assert kept["norm.num_batches_tracked"].dtype == zoo.int64


def test_load_copies_what_could_change_and_maps_what_cannot():
    weight, bias = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    bias.flags.writeable = False
    layer = Linear(3, 2).load({"weight": weight, "bias": bias}, device="numpy")
    weight[:] = 7
    assert np.array_equal(layer.weight, np.ones((2, 3)))
    assert np.shares_memory(layer.bias.numpy(), bias)


def test_load_reports_everything_at_once_and_changes_nothing():
    net = Net().init(0, "numpy")
    arrays = {path: np.asarray(t) for path, t in net.state().items()}
    arrays["conv.wieght"] = arrays.pop("conv.weight")
    arrays["heads.main.bias"] = np.zeros(5, np.float32)
    arrays["scale"] = np.zeros(1, np.int32)
    before = net.heads["main"].weight
    with pytest.raises(zoo.WeightsError) as caught:
        net.load(arrays)
    assert str(caught.value).splitlines() == [
        "these weights do not fit Net: 1 missing, 1 unexpected, 2 of another shape or kind",
        "  missing conv.weight (8, 3, 3, 1) (like conv.wieght?)",
        "  unexpected conv.wieght (like conv.weight?)",
        "  heads.main.bias is (5,); (3,) was expected",
        "  scale is int32; float32 was expected",
        "  Use weights of this model in its own names and layout; print(model) lists them.",
    ]
    assert net.heads["main"].weight is before


def test_a_report_of_hundreds_is_cut():
    with pytest.raises(zoo.WeightsError) as caught:
        Net().load({f"other.{i}": np.zeros(1) for i in range(300)})
    assert "300 unexpected" in caught.value.what and "... and 292 more" in caught.value.why
    assert len(str(caught.value).splitlines()) < 25


def test_set_and_update_check_path_and_shape():
    net = Net().init(0, "numpy")
    net.set("layers.1.mlp.bias", zoo.tensor(np.ones(8, np.float32), device="numpy"))
    assert np.array_equal(net.layers[1].mlp.bias, np.ones(8))
    with pytest.raises(zoo.WeightsError, match=r"Did you mean 'layers.1.mlp.bias'"):
        net.set("layers.1.mpl.bias", net.scale)
    with pytest.raises(zoo.WeightsError, match=r"has shape \(8,\), not \(1,\)"):
        net.update({"layers.1.mlp.bias": net.scale})


def test_on_an_autodiff_device_what_is_trained_is_a_variable_and_the_rest_constant():
    plain = zoo.device("numpy")
    net = Net().init(0, plain)
    net.layers[0].freeze()
    live = net.to(zoo.Autodiff(plain)).train(zoo.random.Generator(0))
    grads = live(images()).sum().backward()
    for path, tensor in live.state().items():
        trained = path in live.parameters()
        assert (tensor in grads) == trained, path
        assert tensor.device is (zoo.Autodiff(plain) if trained else plain), path
    live.set("scale", zoo.tensor([2.0], device=plain))
    assert live.scale in live(images()).sum().backward()  # what replaces a variable is one
    back = live.to(plain)
    assert {t.device for t in back.state().values()} == {plain}
    assert np.array_equal(back.scale, [2.0])
    assert np.array_equal(net.scale, [1.0])


def test_trees_are_new_and_configs_shared():
    net = Net().init(0, "numpy")
    half = net.astype("f16")
    assert half.config is net.config and half.layers is not net.layers
    assert half.spec()["conv.weight"].dtype == zoo.float16 and net.spec()["conv.weight"].dtype == zoo.float32
    assert half.spec()["norm.num_batches_tracked"].dtype == zoo.int64
    assert half._table.dtype == zoo.float32
    doubled = net.map(lambda t: t + t)
    assert np.array_equal(doubled.scale, [2.0]) and np.array_equal(net.scale, [1.0])
    assert Net().astype("bf16").init(0, "numpy").spec()["scale"].dtype == zoo.bfloat16


def test_a_module_reached_twice_is_one_module():
    class Tied(Module):
        def __init__(self):
            self.first = self.second = Linear(2, 2)

    tied = Tied().init(0, "numpy")
    assert list(tied.state()) == ["first.weight", "first.bias"]
    assert [path for path, _ in tied.named_modules()] == ["", "first"]
    moved = tied.to(zoo.Autodiff("numpy"))
    assert moved.first is moved.second and moved.first is not tied.first


def test_train_and_eval_reach_every_module():
    net = Net().init(0, "numpy")
    rng = zoo.random.Generator(4)
    assert net.train(rng) is net
    assert all(m.training and m.rng is rng for _, m in net.named_modules())
    assert all(not m.training and m.rng is None for _, m in net.eval().named_modules())


def test_sequential_counts_functions_as_torch_counts_activations():
    net = Sequential(Linear(4, 3), ops.relu, Linear(3, 2)).init(0, "numpy")
    assert list(net.state()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = zoo.tensor(np.ones((1, 4), np.float32), device="numpy")
    assert np.array_equal(net(x), net[2](ops.relu(net[0](x)))) and len(net) == 3 and net[-1] is net[2]


def test_prepare_packs_and_changes_no_value(device):
    net = Sequential(Conv2d(3, 8, 3), Conv2d(8, 8, 3, groups=2), lambda x: x.reshape(1, -1), Linear(32, 5)).init(
        0, device
    )
    x = zoo.tensor(np.linspace(-1, 1, 108, dtype=np.float32).reshape(1, 6, 6, 3), device=device)
    before, arrays = net(x).numpy(), {p: np.asarray(t) for p, t in net.state().items()}
    assert net.prepare() is net
    if hasattr(device, "pack"):
        assert type(net[0].weight.handle) is not np.ndarray
        packed = net[0].weight
        assert net.prepare()[0].weight is packed
    np.testing.assert_allclose(net(x).numpy(), before, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(arrays[p], t) for p, t in net.state().items())
    half = net.astype("f16").prepare()  # what the device does not pack, stays
    assert half.spec()["0.weight"].dtype == zoo.float16 and half(x.astype("f16")).shape == (1, 5)
    with pytest.raises(zoo.DeviceError, match="cannot be packed"):
        net.to(zoo.Autodiff(device)).prepare()


def test_device_of_an_unfilled_model():
    with pytest.raises(zoo.DeviceError, match="on no device yet"):
        _ = Net().device


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_printed_tree():
    net = Net()
    lines = squeezed(repr(net))
    count = sum(int(np.prod(m.shape)) for p, m in net.spec().items() if "running" not in p and "batches" not in p)
    assert lines[0] == f"Net scale (1,) {count:,}"
    assert lines[1:5] == [
        "conv: Conv2d(1 -> 8, kernel 3x3, padding 1) weight (8, 3, 3, 1), bias (8,) 80",
        "norm: BatchNorm(eps 1e-05) weight, bias, running_mean, running_var (8,), num_batches_tracked () 16",
        "drop: Dropout(p 0.5)",
        "layers.0-2: 3 x Layer 3 x 264",
    ]
    assert lines[5:7] == [
        "self_attn: Attention(2 heads of 4, 1 key heads) 192",
        "q_proj: Linear(8 -> 8) weight (8, 8) 64",
    ]
    assert lines[-2] == "heads.main: Linear(8 -> 3) weight (3, 8), bias (3,) 27"
    assert lines[-1] == f"{count:,} parameters, 3.7 kB, float32/int64, no weights yet"
    filled = squeezed(repr(net.init(0, "numpy")))
    assert filled[:-1] == lines[:-1] and filled[-1] == f"{count:,} parameters, 3.7 kB, float32/int64 on numpy"


def test_the_printed_tree_shows_what_differs_and_what_is_frozen():
    net = Net().init(0, "numpy")
    net.layers[2].freeze()
    net.layers[0].mlp = net.layers[0].mlp.astype("bf16")
    text = repr(net)
    assert "3 x Layer" not in text and "[frozen]" in text
    assert "weight (8, 8) bfloat16" in text and "weight (3, 8) float32" in text
    trained = sum(t.size for t in net.parameters().values())
    assert f"({trained:,} trained)" in text.splitlines()[-1]


def test_lazy_weights_are_looked_up_once_each():
    arrays = {path: np.asarray(t) for path, t in Net().init(0, "numpy").state().items()}
    looked_up = []

    class Lazy(Mapping):
        def __getitem__(self, path):
            looked_up.append(path)
            return arrays[path]

        def __iter__(self):
            return iter(arrays)

        def __len__(self):
            return len(arrays)

    Net().load(Lazy(), device="numpy")
    assert sorted(looked_up) == sorted(arrays)
