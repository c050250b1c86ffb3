"""Layers, losses and the module tree.

class Net(Module):
    def __init__(self):
        self.fc1, self.fc2 = Linear(784, 128), Linear(128, 10)

    def __call__(self, x):
        return self.fc2(ops.relu(self.fc1(x)))

net = Net().init(zoo.random.Generator(0), device="cpu")
"""

from __future__ import annotations

from zoo.nn import init, lora, losses
from zoo.nn.activations import activation
from zoo.nn.attention import Attention
from zoo.nn.batch_norm import BatchNorm
from zoo.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from zoo.nn.dropout import Dropout
from zoo.nn.embedding import Embedding, TiedEmbedding
from zoo.nn.linear import Linear
from zoo.nn.module import Module
from zoo.nn.norm import GroupNorm, LayerNorm, RMSNorm
from zoo.nn.param import Param
from zoo.nn.quantized import QuantizedConv2d, QuantizedEmbedding, QuantizedLinear, attend, quantize, together
from zoo.nn.recompute import recomputed
from zoo.nn.resize import AvgPool, MaxPool, Upsample, global_avg_pool
from zoo.nn.sequential import Sequential

__all__ = [
    "Attention", "AvgPool", "BatchNorm", "Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d", "Dropout",
    "Embedding", "GroupNorm", "LayerNorm", "Linear", "MaxPool", "Module", "Param", "QuantizedConv2d",
    "QuantizedEmbedding", "QuantizedLinear", "RMSNorm", "Sequential", "TiedEmbedding", "Upsample", "activation",
    "attend", "global_avg_pool", "init", "lora", "losses", "quantize", "recomputed", "together",
]  # fmt: skip
