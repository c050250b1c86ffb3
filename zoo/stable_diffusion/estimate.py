"""What a picture will take, before it is drawn: operations from the shapes of the weights, memory from the largest
activations, time from how fast this machine multiplies now."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.tensor import Tensor

REACHED, DECODE_REACHED = 0.6, 1.5
"""Share of a product's speed that a step, and decoding, reach: the latter is nearly all 3x3 convolutions, of which
Winograd's algorithm leaves out most multiplications. Measured at 256 pixels, Zen 5, two threads, one run: steps took
0.7 and 1.1 times what was expected, decoding 0.7 and 1.2 times (U-Nets of 128 and of 320 channels)."""
LIVE = 3
"""Activations of the largest size that are in memory at once: what goes into a block, its normalised copy, and what
comes out."""
PROBE = 512


@dataclass(frozen=True)
class Estimate:
    step: float
    """Seconds of a step of one batch."""
    decode: float
    """Seconds of one picture's decoding."""
    walk_bytes: int
    """Activations of a step."""
    decode_bytes: int
    """Activations of decoding one picture, in one piece."""


def estimate(model: Any, height: int, width: int, rows: int) -> Estimate:
    """For pictures of that size; rows: texts times pictures that go through the U-Net at once."""
    scale = model.vae.config.scale
    h, w = height // scale, width // scale
    speed = _speed(model.device) * REACHED
    walk, decode = _unet_operations(model.unet, h, w) * rows, _decoder_operations(model.vae, h, w)
    return Estimate(
        walk / speed, decode / speed * REACHED / DECODE_REACHED, 4 * rows * _unet_values(model.unet.config, h, w),
        4 * _decoder_values(model, h, w),
    )  # fmt: skip


def _speed(device: Any) -> float:
    """Operations a second of a product of 512 x 512 matrices: the best of four."""
    x = Tensor(device.from_host(np.ones((PROBE, PROBE), np.float32)), device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        ops.matmul(x, x).numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * PROBE**3 / best


def _unet_operations(unet: Any, h: int, w: int) -> float:
    """Of one row: two for each weight at each pixel of its level, and attention of pixels to pixels."""
    levels = len(unet.config.block_out_channels)
    total = 0.0
    for path, meta in unet.spec().items():
        if len(meta.shape) < 2 or path.startswith(("time_embedding", "add_embedding")):
            continue
        if re.search(r"attn2\.to_[kv]|time_emb_proj", path):
            continue  # once for each text, or one pixel
        level = 0
        if found := re.match(r"(down|up)_blocks\.(\d+)", path):
            level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        elif path.startswith("mid_block"):
            level = levels - 1
        pixels = math.ceil(h / 2**level) * math.ceil(w / 2**level)
        total += 2 * math.prod(meta.shape) * pixels
        if path.endswith("attn1.to_q.weight"):
            total += 4 * pixels**2 * meta.shape[0]
    return total


def _unet_values(config: Any, h: int, w: int) -> int:
    """Activations of one row: what waits for the way up, and the inside of the widest feed-forward."""
    pixels = [math.ceil(h / 2**i) * math.ceil(w / 2**i) for i in range(len(config.block_out_channels))]
    sizes = [p * c for p, c in zip(pixels, config.block_out_channels, strict=True)]
    return sum((config.layers_per_block + 1) * size for size in sizes) + LIVE * 8 * max(sizes)


def _decoder_operations(vae: Any, h: int, w: int) -> float:
    total = 0.0
    for path, meta in vae.spec().items():
        if len(meta.shape) < 2 or path.startswith(("encoder", "quant_conv")):
            continue
        level = 0
        if found := re.match(r"decoder\.up_blocks\.(\d+)\.(upsamplers)?", path):
            level = int(found[1]) + bool(found[2])
        elif path.startswith("decoder.conv_out"):
            level = int(math.log2(vae.config.scale))
        total += 2 * math.prod(meta.shape) * h * w * 4**level
        if path.endswith("to_q.weight"):
            total += 4 * (h * w) ** 2 * meta.shape[0]
    return total


def _decoder_values(model: Any, h: int, w: int) -> int:
    widths = getattr(model.vae.config, "block_out_channels", (64,))[::-1]
    entering = [widths[max(i - 1, 0)] for i in range(len(widths))]
    return LIVE * max(h * w * 4**i * max(c, widths[i]) for i, c in enumerate(entering))
