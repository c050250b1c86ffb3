"""A checkpoint of several components, as diffusers publishes it: model_index.json names them, each has a folder.

    model_index.json                          {"unet": ["diffusers", "UNet2DConditionModel"], ...}
    unet/config.json, unet/diffusion_pytorch_model.safetensors
    text_encoder/..., vae/..., tokenizer/..., scheduler/...

Here they are one checkpoint: the tensor `conv_in.weight` of the folder `unet` is named `unet.conv_in.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json
from zoo.hub.mapped import Joined, Place, TensorFile

INDEX = "model_index.json"
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Networks beside the model, which judge its pictures or show it some: 1.2 GB that no port here uses."""
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDS = (".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".safetensors.index.fp16.json",
         ".bin", ".bin.index.json", ".fp16.bin")  # fmt: skip
WEIGHTS = tuple(stem + end for end in _ENDS for stem in _STEMS)
"""What a component's file of weights, or their index, may be called, best first: in full before half precision."""
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def parse_index(path: Path) -> dict[str, str]:
    """Component -> the library that it is saved with, from a model_index.json; without those that are left out.

    Raises WeightsError if the file is none, or a name in it is no folder's.
    """
    found = {}
    for name, entry in read_json(path).items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue  # a setting, or a component that this checkpoint has not
        if not _NAME.fullmatch(name):
            why = f"it names a component {name[:80]!r}, which is no folder beside it"
            raise WeightsError(f"cannot read {path}", why, "Do not use this checkpoint: an honest index names folders.")
        if name not in LEFT_OUT:
            found[name] = str(entry[0])
    if not found:
        why = "it names no component"
        raise WeightsError(f"cannot read {path}", why, "Fetch the checkpoint again.")
    return found


def chosen(names: Collection[str]) -> str | None:
    """The file of weights, or their index, among the names of a component's files; None if it has none."""
    return next((name for name in WEIGHTS if name in names), None)


def file_name(library: str) -> str:
    """What a component saved with this library calls its file of weights."""
    return "diffusion_pytorch_model.safetensors" if library == "diffusers" else "model.safetensors"


def read(path: Path, read_file: Callable[[Path], TensorFile]) -> TensorFile:
    """Opens all components with `read_file`; no data is read.

    Raises WeightsError if the index is none, or a component with a config has no weights, or cannot be read.
    """
    places: dict[str, Place | Joined] = {}
    for name in parse_index(path):
        folder = path.parent / name
        weights = chosen({file.name for file in folder.iterdir()}) if folder.is_dir() else None
        if weights is None:
            if (folder / "config.json").exists():
                raise without_weights(f"cannot read {path.parent}", name)
            continue  # a tokenizer, a scheduler: they have no weights
        with read_file(folder / weights) as tensors:
            places.update({f"{name}.{tensor}": place for tensor, place in tensors.places.items()})
    return TensorFile(path, places, {})


def without_weights(what: str, name: str) -> WeightsError:
    why = f"its component {name} has a config.json but no weights ({', '.join(WEIGHTS[:3])}, ...)"
    return WeightsError(what, why, f"Fetch the files of {name}/ too.")
