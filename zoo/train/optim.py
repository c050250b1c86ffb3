"""Optimizers. `step(model, gradients, lr)` moves each parameter by its rule; the learning rate comes with every step.

What an optimizer remembers is kept by the parameter's path, under the names that torch gives it. A parameter without a
gradient is left alone, and its count of steps stands still. The rules agree with torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.core import ops
from zoo.core.dtype import compute_dtype
from zoo.core.errors import WeightsError
from zoo.core.fusion import fused
from zoo.core.tensor import Tensor, tensor
from zoo.nn import Module

Decay = float | Callable[[str, Tensor], float]
"""Weight decay: of all parameters, or as a function of path and parameter."""


@dataclass(frozen=True)
class matrices_only:
    """Weight decay for what has two axes or more: neither biases nor the scales of norms are drawn to zero."""

    decay: float

    def __call__(self, path: str, p: Tensor) -> float:
        return self.decay if p.ndim >= 2 else 0.0


class Optimizer:
    """The base: holds the state, moves the parameters. A rule is `move(p, g, memory, lr, decay) -> p`, in which
    `memory` is the parameter's own dict."""

    settings: ClassVar[tuple[str, ...]] = ()
    in_place: ClassVar[bool] = False
    """Whether the rule, where it may, writes to the parameter's own memory on devices that can."""
    donate = False
    """Whether it may, in the step at hand."""

    def __init__(self, weight_decay: Decay = 0.0):
        self.weight_decay = weight_decay
        self.memory: dict[str, dict[str, Any]] = {}

    def move(self, p: Tensor, g: Tensor, memory: dict[str, Any], lr: float, decay: float) -> Tensor:
        raise NotImplementedError

    def step(self, model: Module, gradients: Mapping[str, Tensor], lr: float, *, donate: bool = False) -> None:
        """Moves the parameters that have a gradient, in the model: one after the other, so that the old values of one
        parameter only are in memory beside the new ones. donate: nobody else uses the old values of parameters and
        moments, and their memory may be written to; faster, and less memory."""
        slots, self.donate = model.slots(), donate
        for path, g in gradients.items():
            slot = slots[path]
            place, p = slot.value.device, slot.value.to(g.device)
            decay = self.weight_decay(path, p) if callable(self.weight_decay) else self.weight_decay
            memory, wide = self.memory.setdefault(path, {}), compute_dtype(p.dtype)
            if wide == p.dtype:
                p = self.move(p, g, memory, lr, decay)
            else:  # in half precision, moments would lose small changes
                p = self.move(p.astype(wide), g.astype(wide), memory, lr, decay).astype(p.dtype)
            slot.holder[slot.key] = p.to(place)

    def describe(self) -> dict[str, Any]:
        """Name and settings, for logs and to tell whether a run is resumed as it began."""
        decay: Any = self.weight_decay
        if callable(decay):
            decay = repr(decay) if is_dataclass(decay) else "a function"
        return {"name": type(self).__name__, "weight_decay": decay} | {k: getattr(self, k) for k in self.settings}

    def state(self) -> dict[str, Any]:
        """ "PATH/NAME" -> tensor; counts of steps as int64 arrays."""
        return {
            f"{path}/{name}": value if isinstance(value, Tensor) else np.array(value, dtype=np.int64)
            for path, memory in self.memory.items()
            for name, value in memory.items()
        }

    def load(self, state: Mapping[str, Any], device: Any) -> None:
        """Takes over what `state` gave."""
        self.memory = {}
        for key, value in state.items():
            path, _, name = key.rpartition("/")
            if not path:
                raise WeightsError("this is no state of an optimizer", f"{key!r} does not name a parameter", "")
            kept = int(np.asarray(value)) if name == "step" else tensor(value, device=device)
            self.memory.setdefault(path, {})[name] = kept


def _zeros(p: Tensor) -> Tensor:
    """Where a moment begins."""
    return ops.zeros(p.shape, dtype=p.dtype, device=p.device)


class SGD(Optimizer):
    """p -= lr v, v = momentum v + g, from v = g at the first step (Sutskever et al. 2013; as torch has it).
    nesterov: p -= lr (g + momentum v). Weight decay is added to g."""

    settings = ("momentum", "nesterov")

    def __init__(self, momentum: float = 0.0, nesterov: bool = False, weight_decay: Decay = 0.0):
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum")
        super().__init__(weight_decay)
        self.momentum, self.nesterov = momentum, nesterov

    def move(self, p: Tensor, g: Tensor, memory: dict[str, Any], lr: float, decay: float) -> Tensor:
        p, v = self._moved(p, g, memory.get("momentum_buffer"), lr, decay)
        if v is not None:
            memory["momentum_buffer"] = v
        return p

    @fused
    def _moved(self, p: Tensor, g: Tensor, v: Tensor | None, lr: float, decay: float) -> tuple[Tensor, Tensor | None]:
        if decay:
            g = g + p * decay
        if self.momentum:
            v = g if v is None else v * self.momentum + g
            g = g + v * self.momentum if self.nesterov else v
        return p - g * lr, v


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): p (1 - lr decay) - lr m / (sqrt(v) + eps), moments
    corrected for their start at zero."""

    settings = ("betas", "eps")
    in_place = True

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: Decay = 0.01):
        super().__init__(weight_decay)
        self.betas, self.eps = tuple(betas), eps

    def move(self, p: Tensor, g: Tensor, memory: dict[str, Any], lr: float, decay: float) -> Tensor:
        if not memory:
            memory.update(step=0, exp_avg=_zeros(p), exp_avg_sq=_zeros(p))
        memory["step"] += 1
        p, memory["exp_avg"], memory["exp_avg_sq"] = ops.adamw_step(
            p, g, memory["exp_avg"], memory["exp_avg_sq"], lr=lr, beta1=self.betas[0], beta2=self.betas[1],
            eps=self.eps, weight_decay=decay, step=memory["step"], donate=self.donate,
        )  # fmt: skip
        return p


class Adam(AdamW):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: Decay = 0.0):
        super().__init__(betas, eps, weight_decay)

    def move(self, p: Tensor, g: Tensor, memory: dict[str, Any], lr: float, decay: float) -> Tensor:
        return super().move(p, g + p * decay if decay else g, memory, lr, 0.0)


class RMSprop(Optimizer):
    """p -= lr g / (sqrt(mean of g^2) + eps), the mean moving by alpha (Tieleman & Hinton 2012). centered: less the
    square of the moving mean of g (Graves 2013). Weight decay is added to g."""

    settings = ("alpha", "eps", "momentum", "centered")

    def __init__(
        self,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: Decay = 0.0,
    ):
        super().__init__(weight_decay)
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered

    def move(self, p: Tensor, g: Tensor, memory: dict[str, Any], lr: float, decay: float) -> Tensor:
        if decay:
            g = g + p * decay
        if not memory:
            moments = (
                "square_avg",
                *(["grad_avg"] if self.centered else []),
                *(["momentum_buffer"] if self.momentum else []),
            )
            memory.update({name: _zeros(p) for name in moments})
        names = ("square_avg", "grad_avg", "momentum_buffer")
        square, mean, v = (memory.get(name) for name in names)
        p, *found = self._moved(p, g, square, mean, v, lr)
        memory.update({name: m for name, m in zip(names, found, strict=True) if m is not None})
        return p

    @fused
    def _moved(
        self, p: Tensor, g: Tensor, square: Any, mean: Tensor | None, v: Tensor | None, lr: float
    ) -> tuple[Any, ...]:
        square = size = square * self.alpha + g * g * (1 - self.alpha)
        if mean is not None:
            mean = mean * self.alpha + g * (1 - self.alpha)
            size = square - mean * mean
        g = g / (ops.sqrt(size) + self.eps)
        if v is not None:
            g = v = v * self.momentum + g
        return p - g * lr, square, mean, v
