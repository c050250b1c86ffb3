"""The kernels' cases on a device, by the public ops, with weights prepared once as a model's are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from zoo.bench.inputs import copies, in_turn, numbers
from zoo.core import ops
from zoo.core.errors import OpError
from zoo.core.tensor import Tensor, tensor

Run = Callable[[], Any]
DTYPES = {"bf16": "bfloat16", "f16": "float16"}


def _on(array: Any, device: str) -> Tensor:
    return tensor(array, device=device)


def _again(weight: Tensor) -> Tensor:
    """The same numbers in memory of their own, on the same device."""
    return tensor(weight.numpy(), device=weight.device)


def _packed(weight: Tensor, kind: str) -> Tensor:
    """As Module.prepare does: in the order in which the kernel reads it, where the device packs this dtype."""
    if hasattr(weight.device, "pack"):
        with contextlib.suppress(OpError):
            return Tensor(weight.device.pack(weight.handle, kind=kind), weight.device)
    return weight


def linear(m: int, n: int, k: int, format: str, cold: bool, device: str = "cpu") -> Run:
    x = _on(numbers(1, m, k), device)
    weight = _on(numbers(2, n, k), device)
    if format in ("int8", "int4"):
        q, scale = ops.quantize(weight, format)
        runs = [_quantized(x, q, scale, format) for _ in range(copies(q.nbytes + scale.nbytes) if cold else 1)]
    else:
        weight = weight.astype(DTYPES[format]) if format in DTYPES else weight
        runs = [_dense(x, weight) for _ in range(copies(weight.nbytes) if cold else 1)]
    return in_turn(runs)


def _dense(x: Tensor, weight: Tensor) -> Run:
    own = _packed(_again(weight), "linear")
    return lambda: ops.linear(x, own)


def _quantized(x: Tensor, q: Tensor, scale: Tensor, format: str) -> Run:
    codes, scales = _packed(_again(q), "linear"), _packed(_again(scale), "linear")
    return lambda: ops.qlinear(x, codes, scales, format=format)


def attention(batch: int, heads: int, d: int, queries: int, keys: int, causal: bool, device: str = "cpu") -> Run:
    q = _on(numbers(1, batch, queries, heads, d) * 4, device)

    def one() -> Run:
        k, v = (_on(numbers(seed, batch, keys, heads, d) * scale, device) for seed, scale in ((2, 4), (3, 1)))
        return lambda: ops.attention(q, k, v, causal=causal)

    return in_turn([one() for _ in range(copies(8 * batch * keys * heads * d) if queries == 1 else 1)])


def conv(batch: int, size: int, inputs: int, outputs: int, kernel: int, stride: int, device: str = "cpu") -> Run:
    x = _on(numbers(1, batch, size, size, inputs), device)
    weight = _packed(_on(numbers(2, outputs, kernel, kernel, inputs), device), "conv")
    bias = _on(numbers(3, outputs), device)
    return lambda: ops.conv(x, weight, bias, stride=stride, padding=kernel // 2)


def rows(op: str, rows: int, width: int, device: str = "cpu") -> Run:
    x, weight, bias = (_on(numbers(i + 1, *s), device) for i, s in enumerate(((rows, width), (width,), (width,))))
    picture = x.reshape(1, 64, rows // 64, width)
    runs: dict[str, Run] = {
        "layer_norm": lambda: ops.layer_norm(x, weight, bias),
        "softmax": lambda: ops.softmax(x),
        "gelu": lambda: ops.gelu(x),
        "group_norm_silu": lambda: ops.group_norm(picture, weight, bias, 32, activation="silu"),
    }
    return runs[op]
