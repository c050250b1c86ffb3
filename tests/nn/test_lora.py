from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.testing.devices import device_names
from zoo.nn import (
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Embedding,
    Linear,
    Module,
    QuantizedConv2d,
    QuantizedLinear,
    lora,
)  # fmt: skip

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


# --- matrices and convolutions, whole and rounded, against their formula in float64


def given(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BASES = {
    "linear": (lambda: Linear(40, 24), (3, 5, 40)),
    "no_bias": (lambda: Linear(40, 24, bias=False), (3, 40)),
    "conv1d": (lambda: Conv1d(20, 12, 3, padding=1), (2, 9, 20)),
    "conv2d": (lambda: Conv2d(20, 12, 3, stride=2, padding=1), (2, 8, 7, 20)),
    "dilated": (lambda: Conv2d(16, 12, (3, 2), dilation=2, padding=[(2, 1), (0, 3)], bias=False), (1, 9, 8, 16)),
    "1x1": (lambda: Conv2d(20, 12, 1), (2, 4, 4, 20)),
    "int8": (lambda: QuantizedLinear.of(Linear(128, 24).init(0, CPU), "int8"), (3, 128)),
    "int4": (lambda: QuantizedLinear.of(Linear(128, 24).init(0, CPU), "int4"), (3, 5, 128)),
    "int8_conv": (lambda: QuantizedConv2d.of(Conv2d(20, 12, 3, padding=1).init(0, CPU)), (2, 6, 5, 20)),
}


class One(Module):
    def __init__(self, layer):
        self.layer = layer


def weight_of(base) -> np.ndarray:
    """In float64 and in full."""
    weight = base.weight.numpy()
    if not isinstance(base, QuantizedLinear | QuantizedConv2d):
        return weight.astype(np.float64)
    scale = base.scale.numpy().astype(np.float64)
    if base.format == "int8":
        return weight.astype(np.float64) * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    codes = ops.dequantize(base.weight, base.scale, "int4").numpy().astype(np.float64)  # tested with the op
    return codes


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", BASES)
def test_the_formula(kind, dora):
    """m (W + s B A) / |W + s B A| as one weight of a plain layer in float64, and the gradients of all that is trained
    against finite differences of that, with the length held still as the paper's section 4.3 does."""
    make, shape = BASES[kind]
    model = One(make().init(0, CPU))
    base = model.layer
    lora.attach(model, 3, alpha=4, dora=dora)
    for i, (path, p) in enumerate(model.parameters().items()):
        model.set(path, zoo.tensor(given(p.shape, i) * 0.1 + (p.numpy() if p.ndim == 1 else 0), device=CPU))
    values = {path.rpartition("lora_")[2]: p.numpy().astype(np.float64) for path, p in model.parameters().items()}
    x, whole = given(shape, 9), weight_of(base)
    inputs = np.prod(whole.shape[1:])
    held = None

    def result(values) -> np.ndarray:
        nonlocal held
        b, a = values["B.weight"].reshape(-1, 3), values["A.weight"].reshape(3, inputs)
        weight = whole + (4 / 3 * b @ a).reshape(whole.shape)
        if dora:
            held = np.linalg.norm(weight.reshape(len(weight), -1), axis=1) if held is None else held
            weight = weight * (values["magnitude_vector"] / held).reshape(-1, *(1,) * (weight.ndim - 1))
        device, bias = zoo.device("numpy"), None if base.bias is None else base.bias.astype("float64")
        tensor, wide = zoo.tensor(x.astype(np.float64), device=device), zoo.tensor(weight, device=device)
        if weight.ndim == 2:
            return ops.linear(tensor, wide, bias).numpy()
        how = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        return ops.conv(tensor, wide, bias, **how).numpy()

    expected = result(values)
    mine = model.layer(zoo.tensor(x, device=CPU)).numpy()
    assert np.abs(mine - expected).max() < 1e-5 * np.abs(expected).max()  # float32 sums of up to 180 products

    sent = given(expected.shape, 7)
    live = model.to(zoo.Autodiff(CPU))
    found = (live.layer(zoo.tensor(x, device=CPU)) * zoo.tensor(sent, device=CPU)).sum().backward()
    for path, p in live.parameters().items():
        name, gradient = path.rpartition("lora_")[2], found[p].numpy().astype(np.float64)
        way = given(values[name].shape, 5)
        step = 1e-6
        up, down = (result({**values, name: values[name] + sign * step * way}) for sign in (1, -1))
        slope = float(((up - down) * sent).sum()) / (2 * step)
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=2e-4, abs=1e-3), path

    if isinstance(base, QuantizedLinear | QuantizedConv2d):
        with pytest.raises(ZooError, match="not merged into rounded weights"):
            lora.merge(model)
    else:
        merged = lora.merge(model)
        assert type(merged.layer) is type(base)
        assert np.abs(merged.layer(zoo.tensor(x, device=CPU)).numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", BASES)
def test_dora_changes_nothing_at_first(kind):
    make, shape = BASES[kind]
    model, x = One(make().init(0, CPU)), zoo.tensor(given(shape), device=CPU)
    before = model.layer(x).numpy()
    lora.attach(model, 2, dora=True)
    assert np.allclose(model.layer(x).numpy(), before, rtol=1e-5, atol=1e-6)
    kept = model.layer._known
    model.layer(x)
    assert model.layer._known is kept  # lengths are worked out once


def test_packed_weights_give_what_plain_ones_do():
    """On the device that packs them, as `zoo run` does."""
    if not any(name.startswith("cpu") for name in device_names()[0]):
        pytest.skip("the native kernels are not built")
    for kind, (make, shape) in BASES.items():
        model = One(make().to(zoo.device("cpu")).init(0, "cpu"))
        lora.attach(model, 2, dora=True)
        model.set("layer.lora_B.weight", zoo.tensor(given(model.layer.lora_B.weight.shape), device="cpu"))
        x = zoo.tensor(given(shape), device="cpu")
        before = model.layer(x).numpy()
        packed = model.prepare().layer(x).numpy()
        # rounded layers round activations too, in another way where packed
        assert np.abs(packed - before).max() < (0.02 if "int" in kind else 1e-5) * np.abs(before).max(), kind


class Groups(Module):
    def __init__(self):
        self.grouped, self.plain = Conv2d(8, 8, 3, groups=4), Conv2d(8, 8, 1)
        self.deconv, self.table = ConvTranspose2d(8, 8, 2), Embedding(4, 8)


def test_what_cannot_be_adapted():
    for name, why in (("grouped", "4 groups"), ("deconv", "a ConvTranspose2d"), ("table", "an Embedding")):
        with pytest.raises(ZooError, match=f"{name} cannot be adapted") as raised:
            lora.attach(Groups().init(0, CPU), 2, targets=("plain", name))
        assert why in raised.value.why
    model = Groups().init(0, CPU)
    assert lora.attach(model, 2) == 1 and list(lora.layers(model)) == ["plain"]  # what can be
    with pytest.raises(ZooError, match="adapter already"):
        lora.attach(model, 2, targets=("plain",))
    with pytest.raises(ZooError, match="no rank 0"):
        lora.attach(Net().init(0, CPU), 0)


def test_paths_name_layers_and_modules_are_trained_whole():
    model = Nested().init(0, CPU)
    assert lora.attach(model, 2, targets=("left.first", "many"), also=("right",)) == 3
    assert list(lora.layers(model)) == ["left.first", "many.0", "many.1"]
    assert {path for path in model.parameters() if "lora" not in path} == {
        "right.first.weight", "right.first.bias", "right.second.weight"
    }  # fmt: skip


class Nested(Module):
    def __init__(self):
        self.left, self.right, self.many = Net(), Net(), [Linear(4, 4), Linear(4, 4)]
