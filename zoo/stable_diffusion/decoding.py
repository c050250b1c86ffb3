"""Latents to pixels: in one piece or in tiles, and again in float32 where half precision overflowed."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor

OVERLAP = 0.25
"""Of neighbouring tiles: enough that their seams, which see different surroundings, fade into each other."""


def decode(vae: Any, latents: Tensor, tile: int = 0) -> tuple[np.ndarray, str]:
    """Latents (1, h, w, C) as the U-Net knows them -> pixels (1, H, W, 3), and a warning or "".

    A picture that is not finite is decoded again with the weights in float32: SDXL's VAE overflows in float16. Raises
    ZooError if that does not help, or the latents are not finite themselves.
    """
    latents = latents / vae.config.scaling_factor
    if not np.isfinite(latents.numpy()).all():
        why = "the unet computed NaN or infinity"
        raise ZooError("the picture is not a number", why, "Fetch the weights again, or try --dtype f32.")
    pixels = _decode(vae, latents, tile)
    if np.isfinite(pixels).all():
        return pixels, ""
    pixels = _decode(vae.astype(np.float32), latents, tile)
    if not np.isfinite(pixels).all():
        why = "the vae computed NaN or infinity, in float32 too; its weights may be damaged"
        raise ZooError("the picture is not a number", why, "Fetch the weights again.")
    return pixels, "the vae overflowed in half precision: decoded again in float32"


def _decode(vae: Any, latents: Tensor, tile: int) -> np.ndarray:
    if tile and max(latents.shape[1:3]) > tile:
        return tiled(vae, latents, tile)
    return vae.decode(latents).numpy()


def tiled(vae: Any, latents: Tensor, tile: int) -> np.ndarray:
    """In tiles of `tile` latents, which are blended where they overlap, as diffusers does it."""
    _, height, width, _ = latents.shape
    stride, scale = int(tile * (1 - OVERLAP)), vae.config.scale
    blend = int(tile * scale * OVERLAP)
    kept = tile * scale - blend
    result = np.empty((1, height * scale, width * scale, 3), np.float32)
    above: list[np.ndarray] = []
    for row, top in enumerate(range(0, height, stride)):
        line: list[np.ndarray] = []
        for column, left in enumerate(range(0, width, stride)):
            part = vae.decode(latents[:, top : top + tile, left : left + tile]).numpy().copy()
            if row:
                _blend(above[column], part, blend, 1)
            if column:
                _blend(line[-1], part, blend, 2)
            line.append(part)
            place = result[:, row * kept : row * kept + kept, column * kept : column * kept + kept]
            place[:] = part[:, : place.shape[1], : place.shape[2]]
        above = line
    return result


def _blend(before: np.ndarray, part: np.ndarray, extent: int, axis: int) -> None:
    """Fades the end of one tile into the beginning of the next, in place."""
    extent = min(extent, before.shape[axis], part.shape[axis])
    share = (np.arange(extent, dtype=np.float32) / extent).reshape((1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1))
    begin = (slice(None),) * axis + (slice(0, extent),)
    end = (slice(None),) * axis + (slice(before.shape[axis] - extent, None),)
    part[begin] = before[end] * (1 - share) + part[begin] * share
