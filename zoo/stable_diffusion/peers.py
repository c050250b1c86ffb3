"""The same networks with the same weights for `zoo bench stable_diffusion --peers`: diffusers and OpenVINO.

Imported in the peers' own processes alone. OpenVINO gets what its converter makes of diffusers' modules.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from zoo.bench.case import ProcessorOnly, Run, Variants
from zoo.bench.inputs import threads
from zoo.bench.peers import torch_here
from zoo.stable_diffusion.bench import BATCH, TIME, UNETS, VAES, Weights, latents, text
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import Vae


def _filled(kind: Any, config: Any, ours: Any, dtype: str = "f32", device: str = "cpu") -> Any:
    """A module of diffusers with the weights of ours; nothing is made twice."""
    torch = torch_here(device)
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16}
    with torch.device("meta"):
        module = kind(**vars(config))
    module = module.to(kinds.get(dtype, torch.float32)).to_empty(device=device).eval()
    with torch.no_grad():
        for name, array in Weights(ours(config)).items():
            parameter = module.get_parameter(name)
            channels_first = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
            parameter.copy_(torch.from_numpy(channels_first.copy()).reshape(parameter.shape))
    return module


def _inputs(pixels: int, batch: int) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(latents(pixels, batch).transpose(0, 3, 1, 2)))


def _unet_inputs(model: str, pixels: int) -> tuple[Any, ...]:
    import torch

    return _inputs(pixels, BATCH), torch.tensor(TIME), torch.from_numpy(text(model))


def _unet(model: str, pixels: int, dtype: str = "f32", device: str = "cpu") -> tuple[Any, tuple[Any, ...]]:
    import diffusers

    module = _filled(diffusers.UNet2DConditionModel, UNETS[model], UNet, dtype, device)
    x, time, told = _unet_inputs(model, pixels)
    return module, (x.to(device, module.dtype), time.to(device), told.to(device, module.dtype))


def _decoder(model: str, pixels: int, device: str = "cpu") -> tuple[Any, tuple[Any, ...]]:
    import diffusers
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = _filled(diffusers.AutoencoderKL, VAES[model], Vae, device=device)
            del self.vae.encoder, self.vae.quant_conv

        def forward(self, z: Any, return_dict: bool = False) -> Any:
            return self.vae.decode(z, return_dict=False)

    return Decoder().eval(), (_inputs(pixels, 1).to(device),)


def _eager(make: Callable[[], tuple[Any, tuple[Any, ...]]]) -> Variants:
    """In both layouts; the first call of each lays the weights out."""
    import torch

    made = cache(make)  # once, for both

    def variant(layout: Any) -> Run:
        module, inputs = made()

        def run() -> Any:
            with torch.inference_mode():
                module.to(memory_format=layout)
                x = inputs[0].contiguous(memory_format=layout)
                return module(x, *inputs[1:], return_dict=False)[0]

        return run

    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    return Variants({name: partial(variant, layout) for name, layout in layouts.items()})


def _on_gpu(make: Callable[[], tuple[Any, tuple[Any, ...]]]) -> Variants:
    """Channels last, which tensor cores take, as it is and compiled."""
    import torch

    made = cache(make)

    def variant(compiled: bool) -> Run:
        module, inputs = made()
        module.to(memory_format=torch.channels_last)
        x = inputs[0].contiguous(memory_format=torch.channels_last)
        call = torch.compile(module) if compiled else module

        def run() -> Any:
            with torch.inference_mode():
                return call(x, *inputs[1:], return_dict=False)[0]

        return run

    return Variants(
        {"channels_last" + ", compiled" * compiled: partial(variant, compiled) for compiled in (False, True)}
    )


def unet_diffusers(model: str, pixels: int, dtype: str = "f32", device: str = "cpu") -> Variants:
    """int8: torch's dynamic int8 for linear layers; it has none for convolutions. bf16, f16: all of it."""
    import torch

    if device != "cpu" and dtype == "int8":
        raise ProcessorOnly("torch's dynamic int8 is the processor's")

    def make() -> tuple[Any, tuple[Any, ...]]:
        module, inputs = _unet(model, pixels, dtype, device)
        if dtype == "int8":
            torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
        return module, inputs

    return _eager(make) if device == "cpu" else _on_gpu(make)


def decode_diffusers(model: str, pixels: int, device: str = "cpu") -> Variants:
    make = partial(_decoder, model, pixels, device)
    return _eager(make) if device == "cpu" else _on_gpu(make)


def _compiled(name: str, make: Callable[[], tuple[Any, tuple[Any, ...]]], inputs: tuple[Any, ...],
              dtype: str = "f32") -> Run:  # fmt: skip
    """What OpenVINO's converter makes of diffusers' module. For a U-Net that takes minutes and twice its memory: it is
    kept in the user's cache, and converted in a process of its own."""
    import openvino

    cache = user_cache_path("zoo-models", appauthor=False) / "bench"
    file = cache / f"{name}-openvino-{metadata.version('openvino')}.xml"
    if not file.exists():
        child = get_context("spawn").Process(target=_convert, args=(make, file))
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError("the conversion failed")
    settings = {
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # else it would take bfloat16 where the processor has it
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
    }
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    arrays = [np.asarray(value) for value in inputs]

    def run() -> Any:
        request.infer(dict(enumerate(arrays)), share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


def _convert(make: Callable[[], tuple[Any, tuple[Any, ...]]], file: Path) -> None:
    """Writes the converted module, in float32; whole, or not at all."""
    import openvino

    module, inputs = make()
    converted = openvino.convert_model(module, example_input=inputs)
    converted.reshape({port: list(value.shape) for port, value in zip(converted.inputs, inputs, strict=True)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:
        openvino.save_model(converted, Path(folder) / file.name, compress_to_fp16=False)
        for part in (file.with_suffix(".bin").name, file.name):
            os.replace(Path(folder) / part, file.parent / part)


def unet_openvino(model: str, pixels: int, dtype: str = "f32") -> Run:
    """int8: in f32, since rounding its weights takes a further package."""
    return _compiled(f"unet-{model}-{pixels}", partial(_unet, model, pixels), _unet_inputs(model, pixels), dtype)


def decode_openvino(model: str, pixels: int) -> Run:
    return _compiled(f"decode-{model}-{pixels}", partial(_decoder, model, pixels), (_inputs(pixels, 1),))
