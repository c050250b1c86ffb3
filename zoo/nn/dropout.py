"""Dropout."""

from __future__ import annotations

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.nn.module import Module


class Dropout(Module):
    """In training, a share p of the values is set to 0 and the others divided by 1 - p (Srivastava et al. 2014).

    Which values, is drawn from the generator given to `model.train(rng)`: the same in a run repeated or resumed.
    """

    def __init__(self, p: float = 0.5):
        if not 0 <= p < 1:
            raise ValueError(f"p = {p}; the share that is dropped lies in [0, 1)")
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.rng is None:
            raise ZooError(
                "dropout has nothing to draw from", "training mode was set without a generator",
                "model.train(zoo.random.Generator(seed))",
            )  # fmt: skip
        rng = self.rng
        return ops.dropout(x, self.p, seed=rng.seed, offset=rng.take(x.size), start=rng.start)

    def describe(self) -> str:
        return f"p {self.p:g}"
