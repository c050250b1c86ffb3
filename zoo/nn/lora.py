"""LoRA: a few trained numbers beside weights that stay (Hu et al. 2021).

lora.attach(model, rank=8, targets=("q_proj", "v_proj"))     # in place; everything else is frozen
...                                                          # train, save the adapter (zoo/hub/adapter.py)
lora.merge(model)                                            # W + scale B A, in place: a plain model again

Where the weights are rounded (zoo/nn/quantized.py), the adapter is trained beside the rounded ones, in float32: QLoRA
(Dettmers et al. 2023), with our formats in the place of theirs. Such weights take no change in, so it is not merged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.errors import ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.linear import Linear
from zoo.nn.module import Module
from zoo.nn.param import Param
from zoo.nn.quantized import QuantizedLinear


class LoRA(Module):
    """base(x) + scale * lora_B(lora_A(x)), in the place of a Linear layer. lora_B begins as zeros: at first nothing
    changes."""

    def __init__(self, base: Linear | QuantizedLinear, rank: int, scale: float):
        outputs, inputs = base.shape if isinstance(base, QuantizedLinear) else base.weight.shape
        self.base = base
        self.lora_A = Linear(inputs, rank, bias=False)
        self.lora_B = Linear(rank, outputs, bias=False)
        self.lora_B.weight = Param((outputs, rank), init.zeros)
        self.scale = scale

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        y = self.base(x) + self.lora_B(self.lora_A(x)) * self.scale
        return y if activation is None else getattr(ops, activation)(y)

    def merged_weight(self) -> Tensor:
        """That of the base with the change added in float32, in its dtype. Raises ZooError if the base is rounded."""
        if isinstance(self.base, QuantizedLinear):
            why = f"a weight in {self.base.format} has a few steps only, and most of the change would be lost in them"
            fix = "Merge into the full weights: load the base without a dtype, or as bf16."
            raise ZooError("an adapter is not merged into rounded weights", why, fix)
        a, b = (layer.weight.astype(float32) for layer in (self.lora_A, self.lora_B))
        weight = self.base.weight
        return (weight.astype(float32) + ops.matmul(b, a) * self.scale).astype(weight.dtype)

    def merged(self) -> Linear:
        """The base with the change in its weight. The base itself changes."""
        weight = self.merged_weight()
        assert isinstance(self.base, Linear)
        self.base.set("weight", weight)
        return self.base

    def describe(self) -> str:
        return f"rank {self.lora_A.weight.shape[0]}, scale {self.scale:g}"


def attach(
    model: Module, rank: int, *, alpha: float | None = None, targets: Collection[str] = (), seed: int = 0
) -> int:
    """Freezes a model and puts LoRA around the Linear layers whose attribute is in `targets` (empty: around all of
    them), in place. scale = alpha / rank; alpha: 2 * rank if None. -> how many.

    Raises ZooError if there is none.
    """
    model.freeze()
    scale = (2 * rank if alpha is None else alpha) / rank
    places = [(holder, key) for holder, key, name in _linears(model) if not targets or name in targets]
    if not places:
        what = ", ".join(sorted(targets)) or "Linear"
        raise ZooError("there is nothing to adapt", f"the model has no layer named {what}", "Name layers that it has.")
    for holder, key in places:
        holder[key] = LoRA(holder[key], rank, scale)
    model.init(Generator(seed), model.device)
    return len(places)


def _linears(model: Module) -> Iterator[tuple[Any, Any, str]]:
    """Where each is kept, by which key, and its attribute; also those in a list, as `to_out` of diffusers' models."""
    for _, module in list(model.named_modules()):
        if not isinstance(module, LoRA):
            for holder, key, name, value in _places(module):
                if isinstance(value, Linear | QuantizedLinear):
                    yield holder, key, name


def _places(module: Module) -> list[tuple[Any, Any, str, Any]]:
    found: list[tuple[Any, Any, str, Any]] = []
    for name, value in vars(module).items():
        if isinstance(value, list):
            found += [(value, i, name, part) for i, part in enumerate(value)]
        else:
            found.append((vars(module), name, name, value))
    return found


def layers(model: Module) -> dict[str, LoRA]:
    """The LoRA layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRA)}


def merge(model: Module) -> Module:
    """Adds every change to its weight and takes the LoRA layers away, in place; the model is trainable again. Raises
    ZooError if weights are rounded."""
    for _, module in list(model.named_modules()):
        for holder, key, _, value in _places(module):
            if isinstance(value, LoRA):
                holder[key] = value.merged()
    return model.unfreeze()
