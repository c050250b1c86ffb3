"""From a picture to what the network was trained to see: size, crop and normalisation, as its checkpoint states them.

They come with the weights, since no number in the tensors tells them: preprocessor_config.json (transformers), or
`pretrained_cfg` in config.json (timm). What neither states is as in torchvision's reference: the shorter side to 256
pixels, bilinear, the middle 224, ImageNet's mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's, in the order of its numbers, which transformers' files give."""
SQUASH_FROM = 384
"""ConvNextImageProcessor, which microsoft/resnet-* name, crops below this size and deforms the picture from it on."""


@dataclass(frozen=True)
class Preprocessing:
    """Of a picture: its shorter side to `resize` pixels, the middle size x size, then (v * scale - mean) / std."""

    size: int = 224
    """Pixels that the network sees, in height and in width."""
    resize: int | None = 256
    """Of the shorter side before the middle is cut out; None: the picture's own."""
    interpolation: str = "bilinear"
    squash: bool = False
    """Height and width are both resized to `resize`, whatever the picture's shape."""
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation {self.interpolation!r}; known: {', '.join(FILTERS)}")
        if self.size < 1 or (self.resize is not None and self.resize < 1):
            raise ValueError(f"a picture of {self.size} pixels, resized to {self.resize}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        fields = {field.name for field in dataclasses.fields(cls)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields}
        return cls(**known)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """What the network sees of an RGB picture, before normalisation: (size, size, 3) uint8."""
        return np.asarray(_middle(self._resized(image), self.size))

    def square(self, image: Image.Image) -> np.ndarray:
        """The middle square of the resized picture, from which training cuts at random: (resize, resize, 3) uint8."""
        return np.asarray(_middle(self._resized(image), self.resize or self.size))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 3) uint8 or float -> float32, as the first convolution takes it."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return pixels * (self.scale / std).astype(np.float32) - (mean / std).astype(np.float32)

    @property
    def least(self) -> int | None:
        """Pixels that a JPEG's sides keep when it is decoded smaller: enough that resizing hardly tells."""
        return None if self.resize is None else 2 * self.resize

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        if self.squash:
            size = (self.resize, self.resize)
        elif width <= height:  # the longer side is cut to whole pixels, as torchvision and transformers do
            size = (self.resize, max(1, int(self.resize * height / width)))
        else:
            size = (max(1, int(self.resize * width / height)), self.resize)
        return (
            image if size == image.size else image.resize(size, getattr(Image.Resampling, self.interpolation.upper()))
        )

    def __str__(self) -> str:
        how = "squashed" if self.squash else f"shorter side {self.resize}, middle {self.size}"
        return f"{how} px, {self.interpolation}" if self.resize else f"middle {self.size} px"


CIFAR = Preprocessing(size=32, resize=32, interpolation="bicubic")
"""The CIFAR nets of akamaster/pytorch_resnet_cifar10 were trained with ImageNet's mean and standard deviation."""


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The middle size x size; what is smaller is laid on black."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return (
        image
        if (left, top, image.width, image.height) == (0, 0, size, size)
        else image.crop((left, top, left + size, top + size))
    )


def of(model: Any) -> Preprocessing:
    """How pictures are prepared for a ResNet: as its config says, else the files beside its weights, else as usual.

    Raises WeightsError for files that ask for what is not done here.
    """
    config, source = model.config, model.source
    if config.preprocessing is not None:
        return config.preprocessing
    usual = CIFAR if config.small_stem else Preprocessing()
    if source is None or source.directory is None:
        return usual
    file = source.directory / "preprocessor_config.json"
    try:
        if file.exists():
            return _transformers(read_json(file))
        timm = (source.config() or {}).get("pretrained_cfg")
        return _timm(timm) if isinstance(timm, Mapping) else usual
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(
            "cannot prepare pictures as this checkpoint says",
            f"its preprocessor_config.json or pretrained_cfg is not understood ({error})",
            "Correct it, or use another checkpoint.",
        ) from error


def _transformers(values: Mapping[str, Any]) -> Preprocessing:
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    # what ConvNextImageProcessor takes for what its file does not say
    usual = (
        {"size": 384, "resample": 3, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3} if "ConvNext" in kind else {}
    )
    values = {**usual, **values}
    size, crop = values.get("size", 224), values.get("crop_size")
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        side = edge if edge is not None else _side(size)
    else:
        edge, side = size, int(size)
    resize: int | None
    if not values.get("do_resize", True):
        resize, squash, seen = None, False, side
    elif "ConvNext" in kind:
        squash = side >= SQUASH_FROM
        resize, seen = (side if squash else int(side / values.get("crop_pct", 224 / 256))), side
    else:
        squash = edge is None or not isinstance(size, Mapping)
        resize, seen = side, side
        if values.get("do_center_crop", crop is not None) and crop is not None:
            seen = _side(crop) if isinstance(crop, Mapping) else int(crop)
    if values.get("do_normalize", True):
        mean, std = (tuple(values.get(k, d)) for k, d in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)))
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    return Preprocessing(seen, resize, FILTERS[int(values.get("resample", 2))], squash, scale, mean, std)


def _side(size: Mapping[str, Any]) -> int:
    height, width = int(size["height"]), int(size["width"])
    if height != width:
        raise ValueError(f"pictures of {height} x {width}; square ones are known")
    return height


def _timm(values: Mapping[str, Any]) -> Preprocessing:
    _, height, width = values.get("input_size", (3, 224, 224))
    size = _side({"height": height, "width": width})
    mode = values.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode!r}; center and squash are known")
    return Preprocessing(
        size,
        math.floor(size / values.get("crop_pct", 0.875)),
        str(values.get("interpolation", "bilinear")),
        mode == "squash",
        mean=tuple(values.get("mean", IMAGENET_MEAN)),
        std=tuple(values.get("std", IMAGENET_STD)),
    )
