"""The kernels' cases, `zoo bench kernels`: shapes of LLaMA (11008x4096, 32000x2048, 512x4096x4096), Whisper
(1500x1536x384), Stable Diffusion and ResNet."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.bench.case import Case
from zoo.bench.convolutions import CONVOLUTIONS, Conv

OURS, PEERS, QUANT = "zoo.bench.ours", "zoo.bench.peers", "zoo.bench.quant_peers"
FAST = "GFLOP/s"
BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}  # int4: a float16 scale for 32 numbers
AGREE = {"f32": 1e-3, "bf16": 1e-2, "f16": 1e-2, "int8": 3e-2, "int4": 3e-2}
SHAPES = ((2048, 2048, 2048), (512, 4096, 4096), (1500, 1536, 384), (4096, 320, 2880))  # M, N, K
VECTOR_SHAPES = ((11008, 4096), (32000, 2048))  # N, K


def _linear(name: str, format: str, m: int, n: int, k: int, *, roof: str, cold: bool) -> Case:
    """`cold`: weights come from memory, as where few rows meet each weight once. Then the figure is bytes of weights,
    activations and results over time."""
    if format in ("f32", "bf16", "f16"):
        peers = {"torch": f"{PEERS}:linear_torch"}
        if format == "f32":
            peers["numpy"] = f"{PEERS}:linear_numpy"
    else:
        peers = {"torch": f"{QUANT}:{format}_torch", "onnxruntime": f"{QUANT}:{format}_onnxruntime"}
    if roof == "read":
        unit, work = "GB/s", (n * k * BYTES[format] + 4 * m * (n + k)) / 1e9
    else:
        unit, work = "GOP/s" if roof == "int8" else FAST, 2 * m * n * k / 1e9
    settings = {"m": m, "n": n, "k": k, "format": format, "cold": cold}
    few = "few rows" if format == "f32" and cold else f"{format} products"
    group = "one row" if m == 1 else few
    return Case(name, unit, work, f"{OURS}:linear", peers, settings, roof, group, AGREE[format])


def _products() -> Iterator[Case]:
    for m, n, k in SHAPES:
        yield _linear(f"f32 {m}x{n}x{k}", "f32", m, n, k, roof="fma", cold=False)
    for m in (2, 4, 8, 14, 16):
        yield _linear(f"f32 M={m} 11008x4096", "f32", m, 11008, 4096, roof="read", cold=True)
    for m in (32, 64, 128):
        yield _linear(f"f32 M={m} 11008x4096", "f32", m, 11008, 4096, roof="fma", cold=True)
    for format in ("f32", "bf16", "f16", "int8"):
        for n, k in VECTOR_SHAPES:
            yield _linear(f"{format} M=1 {n}x{k}", format, 1, n, k, roof="read", cold=True)
    for m, n, k in (*SHAPES, (256, 5632, 2048)):
        yield _linear(f"bf16 {m}x{n}x{k}", "bf16", m, n, k, roof="bf16", cold=False)
    yield _linear("bf16 M=128 11008x4096", "bf16", 128, 11008, 4096, roof="bf16", cold=True)
    for m, n, k in SHAPES:
        yield _linear(f"int8 {m}x{n}x{k}", "int8", m, n, k, roof="int8", cold=False)
    yield _linear("int8 M=256 11008x4096", "int8", 256, 11008, 4096, roof="int8", cold=True)
    yield _linear("int4 M=1 11008x4096", "int4", 1, 11008, 4096, roof="read", cold=True)
    yield _linear("int4 M=256 11008x4096", "int4", 256, 11008, 4096, roof="int8", cold=True)


def _attention(name: str, batch: int, heads: int, d: int, queries: int, keys: int, causal: bool) -> Case:
    """Of causal attention, half the operations are counted. One query reads keys and values once: bytes."""
    peers = {"torch": f"{PEERS}:attention_torch"}
    settings = {"batch": batch, "heads": heads, "d": d, "queries": queries, "keys": keys, "causal": causal}
    if queries == 1:
        return Case(name, "GB/s", 8 * batch * heads * d * keys / 1e9, f"{OURS}:attention", peers, settings, "read")
    work = 4 * batch * heads * d * queries * keys / (2 if causal else 1) / 1e9
    return Case(name, FAST, work, f"{OURS}:attention", peers, settings, "fma")


def _convolution(c: Conv) -> Case:
    """Operations are those of the direct algorithm, so Winograd's may be above the roof. torch alone is the peer: ONNX
    Runtime and OpenVINO choose layouts for a whole network, and a single layer would only measure their way in and out
    (`zoo bench resnet --peers` has them)."""
    work = 2 * c.batch * c.outputs * c.size_out**2 * c.inputs * c.kernel**2 / 1e9
    settings = {"batch": c.batch, "size": c.size, "inputs": c.inputs, "outputs": c.outputs, "kernel": c.kernel,
                "stride": c.stride}  # fmt: skip
    group = "strided convolutions" if c.stride > 1 else f"{c.kernel}x{c.kernel} convolutions"
    return Case(c.name, FAST, work, f"{OURS}:conv", {"torch": f"{PEERS}:conv_torch"}, settings, "fma", group)


ROWS, WIDTH = 4096, 1280


def _rows() -> Iterator[Case]:
    """Memory-bound: every number is read once and written once."""
    for op in ("layer_norm", "softmax", "gelu", "group_norm_silu"):
        peers, settings = {"torch": f"{PEERS}:rows_torch"}, {"op": op, "rows": ROWS, "width": WIDTH}
        yield Case(f"rows {op} {ROWS}x{WIDTH}", "GB/s", 8 * ROWS * WIDTH / 1e9, f"{OURS}:rows", peers, settings, "copy")


CASES: tuple[Case, ...] = (
    *_products(),
    _attention("attention 32 heads d64 L512 causal", 1, 32, 64, 512, 512, True),
    _attention("attention 32 heads d64 L2048 causal", 1, 32, 64, 2048, 2048, True),
    _attention("attention 2x8 heads d40 L4096", 2, 8, 40, 4096, 4096, False),
    _attention("attention 32 heads d64 decode 1x2048", 1, 32, 64, 1, 2048, True),
    *_rows(),
    *(_convolution(c) for c in CONVOLUTIONS),
)
