"""A moving average of a model's weights: often better than the last ones, since the noise of the steps averages out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.core.dtype import is_float
from zoo.core.fusion import fused
from zoo.core.tensor import Tensor
from zoo.nn import Module
from zoo.train.captured import copied


@fused
def _blend(old: Tensor, new: Tensor, share: float) -> Tensor:
    return old + (new - old) * share


class Average:
    """average += (1 - d) (weights - average) after every step (Polyak & Juditsky 1992), running statistics included;
    integers are copied. d rises as (1 + t) / (10 + t) up to `decay`, so that the start is forgotten quickly."""

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}; it lies in [0, 1)")
        self.decay, self.steps = decay, 0
        self.values: dict[str, Tensor] = {}

    def update(self, model: Module, device: Any) -> None:
        """Takes the model's weights of this step in; `device` is the plain one on which the average lives."""
        share = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for path, tensor in model.state().items():
            new, old = tensor.to(device), self.values.get(path)
            if old is None or not is_float(new.dtype):
                self.values[path] = copied(new)  # the step that follows may write to it
            else:
                self.values[path] = _blend(old, new, share)

    def load(self, values: Mapping[str, Tensor], steps: int) -> None:
        self.values, self.steps = dict(values), steps
