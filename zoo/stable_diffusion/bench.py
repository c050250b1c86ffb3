"""Cases of `zoo bench stable_diffusion`: SD 1.5's U-Net at 512 pixels with guidance (batch 2), and its VAE's decoder.

Weights are made from their names, the same for every candidate, and scaled so that activations keep their size.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zoo.bench.case import Case, Run
from zoo.bench.inputs import numbers
from zoo.core.dtype import bfloat16, float16, float32
from zoo.core.tensor import tensor
from zoo.nn import Module, quantize
from zoo.stable_diffusion.config import UNetConfig, VaeConfig
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import Vae

BATCH, TOKENS, TIME = 2, 77, 801.0
DTYPES = {"f32": float32, "bf16": bfloat16, "f16": float16}
STEP, WEIGHTS = 1_606_546_882_560, 859_520_964
"""Of SD 1.5's U-Net: operations of a step at 512 pixels (torch.utils.flop_counter counts them), weights."""
UNETS = {
    "SD 1.5": UNetConfig(cross_attention_dim=768),
    "tiny": UNetConfig(
        block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}  # fmt: skip
VAES = {
    name: VaeConfig(
        block_out_channels=widths, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
    )
    for name, widths in (("SD 1.5", (128, 256, 512, 512)), ("tiny", (32, 64)))
}  # fmt: skip


class Weights(Mapping[str, np.ndarray]):
    """Our names -> arrays of a model's shapes, made at each look-up: one is in memory at a time."""

    def __init__(self, model: Module, dtype: Any = float32):
        self.dtype = dtype
        self.shapes = {name: meta.shape for name, meta in model.spec().items()}

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        array = numbers(zlib.crc32(name.encode()), *shape)
        if len(shape) == 1:  # biases about 0; weights of normalisations about 1
            array *= 0.2
            array += np.float32("norm" in name and name.endswith("weight"))
        else:  # variance 1 / fan-in
            array *= np.float32(math.sqrt(12 / math.prod(shape[1:])))
        array = array.astype(self.dtype, copy=False)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def latents(pixels: int, batch: int) -> np.ndarray:
    return 3.4 * numbers(1, batch, pixels // 8, pixels // 8, 4)


def text(model: str) -> np.ndarray:
    return 3.4 * numbers(2, BATCH, TOKENS, UNETS[model].cross_attention_dim)


def unet(model: str, pixels: int, dtype: str = "f32", device: str = "cpu") -> Run:
    """model: one of UNETS. dtype: of the weights, f32, bf16, f16, int8."""
    network = UNet(UNETS[model])
    network.load(Weights(network, DTYPES.get(dtype, float32)), device=device)
    if dtype == "int8":
        quantize(network, dtype)
    network.prepare()
    x, time = tensor(latents(pixels, BATCH), device=device), tensor(np.full(1, TIME, np.float32), device=device)
    keys_values = network.keys_values(tensor(text(model), device=device))
    return lambda: network(x, time, keys_values)


def decode(model: str, pixels: int, device: str = "cpu") -> Run:
    network = Vae(VAES[model])
    del network.encoder, network.quant_conv
    network.load(Weights(network), device=device).prepare()
    z = tensor(latents(pixels, 1), device=device)
    return lambda: network.decode(z)


def _case(name: str, unit: str, ours: str, **more: Any) -> Case:
    settings = {"model": "SD 1.5", "pixels": 512, **more}
    agree = settings.pop("agree", 1e-3)
    size = {"f32": 4, "int8": 1}.get(more.get("dtype", "f32"), 2)
    floor: dict[str, Any] = {"flops": STEP, "floor_bytes": size * WEIGHTS} if ours == "unet" else {}
    peers = {peer: f"zoo.stable_diffusion.peers:{ours}_{peer}" for peer in ("diffusers", "openvino")}
    return Case(name, unit, 1, f"zoo.stable_diffusion.bench:{ours}", peers, settings, group="Stable Diffusion",
                agree=agree, memory=True, **floor)  # fmt: skip


CASES = (
    _case("SD 1.5 U-Net, batch 2, 512 px", "steps/s", "unet"),
    _case("SD 1.5 U-Net bf16, batch 2, 512 px", "steps/s", "unet", dtype="bf16", agree=0.02),
    _case("SD 1.5 U-Net int8, batch 2, 512 px", "steps/s", "unet", dtype="int8", agree=0.05),
    _case("SD 1.5 VAE decode, 512 px", "pictures/s", "decode"),
)
CUDA_CASES = (
    *CASES,
    _case("SD 1.5 U-Net f16, batch 2, 512 px", "steps/s", "unet", dtype="f16", agree=0.02),
)
