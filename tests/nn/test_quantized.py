"""Linear layers with weights of 8 and 4 bits, and putting them into a model."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.core import ops
from zoo.core.errors import ShapeError
from zoo.core.stats import stats
from zoo.nn import (
    Conv2d,
    Embedding,
    Linear,
    Module,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    Sequential,
    TiedEmbedding,
    quantize,
    together,
)


class Net(Module):
    def __init__(self):
        self.embed = Embedding(11, 128)
        self.layers = [Sequential(Linear(128, 192), ops.relu, Linear(192, 128, bias=False)) for _ in range(2)]
        self.pair = (Linear(128, 40), {"odd": Linear(40, 128)})
        self.lm_head = Linear(128, 11, bias=False)
        self.again = self.layers[0]

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        x = x + self.pair[1]["odd"](self.pair[0](x))
        return self.lm_head(self.again(x))


def net(device):
    return Net().init(0, device)


def ids(device):
    return zoo.tensor(np.arange(11, dtype=np.int64).reshape(1, 11), device=device)


@pytest.mark.parametrize("format, off", [("int8", 0.02), ("int4", 0.2)])
def test_a_quantised_model_computes_nearly_the_same(device, format, off):
    model = net(device)
    before = model(ids(device)).numpy()
    assert quantize(model, format) is model
    after = model(ids(device)).numpy()
    distance = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert 0 < distance < off
    assert isinstance(model.layers[0][0], QuantizedLinear) and isinstance(model.pair[1]["odd"], QuantizedLinear)
    assert model.again is model.layers[0] and model.lm_head.format == "int8"  # the head, whatever the others are
    assert model.layers[0][0].format == format
    assert model.pair[1]["odd"].format == "int8"  # 40 inputs are few, and no whole groups of 32
    packed = model.prepare()(ids(device)).numpy()
    np.testing.assert_allclose(packed, after, rtol=1e-5, atol=1e-6)


def test_each_layer_is_the_product_with_its_rounded_weight(device):
    linear = Linear(128, 40).init(1, device)
    x = zoo.tensor(np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32), device=device)
    for format in ("int8", "int4"):
        layer = quantize(linear, format)
        assert layer.bias is linear.bias and layer.describe() == f"128 -> 40, {format}"
        wide = ops.dequantize(layer.weight, layer.scale, format)
        expected = ops.linear(x, wide, linear.bias, activation="relu").numpy()
        found = layer(x, activation="relu").numpy()
        assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)  # 8-bit activations: 0.8 %


def test_layers_together_are_the_layers_one_by_one(device):
    x = zoo.tensor(np.random.default_rng(0).normal(size=(2, 3, 128)).astype(np.float32), device=device)
    plain = [Linear(128, n, bias=False).init(n, device) for n in (40, 9)]
    for layers in (plain, [quantize(one, "int4") for one in plain], [quantize(plain[0], "int8"), plain[1]],
                   [quantize(Linear(128, 5).init(0, device), "int8") for _ in range(2)]):  # fmt: skip
        for y, layer in zip(together(x, *layers), layers, strict=True):
            np.testing.assert_array_equal(y.numpy(), layer(x).numpy())


def test_what_is_skipped_stays(device):
    model = quantize(net(device), "int8", skip=("pair", "lm_head"))
    assert isinstance(model.pair[0], Linear) and isinstance(model.pair[1]["odd"], QuantizedLinear)
    assert isinstance(model.lm_head, Linear) and isinstance(model.embed, Embedding)


def test_prepared_quantised_weights_take_their_kernel():
    device = zoo.device("cpu") if "cpu" in _devices() else pytest.skip("the native kernels were not built")
    for format in ("int8", "int4"):
        model = quantize(net(device), format).prepare()
        assert type(model.layers[0][0].weight.handle) is not np.ndarray
        before = stats()
        model(ids(device))
        assert stats()[f"cpu.{format}"] > before.get(f"cpu.{format}", 0)


def test_convolutions_of_enough_channels_become_int8(device):
    convs = [
        Conv2d(3, 16, 3, padding=1),  # of colours: stays
        Conv2d(16, 24, 3, stride=2, padding=1, dilation=2),
        Conv2d(24, 24, 3, groups=2),  # stays
        Conv2d(24, 18, 1, bias=False),
        Conv2d(18, 8, 1),  # channels not in fours: stays
    ]
    model = Sequential(*convs).init(0, device)
    x = zoo.tensor(np.random.default_rng(0).normal(size=(2, 15, 14, 3)).astype(np.float32), device=device)
    before = model(x).numpy()
    for format in ("int8", "int4"):
        quantised = quantize(Sequential(*(model[i] for i in range(5))), format)
        assert [type(quantised[i]) for i in range(5)] == [Conv2d, QuantizedConv2d, Conv2d, QuantizedConv2d, Conv2d]
        assert quantised[1].describe() == "16 -> 24, kernel 3x3, stride 2, padding 1, dilation 2, int8"
        after = quantised(x).numpy()
        assert 0 < np.linalg.norm(after - before) < 0.03 * np.linalg.norm(before)
        state = {path: np.asarray(t) for path, t in quantised.state().items()}
        np.testing.assert_allclose(quantised.prepare()(x).numpy(), after, rtol=1e-5, atol=1e-6)
        again = {path: np.asarray(t) for path, t in quantised.state().items()}
        assert all(np.array_equal(again[path], array) for path, array in state.items())
    residual = zoo.tensor(np.ones((1, 2, 2, 18), np.float32), device=device)
    layer, small = quantised[3], zoo.tensor(np.ones((1, 2, 2, 24), np.float32), device=device)
    np.testing.assert_allclose(
        layer(small, activation="relu", residual=residual).numpy(), np.maximum(layer(small).numpy() + 1, 0), rtol=1e-5
    )


def _devices():
    from zoo.core.testing.devices import device_names

    return {name.partition(":")[0] for name in device_names()[0]}


def test_the_state_goes_into_a_model_of_the_same_form_and_back(device):
    for format in ("int8", "int4"):
        model = quantize(net(device), format)
        state = {path: np.asarray(t) for path, t in model.prepare().state().items()}
        assert state["layers.0.0.weight"].dtype == (np.int8 if format == "int8" else np.uint8)
        fresh = QuantizedLinear(128, 192, format)
        layer = {name: state[f"layers.0.0.{name}"] for name in ("weight", "scale", "bias")}
        fresh.load(layer, device=device)
        x = zoo.tensor(np.ones((2, 128), np.float32), device=device)
        np.testing.assert_array_equal(fresh(x), model.layers[0][0](x))


def test_only_what_is_not_rounded_is_trained(device):
    model = quantize(net(device), "int8")
    assert not any(path.endswith("scale") or path == "layers.0.0.weight" for path in model.parameters())
    on = model.to(zoo.Autodiff(device))
    gradients = ops.sum(on(ids(device))).backward()
    assert np.abs(gradients[on.embed.weight].numpy()).max() > 0
    with pytest.raises(zoo.DeviceError, match="cannot be quantised"):
        quantize(net(device).to(zoo.Autodiff(device)), "int8")


def test_an_unknown_format_is_named(device):
    with pytest.raises(zoo.ZooError, match="int3"):
        quantize(net(device), "int3")


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_checkpoint_is_rounded_while_it_is_loaded(device, format):
    plain, rounded = (zoo.load("mnist_cnn", device=device, dtype=dtype) for dtype in ("f32", format))
    layers = [m for _, m in rounded.named_modules() if isinstance(m, QuantizedLinear)]
    assert layers and format in {layer.format for layer in layers}
    assert not any(type(m) is Linear for _, m in rounded.named_modules())
    x = zoo.tensor(np.random.default_rng(0).random((16, 28, 28), np.float32), device=device)
    before, after = plain(x).numpy(), rounded(x).numpy()
    assert np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before)


@pytest.mark.parametrize("width", [40, 41])
def test_an_embedding_that_is_the_head_too_is_rounded_once_for_both(device, width):
    plain = TiedEmbedding(70, width).init(1, device)
    layer = quantize(TiedEmbedding(70, width).init(1, device), "int4")
    assert type(layer) is QuantizedEmbedding and layer.describe() == f"70 x {width}, int8"
    wide = ops.dequantize(layer.weight, layer.scale, "int8").numpy()
    assert np.abs(wide - plain.weight.numpy()).max() <= layer.scale.numpy().max() / 2 * 1.001
    numbers = np.array([[3, 69, 0], [7, 7, 33]], np.int32)
    x = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    for one in (layer, layer.prepare()):
        np.testing.assert_array_equal(one(zoo.tensor(numbers, device=device)).numpy(), wide[numbers])
        found = one.head(zoo.tensor(x, device=device)).numpy()
        assert np.linalg.norm(found - x @ wide.T) < 0.02 * np.linalg.norm(x @ wide.T)
        for wrong in (70, -1):
            with pytest.raises(ShapeError):
                one(zoo.tensor([wrong], device=device))
