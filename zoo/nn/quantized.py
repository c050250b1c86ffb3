"""Linear layers, convolutions and tied embeddings with weights of 8 or 4 bits.

quantize(model, "int8")        # in place: 4 times smaller than float32, about 1 % off (relative L2 of a layer's result)
quantize(model, "int4")        # 7 times smaller, about 10 % off; convolutions become int8
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from zoo.core import ops
from zoo.core.dtype import bfloat16, float16, float32, int8, uint8
from zoo.core.errors import DeviceError, DtypeError
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.conv import Conv2d, Size
from zoo.nn.embedding import TiedEmbedding
from zoo.nn.linear import Linear
from zoo.nn.module import Module
from zoo.nn.param import Param

M = TypeVar("M", bound=Module)
Layer = Linear | Conv2d | TiedEmbedding
FORMATS = ("int8", "int4")
GROUP = 32  # inputs that share a scale of int4: see ops.quantize
HEADS = ("lm_head",)  # what llama.cpp keeps wider too: its q4_0 has an output of q6_K
NARROW = 128
"""Matrices with fewer inputs are int8 where int4 is asked for. Rounding to 4 bits is 8 % off for any matrix, but narrow
nets have fewer numbers over which it averages out: perplexity +7.8 % at 64 inputs (stories260K; +7 % with the scale of
each group searched for the least squared error), +1.0 % at 192 and 512. Narrow matrices are small, too."""
FEWEST = 16  # input channels of a convolution that is worth it: the first one, of colours, has hardly any weights


class QuantizedLinear(Module):
    """A Linear whose weight is stored as `format` "int8" (a scale for each output) or "int4" (one for each 32 inputs):
    see ops.quantize. Weight and scale are not trained; gradients flow through to x."""

    packs = {"weight": "linear", "scale": "scale"}  # noqa: RUF012 - a class attribute of the base
    buffers = ("weight", "scale")
    exact = ("scale",)

    def __init__(self, inputs: int, outputs: int, format: str, bias: bool = True):
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        if format == "int8":
            self.weight, self.scale = Param((outputs, inputs), dtype=int8), Param((outputs,), dtype=float32)
        else:
            self.weight = Param((outputs, inputs // 2), dtype=uint8)
            self.scale = Param((outputs, inputs // GROUP), dtype=float16)
        self.bias = Param((outputs,), init.fan_in_uniform(inputs)) if bias else None
        self.format = format

    @classmethod
    def of(cls, linear: Linear, format: str) -> QuantizedLinear:
        """What `linear` computes, with its weight rounded; the bias is shared. Unfilled, if `linear` is."""
        outputs, inputs = linear.weight.shape
        layer = cls(inputs, outputs, format, bias=False)
        if not isinstance(linear.weight, Param):
            layer.weight, layer.scale = ops.quantize(linear.weight, format)
        layer.bias, layer.training, layer.frozen = linear.bias, linear.training, linear.frozen
        return layer

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix that it stands for."""
        outputs, stored = self.weight.shape
        return outputs, stored * (2 if self.format == "int4" else 1)

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        return ops.qlinear(x, self.weight, self.scale, self.format, self.bias, activation=activation)

    def describe(self) -> str:
        outputs, inputs = self.shape
        return f"{inputs} -> {outputs}, {self.format}"


def together(x: Tensor, *layers: Module) -> tuple[Tensor, ...]:
    """What each of the layers makes of x. Quantised ones of one format run as one product: for a single row, starting a
    product costs as much as reading a megabyte of weights."""
    first = layers[0]
    if type(first) is QuantizedLinear and all(
        type(one) is QuantizedLinear and one.format == first.format for one in layers
    ):
        weights = [(one.weight, one.scale, one.bias) for one in layers]  # type: ignore[attr-defined]
        return ops.qlinears(x, weights, first.format)
    return tuple([one(x) for one in layers])  # type: ignore[operator]


def attend(q: Tensor, k: Tensor, v: Tensor, beside: Module) -> Tensor:
    """Attention of every query to every key (shapes: ops.attention), for which a device may round as it does for the
    layer `beside` it."""
    if type(beside) is QuantizedLinear:
        return ops.qattention(q, k, v, "int8")
    if type(beside) is Linear and beside.weight.dtype == bfloat16:
        return ops.qattention(q, k, v, "bfloat16")
    return ops.attention(q, k, v)


class QuantizedConv2d(Conv2d):
    """A Conv2d in one group whose weight is stored as int8, with a scale for each output. Weight and scale are not
    trained; gradients flow through to x."""

    buffers = ("weight", "scale")
    exact = ("scale",)

    def __init__(self, inputs: int, outputs: int, kernel: Size, *, format: str = "int8", **settings: Any):
        super().__init__(inputs, outputs, kernel, **settings)
        self.weight = Param(self.weight.shape, dtype=int8)
        self.scale: Tensor = Param((outputs,), dtype=float32)
        self.format = format

    @classmethod
    def of(cls, conv: Conv2d, format: str = "int8") -> QuantizedConv2d:
        """What `conv` computes, with its weight rounded; the bias is shared. Unfilled, if `conv` is."""
        outputs, *kernel, inputs = conv.weight.shape
        layer = cls(
            inputs, outputs, kernel, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, bias=False,
            format=format,
        )  # fmt: skip
        if not isinstance(conv.weight, Param):
            codes, scale = ops.quantize(conv.weight.reshape(outputs, -1), format)
            layer.update({"weight": codes.reshape(conv.weight.shape), "scale": scale})
        layer.bias, layer.training, layer.frozen = conv.bias, conv.training, conv.frozen
        return layer

    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return ops.qconv(
            x, self.weight, self.scale, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation,
            activation=activation, residual=residual,
        )  # fmt: skip

    def describe(self) -> str:
        return f"{super().describe()}, {self.format}"


class QuantizedEmbedding(Module):
    """A TiedEmbedding whose table is stored as int8, with a scale for each row: an output of the head."""

    packs = {"weight": "linear"}  # noqa: RUF012 - a class attribute of the base
    buffers = ("weight", "scale")
    exact = ("scale",)

    def __init__(self, count: int, width: int, format: str = "int8"):
        self.weight: Tensor = Param((count, width), dtype=int8)
        self.scale: Tensor = Param((count,), dtype=float32)
        self.format = format

    @classmethod
    def of(cls, embedding: TiedEmbedding, format: str = "int8") -> QuantizedEmbedding:
        """Unfilled, if `embedding` is."""
        count, width = embedding.weight.shape
        layer = cls(count, width, format)
        if not isinstance(embedding.weight, Param):
            layer.weight, layer.scale = ops.quantize(embedding.weight, format)
        layer.training, layer.frozen = embedding.training, embedding.frozen
        return layer

    def __call__(self, ids: Tensor) -> Tensor:
        return ops.qembedding(self.weight, self.scale, ids)

    def head(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., count)."""
        return ops.qlinear(x, self.weight, self.scale, self.format)

    def describe(self) -> str:
        return f"{' x '.join(map(str, self.weight.shape))}, {self.format}"


KINDS = (QuantizedLinear, QuantizedConv2d, QuantizedEmbedding)
"""Layers with a `format`, whose `weight` and `scale` take the place of another layer's weight."""


def formats(model: Module) -> dict[str, str]:
    """Path -> format of every rounded layer."""
    return {path: module.format for path, module in model.named_modules() if isinstance(module, KINDS)}


def quantize(model: M, format: str, skip: Collection[str] = (), layers: Mapping[str, str] | None = None) -> M:
    """Puts a QuantizedLinear in the place of every Linear of the model, and a QuantizedConv2d in that of every Conv2d
    in one group of at least 16 input channels, in fours; in place; call `prepare` after it, not before.

    Layers whose attribute is in `skip` stay. With "int4", the head of a language model becomes "int8", since its errors
    reach the choice of a token directly, and so do convolutions, layers of fewer than 128 inputs (NARROW), or whose
    inputs do not divide by 32. An embedding that is the head too becomes "int8" for both; other embeddings and all
    other convolutions stay as they are. -> the model (if it is itself a layer, the one in its place). A model without
    values becomes a rounded one without values.

    layers: path -> format, of the layers that are rounded, instead of all these rules: as a checkpoint states them.
    Raises DeviceError on an Autodiff device: what is trained is not rounded.
    """
    if format not in FORMATS:
        raise DtypeError(f"unknown weight format {format!r}", "Known: " + ", ".join(FORMATS))
    made: dict[int, Module] = {}
    seen: set[int] = set()

    def wanted(layer: Layer, path: str, name: str) -> str | None:
        if layers is not None:
            return layers.get(path)
        return None if name in skip else _format(layer, "int8" if name in HEADS else format)

    def visit(value: Any, path: str, name: str) -> Any:
        """name: of the attribute that holds the value, in a list or not."""
        if isinstance(value, Linear | TiedEmbedding) or type(value) is Conv2d:
            if id(value) not in made and (chosen := wanted(value, path, name)) is not None:
                made[id(value)] = _quantized(value, chosen)
            return made.get(id(value), value)
        under = f"{path}." if path else ""
        if isinstance(value, Module) and id(value) not in seen:
            seen.add(id(value))
            for key, part in list(vars(value).items()):
                vars(value)[key] = visit(part, f"{under}{key}", key)
        elif isinstance(value, dict):
            for key, part in value.items():
                value[key] = visit(part, f"{under}{key}", str(key))
        elif isinstance(value, list):
            value[:] = [visit(part, f"{under}{i}", name) for i, part in enumerate(value)]
        elif type(value) is tuple:
            return tuple(visit(part, f"{under}{i}", name) for i, part in enumerate(value))
        return value

    return visit(model, "", "")


def _format(layer: Layer, format: str) -> str | None:
    """The one asked for, or int8 where 4 bits do not fit; None where rounding is not worth it."""
    inputs = layer.weight.shape[-1]
    if isinstance(layer, TiedEmbedding):
        return "int8"
    if isinstance(layer, Conv2d):
        return "int8" if layer.groups == 1 and inputs >= FEWEST and inputs % 4 == 0 else None
    return format if format != "int4" or (inputs >= NARROW and inputs % GROUP == 0) else "int8"


def _quantized(layer: Layer, format: str) -> QuantizedLinear | QuantizedConv2d | QuantizedEmbedding:
    if not isinstance(layer.weight, Param) and getattr(layer.weight.device, "inner", None) is not None:
        raise DeviceError(
            f"weights on {layer.weight.device.name} cannot be quantised",
            "they are variables, which training changes",
            "Move the model off it first: quantize(model.to(device), format).",
        )
    if isinstance(layer, TiedEmbedding):
        return QuantizedEmbedding.of(layer, format)
    return QuantizedConv2d.of(layer, format) if isinstance(layer, Conv2d) else QuantizedLinear.of(layer, format)
