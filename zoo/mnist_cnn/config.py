"""The shape of an MNIST CNN. There is no published config.json: the tensors tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.core.errors import WeightsError

SIDE = 28  # pixels of a picture, in height and in width
CLASSES = 10


@dataclass(frozen=True)
class MnistConfig:
    """Defaults: the example of pytorch/examples as it is today. Its older version: 5x5 kernels, (20, 50) channels, a
    hidden layer of 500, and pooling after each convolution."""

    channels: tuple[int, int] = (32, 64)
    kernel_size: int = 3
    hidden_size: int = 128
    pool_after_conv1: bool = False

    @property
    def side(self) -> int:
        """Pixels of the feature map that goes into fc1, in height and in width."""
        side = SIDE - self.kernel_size + 1
        if self.pool_after_conv1:
            side //= 2
        return (side - self.kernel_size + 1) // 2

    @property
    def features(self) -> int:
        return self.channels[1] * self.side**2

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> MnistConfig | None:
        """From the names and shapes of a published state dict (torch layout); None if it is another model's.

        Raises WeightsError if the names are right and the shapes cannot be.
        """
        needed = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")
        if not all(name in tensors for name in needed):
            return None
        conv1, conv2, fc1, fc2 = (tuple(tensors[name].shape) for name in needed)
        if not (len(conv1) == len(conv2) == 4 and len(fc1) == len(fc2) == 2):
            return None
        for pool_after_conv1 in (False, True):
            config = cls((conv1[0], conv2[0]), conv1[2], fc1[0], pool_after_conv1)
            if conv1[1] == 1 and config.side > 0 and config.features == fc1[1] and fc2[0] == CLASSES:
                return config
        once, twice = (cls((conv1[0], conv2[0]), conv1[2], fc1[0], pooled).features for pooled in (False, True))
        raise WeightsError(
            "these tensors do not fit together as an MNIST CNN",
            f"conv1.weight {conv1}, conv2.weight {conv2}, fc1.weight {fc1}, fc2.weight {fc2}\n"
            f"on {SIDE}x{SIDE} pictures fc1 would take {once} inputs, or {twice} if pooled twice; "
            f"fc2 gives {CLASSES} classes",
            "Use a checkpoint of the PyTorch MNIST example, trained on 28x28 pictures.",
        )
