"""The tree of modules that a checkpoint's tensor names spell, and which layer each of its leaves is.

    encoder.layer.0.attention.query.weight (64, 64)  ->  encoder: layer: [attention: query: Linear 64 -> 64, ...]

Names and shapes are all that is looked at. What they cannot tell (a stride, an epsilon, a norm's groups) is left to who
reads the paper; a leaf that is no known layer keeps its tensors as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.hub.mapped import TensorInfo

EMBEDDING = re.compile(r"emb|^wte$|^wpe$|^shared$|token|position|relative_attention_bias")
DERIVED = re.compile(r"(^|\.)(inv_freq|position_ids|token_type_ids|masked_bias|relative_position_index)$")
"""Tables that published files hold beside the weights, and every program works out itself."""
COUNTED = "num_batches_tracked"


@dataclass
class Leaf:
    """One layer: its kind, the numbers it is made with, and how its tensors are published."""

    kind: str
    """Linear, Embedding, Conv1d, Conv2d, LayerNorm, RMSNorm, BatchNorm, or Param for a tensor of no known layer."""
    sizes: dict[str, int]
    """By role: inputs, outputs, kernel, width, count, ..."""
    options: tuple[str, ...] = ()
    """What is written behind the numbers: bias=False, ..."""
    names: dict[str, str] = field(default_factory=dict)
    """Our name of each tensor -> the published one, below the leaf's path."""
    turned: tuple[str, ...] = ()
    """Published tensors whose axes are in another order."""
    shape: tuple[int, ...] = ()
    """Of a Param."""


@dataclass
class Node:
    """A module: parts by attribute, in the order of the checkpoint."""

    parts: dict[str, Node | Leaf] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        """Its parts are numbered without a gap."""
        return list(self.parts) == [str(i) for i in range(len(self.parts))] and bool(self.parts)


@dataclass(frozen=True)
class Read:
    root: Node
    derived: dict[str, str]
    """Tensors that are no weights -> why."""


def read(infos: Mapping[str, TensorInfo]) -> Read:
    """The tree of these tensors."""
    derived: dict[str, str] = {}
    kept: dict[str, TensorInfo] = {}
    for name, info in infos.items():
        if DERIVED.search(name):
            derived[name] = "worked out from the config"
        elif info.dtype.kind in "iub" and not name.endswith(COUNTED):
            derived[name] = "whole numbers, which are not learned"
        else:
            kept[name] = info
    raw: dict = {}
    for name in kept:
        place = raw
        *path, last = name.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = kept[name]
    turned = any(_is_turned(group) for group in _groups(raw))
    return Read(_node(raw, turned), derived)


def _groups(raw: Mapping) -> list[Mapping]:
    found = [raw]
    for part in raw.values():
        if isinstance(part, Mapping):
            found += _groups(part)
    return found


def _is_turned(group: Mapping) -> bool:
    """A matrix of (inputs, outputs), as GPT-2's: its bias is as long as its rows are, and not as it has rows."""
    weight, bias = group.get("weight"), group.get("bias")
    if not isinstance(weight, TensorInfo) or not isinstance(bias, TensorInfo) or len(weight.shape) != 2:
        return False
    return weight.shape[1:] == bias.shape != weight.shape[:1]


def _node(raw: Mapping, turned: bool) -> Node:
    node = Node()
    for key, part in raw.items():
        if isinstance(part, TensorInfo):
            node.parts[key] = Leaf("Param", {}, names={"": ""}, shape=tuple(part.shape))
        elif (leaf := _leaf(key, part, turned)) is not None:
            node.parts[key] = leaf
        else:
            node.parts[key] = _node(part, turned)
    numbered = all(key.isdigit() for key in node.parts)
    if numbered:  # a file is in the order of an alphabet, where 10 comes before 2
        node.parts = {key: node.parts[key] for key in sorted(node.parts, key=int)}
    return node


def _leaf(key: str, group: Mapping, turned: bool) -> Leaf | None:
    """The known layer that has these tensors, or None."""
    if not all(isinstance(part, TensorInfo) for part in group.values()):
        return None
    names = {"weight": "weight", "bias": "bias"}
    if set(group) <= {"gamma", "beta"}:  # TensorFlow's
        names = {"weight": "gamma", "bias": "beta"}
    names = {ours: theirs for ours, theirs in names.items() if theirs in group}
    shape = tuple(group[names["weight"]].shape) if "weight" in names else ()
    rest = set(group) - set(names.values())
    if {"running_mean", "running_var"} <= rest <= {"running_mean", "running_var", COUNTED}:
        extra = {name: name for name in ("running_mean", "running_var", COUNTED) if name in rest}
        options = () if "weight" in names else ("affine=False",)
        return Leaf("BatchNorm", {"channels": group["running_mean"].shape[0]}, options, names | extra)
    if rest or "weight" not in names:
        return None
    no_bias = () if "bias" in names else ("bias=False",)
    if len(shape) == 1:
        return Leaf("LayerNorm" if "bias" in names else "RMSNorm", {"width": shape[0]}, (), names)
    if len(shape) == 2:
        if not names.get("bias") and EMBEDDING.search(key):
            return Leaf("Embedding", {"count": shape[0], "width": shape[1]}, (), names)
        if turned and "bias" in names:
            return Leaf("Linear", {"inputs": shape[0], "outputs": shape[1]}, no_bias, names, ("weight",))
        return Leaf("Linear", {"inputs": shape[1], "outputs": shape[0]}, no_bias, names)
    if len(shape) in (3, 4) and len(set(shape[2:])) == 1:
        outputs, inputs, kernel = shape[:3]
        depthwise = inputs == 1 and outputs > 1
        sizes = {"inputs": outputs if depthwise else inputs, "outputs": outputs, "kernel": kernel}
        if depthwise:
            sizes["groups"] = outputs
        return Leaf(f"Conv{len(shape) - 2}d", sizes, no_bias, names, ("weight",))
    return None
