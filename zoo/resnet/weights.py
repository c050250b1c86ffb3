"""How published state dicts become ours, and back: one table for each layout. Names are transformers' throughout."""

from __future__ import annotations

from zoo.hub.table import Row, Table, permute, row
from zoo.resnet.config import ResNetConfig

CHANNELS_LAST = "torch stores (out, in, height, width), we (out, height, width, in)"
BLOCK = "resnet.encoder.stages.{s}.layers.{b}"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

TRANSFORMERS = Table(
    *(
        row(name, name, permute(0, 2, 3, 1), why=CHANNELS_LAST)
        for name in (
            "resnet.embedder.embedder.convolution.weight",
            f"{BLOCK}.layer.{{c}}.convolution.weight",
            f"{BLOCK}.shortcut.convolution.weight",
        )
    )
)


def _torch(shortcut: str, head: str) -> Table:
    """The names of torchvision's code, which counts stages and convolutions from 1."""
    rows = [*_conv_norm("resnet.embedder.embedder", "conv1", "bn1")]
    for stage in range(4):
        ours, theirs = f"resnet.encoder.stages.{stage}.layers.{{b}}", f"layer{stage + 1}.{{b}}"
        for conv in range(3):
            rows += _conv_norm(f"{ours}.layer.{conv}", f"{theirs}.conv{conv + 1}", f"{theirs}.bn{conv + 1}")
        rows += _conv_norm(f"{ours}.shortcut", f"{theirs}.{shortcut}.0", f"{theirs}.{shortcut}.1")
    rows += [row(f"classifier.1.{name}", f"{head}.{name}", why="the head") for name in ("weight", "bias")]
    return Table(*rows)


def _conv_norm(ours: str, conv: str, norm: str) -> list[Row]:
    weight = row(f"{ours}.convolution.weight", f"{conv}.weight", permute(0, 2, 3, 1), why=CHANNELS_LAST)
    return [weight, *(row(f"{ours}.normalization.{n}", f"{norm}.{n}", why="transformers' names") for n in NORM)]


TORCHVISION = _torch(shortcut="downsample", head="fc")
"""Also timm's, whose plain ResNets keep torchvision's names."""
CIFAR = _torch(shortcut="shortcut", head="linear")
"""akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar, and most nets that descend from them."""

LAYOUTS = {"transformers": TRANSFORMERS, "torchvision": TORCHVISION, "cifar": CIFAR}


def table(config: ResNetConfig) -> Table:
    """That of the layout in which these weights were published."""
    return LAYOUTS[config.layout]
