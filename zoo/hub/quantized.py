"""Checkpoints with rounded weights: what the file says of them, and rounding while the tensors stream by.

A layer that is kept as "int8" or "int4" has two tensors in the place of its weight: PATH.weight, the codes, and
PATH.scale (zoo/core/prims/quant.py says what they mean). The file's metadata name every such layer and its format,

    zoo.quantized = {"format": "int4", "layers": {"model.layers.0.mlp.up_proj": "int4", "lm_head": "int8", ...}}

so that a file is read as it was written, whatever rule chooses the layers later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.device import device as find_device
from zoo.core.errors import WeightsError
from zoo.core.prim import Meta
from zoo.core.tensor import Tensor
from zoo.hub.mapped import row_blocks
from zoo.nn import Module
from zoo.nn.quantized import FORMATS, formats, quantize

KEY = "zoo.quantized"
BLOCK = 4 << 20
"""Bytes of a weight that are rounded at once; that takes about ten times as many."""


def stated(metadata: Mapping[str, str], shown: str) -> tuple[str | None, dict[str, str]]:
    """(format, path -> format of each rounded layer) of a file; (None, {}) where nothing is rounded.

    Raises WeightsError if the metadata are damaged, or name a format that is not known.
    """
    if KEY not in metadata:
        return None, {}
    try:
        known = json.loads(metadata[KEY])
        format, layers = known["format"], dict(known["layers"])
    except (ValueError, TypeError, KeyError) as error:
        why = f"what its metadata say under {KEY} is damaged"
        raise WeightsError(f"cannot use {shown}", why, "Fetch or round it again.") from error
    if unknown := sorted({str(f) for f in (format, *layers.values())} - set(FORMATS)):
        why = f"its weights are rounded to {', '.join(unknown)}; known are {', '.join(FORMATS)}"
        raise WeightsError(f"cannot use {shown}", why, "Use the version of the zoo that wrote it.")
    return format, layers


def metadata(model: Module) -> dict[str, str]:
    """What a file with this model's tensors must say; {} where nothing is rounded."""
    layers = formats(model)
    return {KEY: json.dumps({"format": _overall(layers), "layers": layers})} if layers else {}


def _overall(layers: Mapping[str, str]) -> str:
    """int4 asks for int8 where 4 bits are too few, never the other way round."""
    return "int4" if "int4" in layers.values() else "int8"


def shape(model: Module, metadata: Mapping[str, str], shown: str, dtype: Any = None) -> Module:
    """An unfilled model in the form of a file with these metadata, in place.

    Raises WeightsError if its layers are not the model's, or `dtype` is another format than the one that is kept:
    rounding twice adds up errors.
    """
    kept, layers = stated(metadata, shown)
    if kept is None:
        return model
    if dtype in FORMATS and dtype != kept:
        why = f"its weights are kept as {kept}: rounded once more, they would be further off"
        raise WeightsError(f"cannot use {shown} as {dtype}", why, f"Begin with the full weights, or take {kept}.")
    model = quantize(model, kept, layers=layers)
    if wrong := sorted(set(layers) ^ set(formats(model))):
        why = f"it says that {wrong[0]} is rounded, and the model has no such layer"
        raise WeightsError(f"cannot use {shown}", why, "Fetch or round it again.")
    return model


def split(name: str, layers: Mapping[str, str]) -> tuple[str, str] | None:
    """(path of its layer, "weight" or "scale") of a tensor that rounding makes; None of any other."""
    path, _, part = name.rpartition(".")
    return (path, part) if path in layers and part in ("weight", "scale") else None


def rounded(name: str, array: np.ndarray, format: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(codes, scale) of a weight, some outputs at a time. Raises WeightsError for what is not finite."""
    host = find_device("numpy")
    for block in row_blocks(array, BLOCK):
        if not np.isfinite(block).all():
            why = f"{name} holds NaN or infinities, which have no place among the steps of {format}"
            raise WeightsError("cannot round these weights", why, "Use another revision, or another checkpoint.")
        rows = Tensor(np.ascontiguousarray(block.reshape(len(block), -1)), host)
        codes, scale = ops.quantize(rows, format)
        yield codes.numpy().reshape(len(block), -1, *block.shape[2:]), scale.numpy()


class Rounded(Mapping[str, Any]):
    """The tensors of a rounded model, made of the plain ones as they are looked up. Of a weight that is rounded, one
    block at a time is in memory in full."""

    def __init__(self, plain: Any, spec: Mapping[str, Meta], layers: Mapping[str, str]):
        """plain: name -> array, with `forget(name)`. spec: of the rounded model."""
        self._plain, self._spec, self._layers = plain, spec, layers
        self._scales: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        found = split(name, self._layers)
        if found is None:
            return self._plain[name]
        path, part = found
        if part == "scale" and path in self._scales:
            return self._scales.pop(path)
        made = {p: np.empty(self._spec[f"{path}.{p}"].shape, self._spec[f"{path}.{p}"].dtype)
                for p in ("weight", "scale")}  # fmt: skip
        weight, at = f"{path}.weight", 0
        for codes, scale in rounded(weight, self._plain[weight], self._layers[path]):
            end = at + len(scale)
            made["weight"][at:end], made["scale"][at:end] = codes, scale
            at = end
        self._plain.forget(weight)
        for array in made.values():
            array.flags.writeable = False  # nobody else holds them: the model may keep them
        if part == "weight":  # its scale is asked for next
            self._scales[path] = made["scale"]
        return made[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spec)

    def __len__(self) -> int:
        return len(self._spec)


def parts(name: str, blocks: Iterable[np.ndarray], format: str, part: str) -> Iterator[np.ndarray]:
    """One of the two tensors of a rounded weight, in order; the other is worked out on the way and let go."""
    for block in blocks:
        for codes, scale in rounded(name, block, format):
            yield codes if part == "weight" else scale
