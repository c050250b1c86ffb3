"""The kernels' cases by torch and numpy, at their best setting: every layout and operand order they may like is tried.

Imported in the peers' own processes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from zoo.bench.inputs import copies, in_turn, numbers, threads

Run = Callable[[], Any]


def torch_here(device: str = "cpu") -> Any:
    """torch, with the runner's threads; on a GPU cuDNN tries its algorithms, and `device` is the current one."""
    import torch

    torch.set_num_threads(threads())
    if device != "cpu":
        torch.cuda.set_device(device if ":" in device else f"{device}:0")
        torch.backends.cudnn.benchmark = True
    return torch


def ways(device: str) -> tuple[bool, ...]:
    """Whether to compile (torch.compile): not, and on a GPU also."""
    return (False,) if device == "cpu" else (False, True)


def without_gradients(torch: Any, run: Run) -> Run:
    def call() -> Any:
        with torch.inference_mode():
            return run()

    return call


def linear_torch(m: int, n: int, k: int, format: str, cold: bool, device: str = "cpu") -> dict[str, Run]:
    """Weights (N, K) as torch's Linear has them, or transposed once."""
    torch = torch_here(device)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[format]
    x, weight = (torch.from_numpy(a).to(device, dtype) for a in (numbers(1, m, k), numbers(2, n, k)))
    count = copies(weight.nbytes) if cold else 1
    weights = [weight.clone() for _ in range(count)]
    variants = {"linear": in_turn([partial(torch.nn.functional.linear, x, w) for w in weights])}
    if m > 1:
        turned = [w.T.contiguous() for w in weights]
        variants["mm, transposed once"] = in_turn([partial(torch.mm, x, w) for w in turned])
    return {name: without_gradients(torch, run) for name, run in variants.items()}


def linear_numpy(m: int, n: int, k: int, format: str, cold: bool) -> dict[str, Run]:
    """OpenBLAS, which numpy's wheels bring."""
    x, weight = numbers(1, m, k), numbers(2, n, k)
    weights = [weight.copy() for _ in range(copies(weight.nbytes) if cold else 1)]
    variants = {"x @ w.T": in_turn([partial(np.matmul, x, w.T) for w in weights])}
    if m > 1:
        turned = [np.ascontiguousarray(w.T) for w in weights]
        variants["x @ w, transposed once"] = in_turn([partial(np.matmul, x, w) for w in turned])
    return variants


def attention_torch(
    batch: int, heads: int, d: int, queries: int, keys: int, causal: bool, device: str = "cpu"
) -> dict[str, Run]:
    """(B, H, L, D) contiguous, as torch likes it, and as views of (B, L, H, D), as projections give it."""
    torch = torch_here(device)
    attend = torch.nn.functional.scaled_dot_product_attention
    causal = causal and queries > 1  # a single query sees every key; torch's own flag would show it only the first

    def runs(contiguous: bool) -> Run:
        def placed(seed: int, length: int, scale: float) -> Any:
            t = torch.from_numpy(numbers(seed, batch, length, heads, d) * scale).to(device).transpose(1, 2)
            return t.contiguous() if contiguous else t

        q = placed(1, queries, 4)
        count = copies(8 * batch * keys * heads * d) if queries == 1 else 1
        caches = [(placed(2, keys, 4), placed(3, keys, 1)) for _ in range(count)]
        return in_turn([partial(attend, q, k, v, is_causal=causal) for k, v in caches])

    variants = {"(B, H, L, D)": runs(True), "(B, L, H, D)": runs(False)}
    return {name: without_gradients(torch, run) for name, run in variants.items()}


def conv_torch(
    batch: int, size: int, inputs: int, outputs: int, kernel: int, stride: int, device: str = "cpu"
) -> dict[str, Run]:
    torch = torch_here(device)
    x = torch.from_numpy(numbers(1, batch, size, size, inputs)).to(device).permute(0, 3, 1, 2)
    weight = torch.from_numpy(numbers(2, outputs, kernel, kernel, inputs)).to(device).permute(0, 3, 1, 2)
    bias = torch.from_numpy(numbers(3, outputs)).to(device)

    def run(x: Any, weight: Any) -> Run:
        return lambda: torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=kernel // 2)

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    placed = {name: [t.contiguous(memory_format=layout) for t in (x, weight)] for name, layout in layouts.items()}
    return {name: without_gradients(torch, run(*tensors)) for name, tensors in placed.items()}


def rows_torch(op: str, rows: int, width: int, device: str = "cpu") -> dict[str, Run]:
    torch = torch_here(device)
    F = torch.nn.functional
    x, weight, bias = (torch.from_numpy(numbers(seed, *shape)).to(device) for seed, shape in
                       ((1, (rows, width)), (2, (width,)), (3, (width,))))  # fmt: skip
    picture = x.reshape(1, 64, rows // 64, width).permute(0, 3, 1, 2)  # channels last
    contiguous = picture.contiguous()
    runs: dict[str, dict[str, Run]] = {
        "layer_norm": {"": lambda: F.layer_norm(x, (width,), weight, bias)},
        "softmax": {"": lambda: F.softmax(x, dim=-1)},
        "gelu": {"": lambda: F.gelu(x)},
        "group_norm_silu": {
            "contiguous": lambda: F.silu(F.group_norm(contiguous, 32, weight, bias), inplace=True),
            "channels_last": lambda: F.silu(F.group_norm(picture, 32, weight, bias), inplace=True),
        },
    }
    found = {name: without_gradients(torch, run) for name, run in runs[op].items()}
    if device == "cpu":
        return found
    compiled = {name: without_gradients(torch, torch.compile(run)) for name, run in runs[op].items()}
    return found | {f"compiled {name}".rstrip(): run for name, run in compiled.items()}
