"""The same networks with the same weights for `zoo bench stable_diffusion --peers`: diffusers and OpenVINO.

Imported in the peers' own processes alone. OpenVINO gets what its converter makes of diffusers' modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.bench.case import Run
from zoo.bench.inputs import threads
from zoo.stable_diffusion.bench import BATCH, TIME, UNETS, VAES, Weights, latents, text
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import Vae


def _filled(kind: Any, config: Any, ours: Any) -> Any:
    """A module of diffusers with the weights of ours; nothing is made twice."""
    import torch

    torch.set_num_threads(threads())
    with torch.device("meta"):
        module = kind(**vars(config))
    module = module.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, array in Weights(ours(config)).items():
            parameter = module.get_parameter(name)
            channels_first = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
            parameter.copy_(torch.from_numpy(channels_first.copy()).reshape(parameter.shape))
    return module


def _inputs(pixels: int, batch: int) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(latents(pixels, batch).transpose(0, 3, 1, 2)))


def _unet(model: str, pixels: int) -> tuple[Any, tuple[Any, ...]]:
    import diffusers
    import torch

    module = _filled(diffusers.UNet2DConditionModel, UNETS[model], UNet)
    return module, (_inputs(pixels, BATCH), torch.tensor(TIME), torch.from_numpy(text(model)))


def _decoder(model: str, pixels: int) -> tuple[Any, tuple[Any, ...]]:
    import diffusers
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = _filled(diffusers.AutoencoderKL, VAES[model], Vae)
            del self.vae.encoder, self.vae.quant_conv

        def forward(self, z: Any, return_dict: bool = False) -> Any:
            return self.vae.decode(z, return_dict=False)

    return Decoder().eval(), (_inputs(pixels, 1),)


def _eager(module: Any, inputs: tuple[Any, ...]) -> dict[str, Run]:
    """In both layouts; the first call of each lays the weights out."""
    import torch

    def variant(layout: Any) -> Run:
        def run() -> Any:
            with torch.inference_mode():
                module.to(memory_format=layout)
                x = inputs[0].contiguous(memory_format=layout)
                return module(x, *inputs[1:], return_dict=False)[0]

        return run

    return {"channels_last": variant(torch.channels_last), "contiguous": variant(torch.contiguous_format)}


def unet_diffusers(model: str, pixels: int, dtype: str = "f32") -> dict[str, Run]:
    """int8: torch rounds linear layers dynamically, and has no such convolution; so it is taken in f32 too."""
    return _eager(*_unet(model, pixels))


def decode_diffusers(model: str, pixels: int) -> dict[str, Run]:
    return _eager(*_decoder(model, pixels))


def _compiled(module: Any, inputs: tuple[Any, ...]) -> Run:
    import openvino

    converted = openvino.convert_model(module, example_input=inputs)
    settings = {
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # as we compute: it would take bfloat16 where the processor has it
    }
    arrays = [np.asarray(value) for value in inputs]
    converted.reshape({port: list(array.shape) for port, array in zip(converted.inputs, arrays, strict=True)})
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run() -> Any:
        request.infer(dict(enumerate(arrays)), share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


def unet_openvino(model: str, pixels: int, dtype: str = "f32") -> Run:
    module, inputs = _unet(model, pixels)
    return _compiled(module, inputs)


def decode_openvino(model: str, pixels: int) -> Run:
    return _compiled(*_decoder(model, pixels))
