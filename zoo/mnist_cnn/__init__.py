"""Handwritten digits: the CNN of the PyTorch MNIST example, in both of its published versions."""

from __future__ import annotations

from zoo.mnist_cnn.config import MnistConfig
from zoo.mnist_cnn.evaluate import evaluate
from zoo.mnist_cnn.example import example
from zoo.mnist_cnn.finetune import finetune
from zoo.mnist_cnn.model import MnistCNN
from zoo.mnist_cnn.recognise import run
from zoo.mnist_cnn.weights import TABLE
from zoo.port import Port

PORT = Port(
    name="mnist_cnn",
    task="recognise a handwritten digit in any picture",
    config=MnistConfig,
    model=MnistCNN,
    weights=TABLE,
    run=run,
    finetune=finetune,
    evaluate=evaluate,
    checkpoints=("mnist_cnn",),
    example=example,
    bench="zoo.mnist_cnn.bench",
)
