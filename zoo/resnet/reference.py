"""The same networks in torch, under torchvision's names; and the reference values of tests/resnet made with them.

    python -m zoo.resnet.reference        writes tests/resnet/reference.npz: logits of the shipped weights by torch

Nothing else in the zoo imports this file, or torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo.data.picture import open_rgb
from zoo.resnet import preprocess
from zoo.resnet.classify import SAMPLES
from zoo.resnet.config import ResNetConfig
from zoo.resnet.weights import TORCHVISION

OUT = Path(__file__).parents[2] / "tests" / "resnet" / "reference.npz"


def torch_net(c: ResNetConfig, *, head: str = "fc", shortcut: str = "downsample") -> Any:
    """A torch.nn.Module with random weights: torchvision's ResNet; with head="linear" and shortcut="shortcut", those of
    the CIFAR repositories."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            sizes: tuple[int, ...]
            kernels: tuple[int, ...]
            strides: tuple[int, ...]
            if c.layer_type == "basic":
                sizes, kernels, strides = (inputs, outputs, outputs), (3, 3), (stride, 1)
            else:
                narrow, v1 = outputs // 4, c.downsample_in_bottleneck
                sizes, kernels = (inputs, narrow, narrow, outputs), (1, 3, 1)
                strides = (stride, 1, 1) if v1 else (1, stride, 1)
            self.count = len(kernels)
            for i, (k, s) in enumerate(zip(kernels, strides, strict=True)):
                conv = nn.Conv2d(sizes[i], sizes[i + 1], k, s, k // 2, bias=False)
                setattr(self, f"conv{i + 1}", conv)
                setattr(self, f"bn{i + 1}", nn.BatchNorm2d(sizes[i + 1]))
            changes = stride != 1 or inputs != outputs
            self.pads = outputs - inputs if changes and c.shortcut == "padding" else None
            if changes and c.shortcut == "projection":
                project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                setattr(self, shortcut, nn.Sequential(project, nn.BatchNorm2d(outputs)))
            self.stride = stride

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = F.relu(y) if i < self.count else y
            if self.pads is not None:
                x = x[:, :, :: self.stride, :: self.stride]
                x = F.pad(x, (0, 0, 0, 0, self.pads // 2, self.pads - self.pads // 2))
            elif hasattr(self, shortcut):
                x = getattr(self, shortcut)(x)
            return F.relu(x + y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kernel, stride = (3, 1) if c.small_stem else (7, 2)
            self.conv1 = nn.Conv2d(c.num_channels, c.embedding_size, kernel, stride, kernel // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(c.embedding_size)
            inputs = c.embedding_size
            for i, (outputs, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
                stride = 2 if i or c.downsample_in_first_stage else 1
                blocks = [Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(depth - 1))]
                setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
                inputs = outputs
            setattr(self, head, nn.Linear(inputs, c.num_labels))

        def forward(self, x: Any) -> Any:
            x = F.relu(self.bn1(self.conv1(x)))
            x = x if c.small_stem else F.max_pool2d(x, 3, 2, 1)
            for i in range(len(c.depths)):
                x = getattr(self, f"layer{i + 1}")(x)
            return getattr(self, head)(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    return Net()


def load(directory: Path) -> Any:
    """transformers' model with a checkpoint's weights, in float32: for `zoo compare`."""
    import torch
    import transformers

    kind = transformers.ResNetForImageClassification
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def call(module: Any, pixels: np.ndarray) -> Any:
    """What it makes of the port's example, which is in our layout."""
    import torch

    return module(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))


def main() -> None:
    import torch

    model = zoo.load("resnet", device="numpy", dtype="float32")
    net = torch_net(model.config)
    ours = {name: tensor.numpy() for name, tensor in model.state().items()}
    published = dict(TORCHVISION.export(ours, model.config).translate(ours))
    net.load_state_dict({name: torch.tensor(np.ascontiguousarray(array)) for name, array in published.items()})

    prepared = preprocess.of(model)
    photographs = [prepared.pixels(open_rgb(file)) for file in sorted(SAMPLES.glob("*.jpg"))]
    noise = np.random.default_rng(0).integers(0, 256, (3, prepared.size, prepared.size, 3), np.uint8)
    pictures = np.concatenate([np.stack(photographs), noise])
    x = prepared.normalise(pictures).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    np.savez_compressed(OUT, pictures=pictures, logits=logits)
    print(f"{OUT}: {len(pictures)} pictures, torch {torch.__version__}")


if __name__ == "__main__":
    main()
