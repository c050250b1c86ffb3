"""TAESD (Ollin Boer Bohan, github.com/madebyollin/taesd): an autoencoder for the latents of Stable Diffusion that is a
hundred times smaller than its own, for previews and for machines with little memory.

    model.vae = taesd.load("path/to/taesd", device="cpu")

Names are those of diffusers' AutoencoderTiny. Latents are those that the U-Net sees: scaling_factor is 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import refs
from zoo.hub.files import read_json
from zoo.hub.formats import read
from zoo.hub.table import Table, permute, row
from zoo.nn import Conv2d, Module, Sequential
from zoo.stable_diffusion.config import accepted
from zoo.stable_diffusion.vae import LOG_VARIANCES, Moments
from zoo.stable_diffusion.weights import CHANNELS_LAST

HALVES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")
"""The author's own two files, whose layers are numbered from the first and, behind a clamp, from the second."""


@dataclass(frozen=True)
class TinyVaeConfig:
    """diffusers' AutoencoderTiny; the defaults are TAESD's."""

    REFUSED = {  # noqa: RUF012 - a constant of the class
        "act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,), "force_upcast": (False,),
    }  # fmt: skip

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    @property
    def scale(self) -> int:
        """Pixels along a latent's edge."""
        return 2 ** (len(self.num_decoder_blocks) - 1)


def upsampled(x: Tensor) -> Tensor:
    return ops.upsample(x, 2)


class Block(Module):
    """relu(x + three convolutions of x)."""

    def __init__(self, channels: int):
        self.conv = [_conv(channels, channels), None, _conv(channels, channels), None, _conv(channels, channels)]

    def __call__(self, x: Tensor) -> Tensor:
        first, _, second, _, third = self.conv
        assert first is not None and second is not None and third is not None
        return third(second(first(x, "relu"), "relu"), "relu", residual=x)


class Encoder(Module):
    def __init__(self, c: TinyVaeConfig):
        layers: list[Any] = []
        for i, (count, width) in enumerate(zip(c.num_encoder_blocks, c.encoder_block_out_channels, strict=True)):
            layers.append(_conv(width, width, stride=2, bias=False) if i else _conv(c.in_channels, width))
            layers += [Block(width) for _ in range(count)]
        layers.append(_conv(c.encoder_block_out_channels[-1], c.latent_channels))
        self.layers = Sequential(*layers)

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.leaving(self.layers(self.entering((pixels + 1) * 0.5)))  # it was trained on 0 ... 1


class Decoder(Module):
    def __init__(self, c: TinyVaeConfig):
        layers: list[Callable[[Tensor], Tensor]] = [_conv(c.latent_channels, c.decoder_block_out_channels[0]), ops.relu]
        last = len(c.num_decoder_blocks) - 1
        for i, (count, width) in enumerate(zip(c.num_decoder_blocks, c.decoder_block_out_channels, strict=True)):
            layers += [Block(width) for _ in range(count)]
            layers += [_conv(width, c.out_channels)] if i == last else [upsampled, _conv(width, width, bias=False)]
        self.layers = Sequential(*layers)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.leaving(self.layers(self.entering(ops.tanh(latents * (1 / 3)) * 3))) * 2 - 1


class TinyVae(Module):
    """In the place of a Vae (zoo/stable_diffusion/vae.py)."""

    def __init__(self, config: TinyVaeConfig):
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Moments:
        """pixels (B, H, W, 3) in -1 ... 1. It is sure of its latents: their variance is the least that there is."""
        mean = self.encoder(pixels)
        return Moments(mean, ops.full(mean.shape, LOG_VARIANCES[0], device=mean.device))

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, h, w, latent_channels) -> pixels (B, 8h, 8w, 3), about -1 ... 1."""
        return self.decoder(latents)


def _conv(inputs: int, outputs: int, **settings: Any) -> Conv2d:
    return Conv2d(inputs, outputs, 3, padding=1, **settings)


def load(ref: str | os.PathLike[str], device: Any = None, dtype: Any = None) -> TinyVae:
    """The autoencoder of a directory with TAESD's two files, or of diffusers' AutoencoderTiny (a directory with its
    config.json, or a file). dtype: that in which weights are kept; None: as stored.

    Raises WeightsError if it is neither, cannot be read, or does not fit.
    """
    path = Path(os.path.expanduser(os.fspath(ref)))
    model = TinyVae(_config(path))
    halves = path.is_dir() and (path / HALVES[1]).exists()
    parts = [path / name for name in HALVES] if halves else [path if path.is_file() else refs.resolve(path).file]
    spec, arrays = model.spec(), {}
    for file, prefix in zip(parts, ("encoder.", "decoder.") if halves else ("",), strict=True):
        with read(file) as tensors:
            wanted = {name: param for name, param in spec.items() if name.startswith(prefix)}
            plan = _table(wanted, prefix).load(tensors.infos, wanted, model.config)
            plan.check(str(file), "TAESD", "Use taesd_encoder and taesd_decoder, or diffusers' AutoencoderTiny.")
            arrays.update({name: np.ascontiguousarray(array) for name, array in plan.translate(tensors)})
    return model.load(arrays, device=device, dtype=dtype).eval()


def _config(path: Path) -> TinyVaeConfig:
    file = (path if path.is_dir() else path.parent) / refs.CONFIG_FILE
    if not file.is_file():
        return TinyVaeConfig()
    values = read_json(file)
    try:
        if (kind := values.get("_class_name")) != "AutoencoderTiny":
            raise ValueError(f"it describes a {kind}, not an AutoencoderTiny")
        return accepted(TinyVaeConfig, values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"cannot use {path} as a fast VAE", str(error), "Use TAESD.") from error


def _table(spec: Mapping[str, Any], prefix: str) -> Table:
    """Convolutions are laid out anew; where the file holds one half, its names lack the prefix and "layers", and the
    decoder's numbers count the clamp before it."""
    rows = []
    for name, param in spec.items():
        theirs = name
        if prefix:
            number, _, rest = name.removeprefix(f"{prefix}layers.").partition(".")
            theirs = f"{int(number) + (prefix == 'decoder.')}.{rest}"
        change = [permute(0, 2, 3, 1)] if len(param.shape) == 4 else []
        rows.append(row(name, theirs, *change, why=CHANNELS_LAST))
    return Table(*rows)
