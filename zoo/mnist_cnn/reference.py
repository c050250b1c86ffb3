"""Makes tests/mnist_cnn/reference.npz: logits of the shipped weights by torch, for the tests that run without torch.

    python -m zoo.mnist_cnn.reference

The network is written here in torch's own words, over the shipped tensors translated back to the published layout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import zoo
from zoo.mnist_cnn.image import read
from zoo.mnist_cnn.model import MEAN, STD
from zoo.mnist_cnn.recognise import SAMPLES
from zoo.mnist_cnn.weights import TABLE

OUT = Path(__file__).parents[2] / "tests" / "mnist_cnn" / "reference.npz"


def main() -> None:
    import torch
    from torch.nn import functional as F

    model = zoo.load("mnist_cnn", device="numpy", dtype="float32")
    ours = {name: tensor.numpy() for name, tensor in model.state().items()}
    published = dict(TABLE.export(ours, model.config).translate(ours))
    w = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in published.items()}

    pictures = np.stack([read(file) for file in sorted(SAMPLES.glob("*.png"))])
    x = (torch.from_numpy(pictures)[:, None] - MEAN) / STD
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"])), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2)
    x = F.relu(F.linear(torch.flatten(x, 1), w["fc1.weight"], w["fc1.bias"]))
    logits = F.linear(x, w["fc2.weight"], w["fc2.bias"])
    np.savez_compressed(OUT, pictures=pictures, logits=logits.numpy())
    print(f"{OUT}: {len(pictures)} pictures, torch {torch.__version__}")


if __name__ == "__main__":
    main()
