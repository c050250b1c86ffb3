"""The shape of a ResNet, with the field names of transformers' ResNetConfig; from config.json, or from the tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.core.errors import WeightsError
from zoo.resnet.labels import CIFAR10
from zoo.resnet.preprocess import Preprocessing

REDUCTION = 4
"""A bottleneck's 3x3 convolution has a fourth of the channels that the block gives (He et al. 2015, table 1)."""


@dataclass(frozen=True)
class ResNetConfig:
    """Defaults: ResNet-50 v1.5. The first eight fields are transformers'; the last say what its config cannot."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    """Or "basic": two 3x3 convolutions."""
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    """Where a bottleneck's stride of 2 is: in its 3x3 (v1.5, False), or in the 1x1 before it (v1, True)."""

    id2label: Mapping[str, str] | None = None
    """Number of a class, in decimal digits, -> its name; None: the weights name none."""
    num_labels: int = 0
    """Classes; 0: as many as id2label names."""
    small_stem: bool = False
    """A 3x3 stem at stride 1 without pooling, for pictures of 32 pixels (He et al. section 4.2)."""
    shortcut: str = "projection"
    """Where the shape changes: 1x1 convolution ("projection", the paper's option B), or every second pixel, and zeros
    for the channels that are new ("padding", option A)."""
    batch_counts: bool = True
    """The checkpoint counts the batches that its statistics come from (num_batches_tracked); older ones do not."""
    layout: str = "transformers"
    """The published layout that the tensors came in, and are exported to: a key of weights.LAYOUTS."""
    preprocessing: Preprocessing | None = None
    """None: what the files beside the weights say (preprocess.of)."""

    def __post_init__(self) -> None:
        if isinstance(self.preprocessing, Mapping):
            object.__setattr__(self, "preprocessing", Preprocessing.from_json(self.preprocessing))
        if not self.num_labels:  # transformers writes no id2label for its default of two classes without a name
            object.__setattr__(self, "num_labels", len(self.id2label) if self.id2label else 2)
        if self.layer_type not in ("basic", "bottleneck"):
            raise ValueError(f"layer_type {self.layer_type!r}; basic and bottleneck are known")
        if self.shortcut not in ("projection", "padding"):
            raise ValueError(f"shortcut {self.shortcut!r}; projection and padding are known")
        if len(self.depths) != len(self.hidden_sizes) or not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} do not pair up")
        if self.id2label is not None and sorted(self.id2label) != sorted(map(str, range(self.num_labels))):
            raise ValueError(f"id2label does not name the classes 0 to {self.num_labels - 1}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> ResNetConfig | None:
        """From the names and shapes of a state dict of transformers, torchvision, timm, or a CIFAR ResNet; None if it
        is another model's. What shapes cannot tell (a stride) is as in torchvision.

        Raises WeightsError if the names are right and the shapes cannot be.
        """
        for layout, names in _NAMES.items():
            if names.stem in tensors and names.head in tensors and names.conv(0, 0, 0) in tensors:
                return _read(cls, layout, names, {name: tuple(info.shape) for name, info in tensors.items()})
        return None


@dataclass(frozen=True)
class _Names:
    """Where a layout has what tells the shape; stage, block and convolution count from 0."""

    stem: str
    block: str
    head: str
    shortcut: str
    first: int
    """Number of the first stage and of a block's first convolution in the names."""

    def conv(self, stage: int, block: int, conv: int) -> str:
        return self.block.format(s=stage + self.first, b=block, c=conv + self.first)

    def projection(self, stage: int) -> str:
        return self.shortcut.format(s=stage + self.first)

    def blocks(self, names: Mapping[str, Any], stage: int) -> int:
        count = 0
        while self.conv(stage, count, 0) in names:
            count += 1
        return count


_TORCHVISION = _Names("conv1.weight", "layer{s}.{b}.conv{c}.weight", "fc.weight", "layer{s}.0.downsample.0.weight", 1)
_NAMES = {
    "transformers": _Names(
        stem="resnet.embedder.embedder.convolution.weight",
        block="resnet.encoder.stages.{s}.layers.{b}.layer.{c}.convolution.weight",
        head="classifier.1.weight",
        shortcut="resnet.encoder.stages.{s}.layers.0.shortcut.convolution.weight",
        first=0,
    ),
    "torchvision": _TORCHVISION,
    "cifar": dataclasses.replace(_TORCHVISION, head="linear.weight", shortcut="layer{s}.0.shortcut.0.weight"),
}


def _read(cls: type[ResNetConfig], layout: str, names: _Names, shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    stages = 0
    while names.conv(stages, 0, 0) in shapes:
        stages += 1
    basic = names.conv(0, 0, 2) not in shapes
    last = [shapes.get(names.conv(stage, 0, 1 if basic else 2), ()) for stage in range(stages)]
    stem, head = shapes[names.stem], shapes[names.head]
    if len(stem) != 4 or len(head) != 2 or any(len(shape) != 4 for shape in last) or stem[2] not in (3, 7):
        raise WeightsError(
            "these tensors do not fit together as a ResNet",
            f"{names.stem} {stem}, {names.head} {head}; a stem of 7x7 (or 3x3, for small pictures) and a linear head "
            "were expected",
            "Use a checkpoint of transformers, torchvision, timm, or of a CIFAR ResNet.",
        )
    small, classes = stem[2] == 3, head[0]
    cifar = small and layout == "cifar" and classes == len(CIFAR10)
    return cls(
        num_channels=stem[1],
        embedding_size=stem[0],
        hidden_sizes=tuple(shape[0] for shape in last),
        depths=tuple(names.blocks(shapes, stage) for stage in range(stages)),
        layer_type="basic" if basic else "bottleneck",
        id2label={str(i): name for i, name in enumerate(CIFAR10)} if cifar else None,
        num_labels=classes,
        small_stem=small,
        shortcut="projection" if stages == 1 or names.projection(1) in shapes else "padding",
        batch_counts=any(name.endswith(".num_batches_tracked") for name in shapes),
        layout=layout,
    )
