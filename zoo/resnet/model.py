"""ResNet (He et al. 2015, arXiv 1512.03385): v1, v1.5, and the CIFAR nets of its section 4.2.

Names are those of transformers' ResNetForImageClassification. Shapes: B pictures, H and W pixels, C channels.
"""

from __future__ import annotations

from typing import Any

from zoo.core import ops
from zoo.core.errors import DeviceError
from zoo.core.tensor import Tensor
from zoo.nn import BatchNorm, Conv2d, Linear, Module, QuantizedConv2d, Sequential, activation, global_avg_pool
from zoo.nn.init import kaiming_normal
from zoo.nn.lora import LoRA
from zoo.nn.param import Param
from zoo.nn.recompute import Run, called, recomputed
from zoo.resnet.config import REDUCTION, ResNetConfig


class ConvNorm(Module):
    """act(norm(conv(x)) + residual) (B, H', W', outputs); the norm is folded into the convolution by `prepare`."""

    def __init__(
        self, c: ResNetConfig, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: str | None = "relu"
    ):
        self.convolution = Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.convolution.weight.init = kaiming_normal(outputs * kernel * kernel)  # by fan-out, as He et al. 2015b
        self.normalization: BatchNorm | None = BatchNorm(outputs)
        if not c.batch_counts:
            self.normalization.num_batches_tracked = None
        self.act = act

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.normalization is None:
            return self.convolution(x, activation=self.act, residual=residual)
        y = self.normalization(self.convolution(x))
        y = y if residual is None else y + residual
        return y if self.act is None else activation(self.act)(y)

    def fold(self) -> None:
        """norm(conv(x)) as one convolution, worked out in float32: w * s and bias - mean * s, where s is
        weight / sqrt(var + eps). The weight is then rounded to what goes through it. Of a quantised one, the scales of
        its outputs are multiplied; with an adapter around it, the norm stays."""
        conv: Any = self.convolution
        if self.normalization is None or isinstance(conv, LoRA) or isinstance(conv.weight, Param):
            return
        norm = {name: tensor.astype("float32") for name, tensor in self.normalization.state().items()}
        scale = norm["weight"] / ops.sqrt(norm["running_var"] + self.normalization.eps)
        if isinstance(conv, QuantizedConv2d):
            conv.scale = conv.scale * scale
        else:
            conv.weight = (conv.weight.astype("float32") * scale.reshape(-1, 1, 1, 1)).astype(self.activations)
        conv.bias = norm["bias"] - norm["running_mean"] * scale
        self.normalization = None


class Block(Module):
    """A residual block: act(layer(x) + shortcut(x)). Two 3x3 convolutions, or 1x1, 3x3, 1x1 with fewer channels."""

    def __init__(self, c: ResNetConfig, inputs: int, outputs: int, stride: int = 1):
        if c.layer_type == "basic":
            self.layer = [
                ConvNorm(c, inputs, outputs, stride=stride),
                ConvNorm(c, outputs, outputs, act=c.hidden_act),
            ]
        else:
            narrow = outputs // REDUCTION
            first, second = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
            self.layer = [
                ConvNorm(c, inputs, narrow, kernel=1, stride=first),
                ConvNorm(c, narrow, narrow, stride=second),
                ConvNorm(c, narrow, outputs, kernel=1, act=c.hidden_act),
            ]
        changes = inputs != outputs or stride != 1
        projects = changes and c.shortcut == "projection"
        self.shortcut = ConvNorm(c, inputs, outputs, kernel=1, stride=stride, act=None) if projects else None
        self.stride, self.new_channels = stride, outputs - inputs

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.layer[:-1]:
            y = conv(y)
        return self.layer[-1](y, residual=self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            return self.shortcut(x)
        if self.stride != 1:
            x = x[:, :: self.stride, :: self.stride]
        if self.new_channels:  # half of the zero channels before, half after (akamaster/pytorch_resnet_cifar10)
            before = self.new_channels // 2
            x = ops.pad(x, [(0, 0), (0, 0), (0, 0), (before, self.new_channels - before)])
        return x


class Stage(Module):
    def __init__(self, c: ResNetConfig, inputs: int, outputs: int, depth: int, stride: int):
        self.layers = [Block(c, inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(depth)]

    def __call__(self, x: Tensor, run: Run) -> Tensor:
        for block in self.layers:
            x = run(block, x)
        return x


class Embedder(Module):
    """The stem: 7x7 at stride 2 and 3x3 max pooling; or one 3x3, for small pictures."""

    def __init__(self, c: ResNetConfig):
        kernel, stride = (3, 1) if c.small_stem else (7, 2)
        self.embedder = ConvNorm(c, c.num_channels, c.embedding_size, kernel, stride, act=c.hidden_act)
        self.pools = not c.small_stem

    def __call__(self, x: Tensor) -> Tensor:
        x = self.embedder(x)
        return ops.max_pool(x, 3, stride=2, padding=1) if self.pools else x


class Encoder(Module):
    def __init__(self, c: ResNetConfig):
        inputs = (c.embedding_size, *c.hidden_sizes)
        strides = [2 if c.downsample_in_first_stage else 1] + [2] * (len(c.depths) - 1)
        self.stages = [
            Stage(c, before, after, depth, stride)
            for before, after, depth, stride in zip(inputs, c.hidden_sizes, c.depths, strides, strict=False)
        ]


class Backbone(Module):
    def __init__(self, c: ResNetConfig):
        self.embedder = Embedder(c)
        self.encoder = Encoder(c)

    def __call__(self, x: Tensor, run: Run) -> list[Tensor]:
        x = run(self.embedder, x)
        stages = []
        for stage in self.encoder.stages:
            x = stage(x, run)
            stages.append(x)
        return stages


class ResNet(Module):
    """Normalised pictures (B, H, W, num_channels) -> logits (B, num_labels)."""

    def __init__(self, config: ResNetConfig):
        self.config = config
        self.recompute = False
        """In training, blocks keep what goes into them only, and work the rest out again for the gradient."""
        self.resnet = Backbone(config)
        # "1": transformers counts the flattening before it
        self.classifier = Sequential(global_avg_pool, Linear(config.hidden_sizes[-1], config.num_labels))

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.classifier(self.leaving(self.features(pictures)[-1]))

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What each stage gives: (B, H, W, hidden_sizes[i]), H and W halving from stage to stage."""
        return self.resnet(self.entering(pictures), recomputed if self.recompute else called)

    def prepare(self) -> ResNet:
        """For inference: every batch norm is folded into the convolution before it, in float32, and the weights are
        packed. The model can neither be trained nor saved then."""
        if getattr(self.device, "inner", None) is not None:
            raise DeviceError(
                f"weights on {self.device.name} cannot be folded", "they are variables, which training changes",
                "Move the model off it first: model.to(device).prepare().",
            )  # fmt: skip
        for _, module in self.named_modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return super().prepare()
