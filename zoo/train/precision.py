"""Mixed precision (Micikevicius et al. 2018): activations and their gradients in 16 bits, what adds up in 32.

in 16 bits     the arguments, and so the results and gradients, of products: matmul, linear, convolutions, attention.
               They are nearly all of the work, and what they are made of is nearly all that is kept for the gradient.
               Inside, sums are float32 and rounded once.
as they come   what is elementwise on those results, pooling, shapes: one rounding for each result is all that is lost.
in float32     the weights, their gradients and the optimizer's moments: a step is a small part of a weight, and would
               be rounded away. What weights are multiplied with is a copy, made where it is used.
               Residual sums, embeddings: small changes of a large number, over all layers.
               Norms, softmax, losses, inside and in their results: differences of numbers that are nearly equal, and
               sums of many. The parameters of norms. Validation.

bf16 has float32's range and 8 bits of precision. f16 has 11 bits, and nothing between 0 and 6e-8: gradients would
vanish. So the loss is multiplied by a scale that makes them as large as fits, found by trying: an infinity among the
gradients halves it, and that step moves nothing; 2,000 steps without double it (the numbers are torch's GradScaler's).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from zoo.core.autodiff import Autodiff
from zoo.core.dtype import HALVES, dtype, float16, float32
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.nn import Module
from zoo.nn.module import is_trainable

M = TypeVar("M", bound=Module)

PRODUCTS = frozenset(("matmul", "linear", "conv", "conv_bias_act", "attention"))
START, GROWTH = 2.0**16, 2000
LEAST = 2.0**-14
"""A scale at which gradients still overflow says that they are infinite by themselves."""


class Precision:
    """How a step is worked out: f32, bf16, or f16 with its scale of the loss."""

    def __init__(self, name: str = "f32"):
        if name not in ("f32", "bf16", "f16"):
            raise ZooError(f"precision {name!r} is not known", "", "It may be f32, bf16 or f16.")
        self.name, self.dtype = name, dtype(name)
        self.scale = START if self.dtype == float16 else 1.0
        self.steps = 0
        """Since the scale last changed."""

    @property
    def scales(self) -> bool:
        return self.dtype == float16

    def masters(self, model: M) -> M:
        """The model with what is trained in float32, where steps are worked out in less."""

        def widen(module: Module, name: str, value: Any) -> Any:
            trained = name[0] != "_" and is_trainable(module, name, value)
            return value.astype(float32) if trained and value.dtype in HALVES else value

        return model if self.dtype == float32 else model.rebuilt(widen)

    @contextlib.contextmanager
    def on(self, device: Autodiff) -> Iterator[None]:
        """Ops of the device are worked out so meanwhile: forward and backward."""
        if self.dtype == float32:
            yield
            return

        def narrowed(prim: Any, args: Any) -> Any:
            if prim.name not in PRODUCTS:
                return args
            cast = device.ops.cast
            return [cast(a, dtype=self.dtype) if getattr(a, "dtype", None) == float32 else a for a in args]

        with device.changing(narrowed):
            yield

    def scaled(self, loss: Tensor, weight: float) -> Tensor:
        """What the gradients are taken of."""
        factor = weight * self.scale
        return loss if factor == 1 else loss * factor

    def unscaled(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {path: g * (1 / self.scale) for path, g in gradients.items()} if self.scale != 1 else dict(gradients)

    def fits(self, finite: bool) -> bool:
        """Whether a step may be made of gradients that are `finite` or not; the scale follows. With False, the next
        steps are made with a smaller one."""
        if finite:
            self.steps += 1
            if self.scales and self.steps == GROWTH:
                self.scale, self.steps = self.scale * 2, 0
            return True
        self.scale, self.steps = self.scale / 2, 0
        return False

    @property
    def exhausted(self) -> bool:
        """Whether a smaller scale is of no use any more."""
        return not self.scales or self.scale <= LEAST

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "steps": self.steps}

    def load(self, state: Mapping[str, float]) -> None:
        self.scale, self.steps = float(state["scale"]), int(state["steps"])
