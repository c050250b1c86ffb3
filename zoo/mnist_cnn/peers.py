"""The same network with the same weights in torch's own words, for `zoo bench mnist_cnn --peers`.

Imported in the peer's own process alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from zoo.bench.case import Run, Variants
from zoo.bench.peers import torch_here, ways
from zoo.mnist_cnn.bench import DECAY, RATE, fresh, labels, pictures
from zoo.mnist_cnn.model import MEAN, STD
from zoo.mnist_cnn.weights import TABLE


def _network(device: str) -> Any:
    """A torch module in the older published shape (zoo.mnist_cnn.finetune.NEW)."""
    nn = torch_here(device).nn
    model = fresh("numpy")
    ours = {name: t.numpy() for name, t in model.state().items()}
    published = {name: np.array(a, order="C") for name, a in TABLE.export(ours, model.config).translate(ours)}
    layers = {
        "conv1": nn.Conv2d(1, 20, 5), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2), "conv2": nn.Conv2d(20, 50, 5),
        "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2), "dropout1": nn.Dropout(0.25), "flat": nn.Flatten(),
        "fc1": nn.Linear(800, 500), "relu3": nn.ReLU(), "dropout2": nn.Dropout(0.5), "fc2": nn.Linear(500, 10),
    }  # fmt: skip
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    network.load_state_dict({name: torch_here(device).from_numpy(array) for name, array in published.items()})
    return network.to(device)


def forward(batch: int, device: str = "cpu") -> dict[str, Run]:
    import torch

    x = torch.from_numpy(pictures(batch))[:, None].to(device)

    def variant(layout: Any, compiled: bool) -> Run:
        network = _network(device).eval().to(memory_format=layout)
        network = torch.compile(network) if compiled else network
        placed = x.contiguous(memory_format=layout)

        def run() -> Any:
            with torch.inference_mode():
                return network((placed - MEAN) / STD)

        return run

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return {
        name + ", compiled" * compiled: variant(layout, compiled)
        for compiled in ways(device)
        for name, layout in layouts.items()
    }


def train_step(batch: int, device: str = "cpu") -> Variants:
    import torch

    x, y = torch.from_numpy(pictures(batch))[:, None].to(device), torch.from_numpy(labels(batch)).long().to(device)

    def variant(layout: Any, optimizer: str, compiled: bool) -> Run:
        network: Any = _network(device).train().to(memory_format=layout)
        network = torch.compile(network) if compiled else network
        how = {"fused": optimizer == "fused", "foreach": optimizer == "foreach"}
        adamw = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, **how)  # type: ignore[arg-type]
        placed = x.contiguous(memory_format=layout)

        def run() -> float:
            loss = torch.nn.functional.cross_entropy(network((placed - MEAN) / STD), y)
            adamw.zero_grad(set_to_none=True)
            loss.backward()
            adamw.step()
            return loss.item()

        return run

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return Variants({
        f"{name}, {how} AdamW" + ", compiled" * compiled: partial(variant, layout, how, compiled)
        for compiled in ways(device)
        for name, layout in layouts.items()
        for how in ("fused", "foreach")
    })  # fmt: skip
