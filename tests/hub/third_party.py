"""A port in a package of its own, as a stranger would publish one: a module, and an entry point in its metadata.

`install` writes it to a directory that then goes on the path, so the real discovery of installed packages finds it.
"""

from __future__ import annotations

from pathlib import Path

PORT = '''
"""scaler: multiplies numbers by learned factors. Published: `factors.w` (in, out) and `bias`; ours: a Linear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.core.errors import DataError, WeightsError
from zoo.core.tensor import tensor
from zoo.hub import save
from zoo.hub.table import Table, drop, row, transpose
from zoo.nn import Linear, Module
from zoo.port import Port


@dataclass
class ScalerConfig:
    inputs: int
    outputs: int

    @classmethod
    def from_tensors(cls, tensors):
        if "factors.w" not in tensors:
            return None
        if len(tensors["factors.w"].shape) != 2:
            raise WeightsError("cannot read the scaler", "factors.w is no matrix", "Use another file.")
        return cls(*tensors["factors.w"].shape)


class Scaler(Module):
    def __init__(self, config):
        self.config = config
        self.factors = Linear(config.inputs, config.outputs)

    def __call__(self, x):
        return self.factors(x)


class Scaled:
    def __init__(self, number, values):
        self.number, self.values = number, values

    def to_json(self):
        return {"number": self.number, "values": [float(v) for v in self.values]}

    def preview(self):
        return f"  looking at {self.number}"

    def __str__(self):
        return " ".join(f"{v:g}" for v in self.values)


def run(model: Scaler, numbers: list[float] | None = None, *, plus: float = 0.0, negate: bool = False,
        mode: Literal["plain", "boom", "bug", "stop", "memory", "nan"] = "plain", seed: int = 0, device=None,
        progress=None) -> Iterator[Scaled]:
    """Scale numbers.

    numbers: what to scale; without any, 1
        and nothing else
    plus: added to each
    """
    assert not model.training
    if mode == "boom":
        raise DataError("cannot scale this", "it explodes", "Try another.")
    if mode == "bug":
        raise RuntimeError("unexpected")
    if mode == "memory":
        raise MemoryError
    progress(1, 2, "scaling")
    for number in numbers or [1.0]:
        if mode == "stop":
            raise KeyboardInterrupt("stopped after one")
        x = np.full((1, model.config.inputs), np.nan if mode == "nan" else number + plus + seed, np.float32)
        y = model(tensor(x, device=device)).numpy()[0]
        yield Scaled(number, -y if negate else y)


class Trained:
    def __init__(self, where):
        self.where = where

    def to_json(self):
        return {"out": str(self.where)}

    def __str__(self):
        return f"wrote {self.where}"


def finetune(model: Scaler | None = None, *, data: Path | None = None, epochs: int = 2, lr: float = 0.5, seed: int = 0,
             device=None, out: Path = Path("scaler-finetuned"), resume: bool = False) -> Iterator[Trained]:
    """Train the scaler."""
    if model is None:
        model = Scaler(ScalerConfig(2, 1))
        model.load({"factors.weight": np.zeros((1, 2), np.float32), "factors.bias": np.zeros(1, np.float32)}, device)
    model.factors.bias = model.factors.bias + (epochs * lr + seed)
    yield Trained(save(model, out, port="scaler"))


PORT = Port(
    name="scaler",
    task="multiply numbers by learned factors",
    config=ScalerConfig,
    model=Scaler,
    weights=Table(
        row("factors.weight", "factors.w", transpose(), why="published (in, out)"),
        row("factors.bias", "bias", why="published without its layer"),
        drop("steps", why="counts training steps"),
    ),
    run=run,
    finetune=finetune,
    checkpoints=("scaler",),
)
'''

BROKEN = "raise ImportError('no module named left_pad')"


def install(site: Path) -> Path:
    """Writes two packages to `site`: one with the port `scaler`, one whose port `broken` cannot be imported, and one
    that announces something that is no port; returns `site`."""
    for package, module, source, entry in (
        ("zoo-scaler", "zoo_scaler", PORT, "scaler = zoo_scaler:PORT"),
        ("zoo-broken", "zoo_broken", BROKEN, "broken = zoo_broken:PORT"),
        ("zoo-odd", "zoo_odd", "PORT = 3", "odd = zoo_odd:PORT"),
    ):
        (site / f"{module}.py").write_text(source, encoding="utf-8")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[zoo.ports]\n{entry}\n", encoding="utf-8")
    return site
