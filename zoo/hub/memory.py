"""How much memory a checkpoint will need, from shapes alone, and how much there is."""

from __future__ import annotations

import math
from typing import Any

from zoo.core.dtype import dtype as dtype_of
from zoo.core.dtype import is_float
from zoo.core.stats import available_memory
from zoo.hub import quantized
from zoo.nn.quantized import FORMATS, formats, quantize
from zoo.port import Port

DTYPES = ("f32", "bf16", "int8", "int4")


def needed(port: Port, config: Any, tokens: int | None = None) -> dict[str, Any]:
    """Bytes: "weights" by dtype, "beside" them what the port needs (for a text of so many tokens), and "available"."""
    tokens = tokens or getattr(config, "max_position_embeddings", None)
    beside = port.memory(config, tokens) if port.memory is not None and tokens else {}
    weights = {dtype: of_weights(port.model(config), dtype) for dtype in DTYPES}
    return {"weights": weights, "beside": beside, "available": available_memory()}


def of_weights(model: Any, dtype: str) -> int:
    """Bytes of the weights of a model without values, which is changed. With int8 and int4, what is not rounded is
    counted as bf16."""
    if dtype in FORMATS:
        model, dtype = quantize(model, dtype), "bf16"
    layers, total = formats(model), 0
    for path, meta in model.spec().items():
        kept = is_float(meta.dtype) and quantized.split(path, layers) is None
        total += math.prod(meta.shape) * (dtype_of(dtype) if kept else meta.dtype).itemsize
    return total


def fitting(memory: dict[str, Any]) -> list[str]:
    """The dtypes of `needed` for which there is room now, where the system says how much there is."""
    beside, free = sum(memory["beside"].values()), memory["available"]
    return [dtype for dtype, nbytes in memory["weights"].items() if free is not None and nbytes + beside <= free]
