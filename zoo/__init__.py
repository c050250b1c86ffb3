"""The zoo: LLaMA, Stable Diffusion, Whisper, ResNet and a MNIST CNN on one small tensor core.

import zoo
model = zoo.load("mnist_cnn")                     # a shipped checkpoint, a directory, a file
device = zoo.device("cpu")                        # numpy | cpu | cuda
x = zoo.tensor([[1.0, 2.0]], device=device)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoo.core import ops, random
from zoo.core.autodiff import Autodiff, Gradients
from zoo.core.device import device
from zoo.core.dtype import (
    bfloat16,
    bool_,
    dtype,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint32,
)
from zoo.core.errors import (
    DataError,
    DeviceError,
    DownloadError,
    DtypeError,
    NotDifferentiable,
    ShapeError,
    WeightsError,
    ZooError,
)
from zoo.core.fusion import Fusion, fused
from zoo.core.stats import stats
from zoo.core.tensor import Tensor, from_dlpack, tensor

if TYPE_CHECKING:
    from zoo.hub.load import load

__version__ = "0.1.0"

# loaded when first asked for, so that `import zoo` stays quick
_LATER = {"load": "zoo.hub.load", "nn": "zoo.nn", "train": "zoo.train"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    module = import_module(_LATER[name])
    return module if module.__name__ == f"zoo.{name}" else getattr(module, name)


__all__ = [
    "Autodiff",
    "DataError",
    "DeviceError",
    "DownloadError",
    "DtypeError",
    "Fusion",
    "Gradients",
    "NotDifferentiable",
    "ShapeError",
    "Tensor",
    "WeightsError",
    "ZooError",
    "bfloat16",
    "bool_",
    "device",
    "dtype",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "fused",
    "int8",
    "int16",
    "int32",
    "int64",
    "load",
    "ops",
    "random",
    "stats",
    "tensor",
    "uint8",
    "uint32",
]
