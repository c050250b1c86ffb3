"""LoRA: a few trained numbers beside weights that stay (Hu et al. 2021). DoRA: a trained length for each output, too
(Liu et al. 2024).

lora.attach(model, rank=8, targets=("q_proj", "v_proj"))     # in place; everything else is frozen
...                                                          # train, save the adapter (zoo/hub/adapter.py)
lora.merge(model)                                            # W + scale B A, in place: a plain model again

One mechanism for matrices and convolutions: with W as a matrix of a row for each output, A goes from its inputs to
`rank` values and B from those to its outputs; of a convolution, A has its window and B is 1x1.

Where the weights are rounded (zoo/nn/quantized.py), the adapter is trained beside the rounded ones, in float32: QLoRA
(Dettmers et al. 2023), with our formats in the place of theirs. Such weights take no change in, so it is not merged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from zoo.core import ops
from zoo.core.device import root
from zoo.core.dtype import float32
from zoo.core.errors import ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.conv import Conv1d, Conv2d
from zoo.nn.linear import Linear
from zoo.nn.module import Module
from zoo.nn.param import Param
from zoo.nn.quantized import QuantizedConv2d, QuantizedLinear

Layer = Linear | Conv1d | Conv2d | QuantizedLinear  # a QuantizedConv2d is a Conv2d
ROUNDED = (QuantizedLinear, QuantizedConv2d)


class LoRA(Module):
    """base(x) + scale * lora_B(lora_A(x)), in the place of a Linear or a convolution; lora_B begins as zeros: at first
    nothing changes.

    dora: what W' = W + scale B A gives, without the bias, times lora_magnitude_vector / |W'| for each output; the
    vector begins as |W|. The gradient takes |W'| as a constant (section 4.3 of the paper).
    """

    def __init__(self, base: Layer, rank: int, scale: float, dora: bool = False):
        outputs, *window, inputs = base.shape if isinstance(base, QuantizedLinear) else base.weight.shape
        self.base = base
        self.lora_A: Linear | Conv1d | Conv2d
        self.lora_B: Linear | Conv1d | Conv2d
        if isinstance(base, Conv1d | Conv2d):
            kind = Conv1d if base.rank == 1 else Conv2d
            how: Any = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
            self.lora_A = kind(inputs, rank, window, bias=False, **how)
            self.lora_B = kind(rank, outputs, 1, bias=False)
        else:
            self.lora_A, self.lora_B = Linear(inputs, rank, bias=False), Linear(rank, outputs, bias=False)
        self.lora_B.weight = Param(self.lora_B.weight.shape, init.zeros)
        self.lora_magnitude_vector = Param((outputs,), lambda *_: self._lengths()) if dora else None
        self.scale = scale
        self._known: tuple[Tensor, ...] = ()  # |W'| as last worked out, and the weights that it is of

    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        y = self.base(x) + self.lora_B(self.lora_A(x) * self.scale)
        if self.lora_magnitude_vector is not None:
            gain = self.lora_magnitude_vector / self._lengths()
            y = y * gain.astype(y.dtype)
            if self.base.bias is not None:  # it was in the base's result
                y = y + (self.base.bias.astype(float32) * (1.0 - gain)).astype(y.dtype)
        y = y if residual is None else y + residual
        return y if activation is None else getattr(ops, activation)(y)

    def merged_weight(self) -> Tensor:
        """That of the base with the change in it, worked out in float32, in its dtype. Raises ZooError if the base is
        rounded."""
        if isinstance(self.base, ROUNDED):
            why = f"a weight in {self.base.format} has a few steps only, and most of the change would be lost in them"
            fix = "Merge into the full weights: load the base without a dtype, or as bf16."
            raise ZooError("an adapter is not merged into rounded weights", why, fix)
        weight = self._changed()
        if self.lora_magnitude_vector is not None:
            gain = self.lora_magnitude_vector.astype(float32) / self._lengths()
            weight = weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))
        return weight.astype(self.base.weight.dtype)

    def merged(self) -> Layer:
        """The base with the change in its weight. The base itself changes."""
        self.base.set("weight", self.merged_weight())
        return self.base

    def describe(self) -> str:
        kind = "" if self.lora_magnitude_vector is None else ", DoRA"
        return f"rank {self.rank}, scale {self.scale:g}{kind}"

    @property
    def rank(self) -> int:
        return self.lora_A.weight.shape[0]

    def _changed(self) -> Tensor:
        """W', in float32 and in the base's shape; on the plain device, so that it is a constant to the gradient."""
        device = root(self.base.weight.device)
        a, b = (layer.weight.to(device).astype(float32) for layer in (self.lora_A, self.lora_B))
        weight = self._weight().to(device)
        change = ops.matmul(b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)) * self.scale
        return weight + change.reshape(weight.shape)

    def _weight(self) -> Tensor:
        """The base's, in float32 and in full."""
        if not isinstance(self.base, ROUNDED):
            return self.base.weight.astype(float32)
        codes = self.base.weight
        found = ops.dequantize(codes.reshape(codes.shape[0], -1), self.base.scale, self.base.format)
        return found.reshape(codes.shape) if isinstance(self.base, Conv2d) else found

    def _lengths(self) -> Tensor:
        """|W'| (outputs,): the Euclidean length of the weights of each output. Worked out once for the same weights."""
        made_of = (self.base.weight, self.lora_A.weight, self.lora_B.weight)
        if len(self._known) != 4 or any(old is not new for old, new in zip(self._known[1:], made_of, strict=True)):
            weight = self._changed()
            self._known = (ops.sqrt(ops.sum(ops.square(weight.reshape(weight.shape[0], -1)), axis=1)), *made_of)
        return self._known[0]


class Place(NamedTuple):
    """Where a layer is kept, and by which key; `name` is the attribute, also of one in a list (`to_out` of diffusers'
    models)."""

    path: str
    name: str
    holder: Any
    key: Any
    layer: Any


def attach(
    model: Module, rank: int, *, alpha: float | None = None, dora: bool = False, targets: Collection[str] = (),
    also: Collection[str] = (), seed: int = 0,
) -> int:  # fmt: skip
    """Freezes a model and puts LoRA around the layers in `targets`, in place: attributes, paths or their ends
    ("q_proj", "mlp.up_proj"); empty: around every Linear and convolution. scale = alpha / rank; alpha: 2 * rank if
    None. -> how many.

    also: paths of modules that are trained whole, such as a new head.
    Raises ZooError if there is no such layer, or one of another kind, or the model has an adapter.
    """
    if rank < 1:
        raise ZooError(f"an adapter has no rank {rank}", "it is how many numbers stand beside each input", "Give 1 up.")
    also = tuple(also)

    def wanted(place: Place) -> bool:
        named = _ends(place.path, targets) or ((not targets or place.name in targets) and adaptable(place.layer))
        return named and not below(place.path, also)

    scale = (2 * rank if alpha is None else alpha) / rank
    found = {place.path: (rank, scale) for place in places(model) if wanted(place)}
    if not found:
        what = ", ".join(sorted(targets)) or "Linear or Conv"
        raise ZooError("there is nothing to adapt", f"the model has no layer named {what}", "Name layers that it has.")
    attach_to(model, found, dora=dora, also=also, seed=seed)
    return len(found)


def attach_to(
    model: Module, layers: Mapping[str, tuple[int, float]], *, dora: bool = False, also: Collection[str] = (),
    seed: int = 0,
) -> None:  # fmt: skip
    """`attach` to layers by path: their rank and scale."""
    chosen = [place for place in places(model) if place.path in layers]
    for place in chosen:
        if (why := _refusal(place.layer)) is not None:
            raise ZooError(f"{place.path} cannot be adapted", why, "Leave it out of the targets.")
    model.freeze()
    for place in chosen:
        place.holder[place.key] = LoRA(place.layer, *layers[place.path], dora=dora)
    for path, module in model.named_modules():
        if path in also:
            module.unfreeze()
    model.init(Generator(seed), model.device)


def adaptable(layer: Any) -> bool:
    return isinstance(layer, Layer) and _refusal(layer) is None


def _refusal(layer: Any) -> str | None:
    """Why there is no LoRA around it; None if there can be one."""
    if isinstance(layer, LoRA):
        return "it has an adapter already; `zoo export ADAPTER DIRECTORY --merge` makes a plain model of both"
    if not isinstance(layer, Layer):
        kind = type(layer).__name__
        return f"LoRA goes around Linear and Conv layers, and this is {'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
    if getattr(layer, "groups", 1) > 1:
        return f"each of its {layer.groups} groups sees inputs of its own: no A is common to all outputs"  # type: ignore[union-attr]
    return None


def places(model: Module) -> Iterator[Place]:
    """Those of all modules below, but for what is within a LoRA."""
    inside: set[int] = set()
    for path, module in list(model.named_modules()):
        if id(module) in inside or isinstance(module, LoRA):
            inside |= {id(part) for _, part in module.named_modules()}
            continue
        for name, value in vars(module).items():
            below = f"{path}.{name}" if path else name
            if isinstance(value, list):
                yield from (Place(f"{below}.{i}", name, value, i, part) for i, part in enumerate(value)
                            if isinstance(part, Module))  # fmt: skip
            elif isinstance(value, Module):
                yield Place(below, name, vars(module), name, value)


def _ends(path: str, names: Collection[str]) -> bool:
    """As PEFT finds its target_modules."""
    return path in names or any(path.endswith(f".{name}") for name in names)


def below(path: str, modules: Collection[str]) -> bool:
    """Whether it is one of them, or within one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def layers(model: Module) -> dict[str, LoRA]:
    """The LoRA layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRA)}


def merge(model: Module) -> Module:
    """Adds every change to its weight and takes the LoRA layers away, in place; the model is trainable again. Raises
    ZooError if weights are rounded."""
    for place in list(places(model)):
        if isinstance(place.layer, LoRA):
            place.holder[place.key] = place.layer.merged()
    return model.unfreeze()
