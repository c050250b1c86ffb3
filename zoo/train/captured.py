"""The loss of a batch and its gradients as a captured step (zoo/core/capture.py): recorded once, then replayed without
Python, which takes a fifth of a step of the digits' network."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.core.autodiff import Autodiff
from zoo.core.capture import Capture, records
from zoo.core.random import Generator
from zoo.core.tensor import Tensor, tensor
from zoo.nn import Module
from zoo.train.batch import arrays, mapped, on_device
from zoo.train.gradients import gradients
from zoo.train.optim import Optimizer


def in_place(device: Any, optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer with donate=True leaves the weights in the memory in which they are."""
    return optimizer.in_place and getattr(device, "in_place", False)


def copied(value: Tensor) -> Tensor:
    """The same on the same device, in memory of its own."""
    return tensor(value.numpy(), device=value.device)


class CapturedLoss:
    """loss(model, batch) and its gradients in the model's parameters: on a device that records, to the bits that they
    have where it does not, and in memory that the next call writes to.

    `model` is on Autodiff(device), and draws from `rng`. The loss must be a function of the batch's arrays, of the
    weights and of what dropout draws: numbers and branches of Python stay what they were when it was recorded, once for
    every combination of shapes, and again where weights came to lie elsewhere (a checkpoint was loaded). So it is worth
    its while with an optimizer that moves weights in place.
    """

    def __init__(self, model: Module, loss: Callable[[Any, Any], Tensor], device: Any, rng: Generator):
        self.model, self.loss, self.device, self.rng = model, loss, device, rng
        self.captures = records(device) and getattr(device, "in_place", False)
        self._slots, self._weights = list(model.slots().values()), list[Any]()
        self._capture: Capture | None = None
        self._batch: Any = None
        self._drawn: dict[tuple[Any, ...], int] = {}
        """Blocks of random numbers that a step takes, by the shapes of its batch."""

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.captures:
            return self._learn(on_device(batch, self.device))
        weights = [Autodiff(self.device).value(slot.value.handle) for slot in self._slots]
        if self._capture is None or not all(map(operator.is_, weights, self._weights)):
            self._capture, self._weights = Capture(self._step, self.device), weights
        self._batch, begin = batch, self.rng.offset
        given = [array for _, array in arrays(batch)]
        found = self._capture(np.array([begin], np.int64), *given)
        self.rng.offset = begin + self._drawn[tuple(array.shape for array in given)]
        return found

    def _learn(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.loss(self.model, batch)
        return loss.to(self.device), gradients(loss, self.model)

    def _step(self, start: Tensor, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        given = iter(tensors)
        with self.rng.counted_from(start):
            found = self._learn(mapped(self._batch, lambda _: next(given)))
            self._drawn[tuple(t.shape for t in tensors)] = self.rng.offset
        return found
