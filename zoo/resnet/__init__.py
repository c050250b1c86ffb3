"""ResNets: what is on a picture."""

from __future__ import annotations

from zoo.port import Port
from zoo.resnet.classify import run
from zoo.resnet.config import ResNetConfig
from zoo.resnet.evaluate import evaluate
from zoo.resnet.example import example
from zoo.resnet.finetune import finetune
from zoo.resnet.model import ResNet
from zoo.resnet.weights import table

PORT = Port(
    name="resnet",
    task="say what is on a photograph",
    config=ResNetConfig,
    model=ResNet,
    weights=table,
    run=run,
    finetune=finetune,
    evaluate=evaluate,
    checkpoints=("resnet",),
    example=example,
    bench="zoo.resnet.bench",
)
