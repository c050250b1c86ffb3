"""The CNN of the PyTorch MNIST example (github.com/pytorch/examples, mnist/main.py), in both of its published versions.

Names are the example's: conv1, conv2, fc1, fc2. Shapes: B pictures, H and W pixels, C channels.
"""

from __future__ import annotations

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.mnist_cnn.config import CLASSES, MnistConfig
from zoo.nn import Conv2d, Dropout, Linear, Module

MEAN, STD = 0.1307, 0.3081  # of all pixels of the training pictures, in [0, 1]; both versions were trained with them


class MnistCNN(Module):
    """Pictures (B, 28, 28), values in [0, 1], white ink on black -> logits (B, 10)."""

    def __init__(self, config: MnistConfig):
        self.config = config
        first, second = config.channels
        self.conv1 = Conv2d(1, first, config.kernel_size)
        self.conv2 = Conv2d(first, second, config.kernel_size)
        self.dropout1 = Dropout(0.25)
        self.fc1 = Linear(config.features, config.hidden_size)
        self.dropout2 = Dropout(0.5)
        self.fc2 = Linear(config.hidden_size, CLASSES)

    def __call__(self, pictures: Tensor) -> Tensor:
        x = self.entering(ops.expand_dims((pictures - MEAN) / STD, -1))  # (B, 28, 28, 1)
        # relu after pooling: the same numbers, of a quarter of the values
        x = self.conv1(x)
        x = ops.relu(ops.max_pool(x, 2) if self.config.pool_after_conv1 else x)
        x = ops.relu(ops.max_pool(self.conv2(x), 2))
        x = self.dropout1(x)  # (B, side, side, C)
        x = x.reshape(x.shape[0], -1)  # ordered (H, W, C); weights.py turns the published (C, H, W) round
        x = self.dropout2(self.fc1(x, activation="relu"))
        return self.fc2(self.leaving(x))
