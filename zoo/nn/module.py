"""Module: a plain tree of tensors.

Attributes that are tensors, unfilled parameters, modules, or lists and dicts of those, are the tree; everything else
(a config, numbers) is the module's own business. Nothing is registered: the tree is read from the attributes when it is
asked for, and the path of an attribute ("layers.0.self_attn.q_proj.weight") is the name of its tensor in a checkpoint.
A tensor under a name that begins with "_" is derived (a table of angles): it moves with the model and is in no
checkpoint. A module that is reached by two paths is one module; it counts under the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.device import root
from zoo.core.dtype import compute_dtype, float32, is_float
from zoo.core.dtype import dtype as dtype_of
from zoo.core.errors import DeviceError
from zoo.core.prim import Meta
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.nn import filling, show
from zoo.nn.param import Param

M = TypeVar("M", bound="Module")


class Slot(NamedTuple):
    """A place in the tree that holds a tensor: its path, the module it belongs to and the attribute there, and the dict
    or list in which it is kept."""

    path: str
    module: Module
    name: str
    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    @property
    def buffer(self) -> bool:
        return self.name in self.module.buffers

    @property
    def exact(self) -> bool:
        return self.name in self.module.exact

    @property
    def trainable(self) -> bool:
        return is_trainable(self.module, self.name, self.value)


def is_trainable(module: Module, name: str, value: Any) -> bool:
    return not module.frozen and name not in module.buffers and is_float(value.dtype)


class Module:
    """The base of layers and models. Subclasses assign their parts in `__init__` and define `__call__`."""

    buffers: ClassVar[tuple[str, ...]] = ()
    """Attributes that are saved with the weights and not trained (running statistics)."""
    exact: ClassVar[tuple[str, ...]] = ()
    """Attributes whose dtype is part of what they mean: `astype`, and the dtype of `load`, leave them."""
    packs: ClassVar[Mapping[str, str]] = {}
    """Attributes that `prepare` may pack, and as what: {"weight": "linear"}."""
    training: bool = False
    frozen: bool = False
    rng: Generator | None = None
    """Where what is random in training draws from; see `train`."""
    source: Any = None
    """The checkpoint that it was loaded from (zoo.hub.refs.Checkpoint); beside it lie a tokenizer, labels, ..."""

    # the tree

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Path and module, this one first (path ""), each once."""
        seen: set[int] = set()

        def visit(value: Any, path: str) -> Iterator[tuple[str, Module]]:
            if isinstance(value, Module):
                if id(value) in seen:
                    return
                seen.add(id(value))
                yield path, value
            for key, part in _parts(value):
                if not (isinstance(value, Module) and key[0] == "_"):
                    yield from visit(part, f"{path}.{key}" if path else str(key))

        return visit(self, "")

    def slots(self) -> dict[str, Slot]:
        """Every place of a tensor that a checkpoint holds, by path, in order of definition."""
        found: dict[str, Slot] = {}
        seen: set[int] = set()

        def visit(holder: Any, prefix: str, module: Module, name: str | None) -> None:
            for key, part in _parts(holder):
                if name is None and key[0] == "_":
                    continue
                path = f"{prefix}{key}"
                if isinstance(part, Tensor):
                    found[path] = Slot(path, module, name or key, vars(module) if name is None else holder, key)
                elif not isinstance(part, Module):
                    visit(part, f"{path}.", module, name or key)
                elif id(part) not in seen:
                    seen.add(id(part))
                    visit(part, f"{path}.", part, None)

        visit(self, "", self, None)
        return found

    def parameters(self) -> dict[str, Tensor]:
        """Path -> tensor of what training changes: no buffers, nothing frozen, floating point only."""
        return {path: filling.filled(slot.value) for path, slot in self.slots().items() if slot.trainable}

    def state(self) -> dict[str, Tensor]:
        """Path -> tensor of everything that a checkpoint holds."""
        return {path: filling.filled(slot.value) for path, slot in self.slots().items()}

    def spec(self) -> dict[str, Meta]:
        """Path -> (shape, dtype) of everything that a checkpoint holds, filled or not."""
        return {path: Meta(tuple(slot.value.shape), slot.value.dtype) for path, slot in self.slots().items()}

    @property
    def device(self) -> Any:
        """That of the first tensor. Raises DeviceError if there is none yet."""
        for _, module in self.named_modules():  # not slots(): a model asks for every token, and the first has one
            for part in _tensors(vars(module)):
                if not isinstance(part, Param):
                    return part.device
        raise DeviceError(
            f"{type(self).__name__} is on no device yet",
            "it has no weights",
            "model.init(rng, device) or model.load(...) fills it.",
        )

    # values that go through it

    @property
    def activations(self) -> np.dtype:
        """The dtype in which values go through this model: what its device takes beside weights as the first one is
        stored; in training, and where the device does not say, that in which kernels calculate."""
        for _, module in self.named_modules():
            for name, part in _parts(vars(module)):
                stored = isinstance(part, Tensor) and not isinstance(part, Param) and is_float(part.dtype)
                if stored and name[0] != "_" and name not in module.buffers and name not in module.exact:
                    taken = compute_dtype if self.training else getattr(self.device, "activations", compute_dtype)
                    return taken(part.dtype)
        return float32

    def entering(self, x: Tensor) -> Tensor:
        """x, of floating point, as it goes through this model: see `activations`."""
        return x.astype(self.activations) if is_float(x.dtype) else x

    def leaving(self, x: Tensor) -> Tensor:
        """x wide enough to be summed, compared and drawn from: what is in half precision becomes float32."""
        return x.astype(compute_dtype(x.dtype))

    # filling and changing it

    def init(self: M, rng: Generator | int, device: Any = None) -> M:
        """Fills what is unfilled with fresh values, drawn in order of definition. A seed gives the same weights on
        every device."""
        rng = rng if isinstance(rng, Generator) else Generator(rng)
        place = device_of(device)
        for slot in self.slots().values():
            if isinstance(slot.value, Param):
                slot.holder[slot.key] = slot.value.init(rng, slot.value.shape, place).astype(slot.value.dtype)
        return self._derived_to(place)

    def load(self: M, weights: Mapping[str, Any], device: Any = None, dtype: Any = None) -> M:
        """Fills all of it with arrays or tensors by path.

        device: where to; None: where the model is, or the default. dtype: of floating-point weights; None: as given.
        `weights` may be lazy: each entry is looked up once, so that one array is in memory beside the model.
        Raises WeightsError that lists all that is missing, unexpected and mis-shaped; the model is then unchanged.
        """
        slots = self.slots()
        for path, tensor in filling.fitted(type(self).__name__, slots, weights, device, dtype).items():
            slots[path].holder[slots[path].key] = tensor
        return self._derived_to(self.device) if slots else self

    def _derived_to(self: M, device: Any) -> M:
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if name[0] == "_" and isinstance(value, Tensor):
                    setattr(module, name, value.to(root(device)))
        return self

    def set(self, path: str, tensor: Tensor) -> None:
        """Puts a tensor in the place of another. A plain one becomes a variable where a variable was."""
        self.update({path: tensor})

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """`set` for several paths. Raises WeightsError for a path that is not there, or another shape."""
        slots = self.slots()
        for path, tensor in tensors.items():
            slot = filling.slot_for(type(self).__name__, slots, path, tensor.shape)
            old = slot.value
            slot.holder[slot.key] = tensor if isinstance(old, Param) else tensor.to(old.device)

    # a tree like this one

    def rebuilt(self: M, change: Callable[[Module, str, Any], Any]) -> M:
        """A new tree of the same modules, each tensor put through change(module, attribute, tensor). Everything else,
        configs above all, is shared."""
        made: dict[int, Any] = {}

        def remake(value: Any, module: Module, name: str) -> Any:
            if isinstance(value, Tensor):
                return change(module, name, value)
            if isinstance(value, Module):
                if id(value) not in made:
                    twin = object.__new__(type(value))
                    made[id(value)] = twin
                    for key, part in vars(value).items():
                        twin.__dict__[key] = remake(part, value, key) if isinstance(part, _TREE) else part
                return made[id(value)]
            if not _in_tree(value):
                return value
            if isinstance(value, dict):
                return {key: remake(part, module, name) for key, part in value.items()}
            return type(value)(remake(part, module, name) for part in value)

        return remake(self, self, "")

    def map(self: M, change: Callable[[Tensor], Tensor]) -> M:
        """A new tree with every tensor replaced by change(tensor)."""
        return self.rebuilt(lambda module, name, value: value if isinstance(value, Param) else change(value))

    def to(self: M, device: Any) -> M:
        """A new tree on another device. Onto an Autodiff device, what is trainable becomes variables; buffers and what
        is frozen stay constants of its inner device. Off it, plain values."""
        device = device_of(device)
        plain = root(device)

        def move(module: Module, name: str, value: Any) -> Any:
            if isinstance(value, Param):
                return value
            variable = name[0] != "_" and is_trainable(module, name, value)
            return value.to(device if variable else plain)

        return self.rebuilt(move)

    def astype(self: M, dtype: Any) -> M:
        """A new tree with the floating-point weights in another dtype."""
        wanted = dtype_of(dtype)

        def cast(module: Module, name: str, value: Any) -> Any:
            if name[0] == "_" or name in module.exact or not is_float(value.dtype):
                return value
            return Param(value.shape, value.init, wanted) if isinstance(value, Param) else value.astype(wanted)

        return self.rebuilt(cast)

    def prepare(self: M) -> M:
        """Packs the weights in place, in the order in which the device's kernels read them, where the device does that.
        Raises DeviceError on an Autodiff device: weights that change are not packed."""
        filling.pack(self)
        return self

    # training

    def train(self: M, rng: Generator | None = None) -> M:
        """Training mode. What is random (dropout) draws from `rng`, which all modules share."""
        return self._mode(True, rng)

    def eval(self: M) -> M:
        return self._mode(False, None)

    def _mode(self: M, training: bool, rng: Generator | None) -> M:
        for _, module in self.named_modules():
            module.training, module.rng = training, rng
        return self

    def freeze(self: M) -> M:
        """Takes this module and all below it out of training; a model is moved onto an Autodiff device after that."""
        for _, module in self.named_modules():
            module.frozen = True
        return self

    def unfreeze(self: M) -> M:
        for _, module in self.named_modules():
            module.frozen = False
        return self

    # how it looks

    def describe(self) -> str:
        """What a layer says of itself in the printed tree: "16 -> 32, kernel 3x3"."""
        return ""

    def __repr__(self) -> str:
        return show.tree(self)


_TREE = (Tensor, Module, list, dict, tuple)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Names and values below a module or container that may belong to the tree."""
    if isinstance(value, Module):
        items: Any = vars(value).items()
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return []
    return [(key, part) for key, part in items if isinstance(part, _TREE)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those that a module's attributes hold themselves, in containers or not."""
    for key, part in _parts(value):
        if isinstance(part, Tensor):
            if not (isinstance(key, str) and key[0] == "_"):
                yield part
        elif not isinstance(part, Module):
            yield from _tensors(part)


def _in_tree(value: Any) -> bool:
    return isinstance(value, Tensor | Module) or any(_in_tree(part) for _, part in _parts(value))
