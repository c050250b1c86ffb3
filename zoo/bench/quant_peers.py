"""Products with quantised weights by torch and ONNX Runtime, from the codes and scales that ours has.

Both quantise activations on the fly, per tensor; ours does per row. Imported in the peers' own processes alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from zoo.bench.inputs import copies, in_turn, numbers, threads
from zoo.bench.peers import Run, torch_here, without_gradients
from zoo.core import ops
from zoo.core.tensor import tensor

GROUP = 32


def _weights(m: int, n: int, k: int, format: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, codes, scales."""
    q, scale = ops.quantize(tensor(numbers(2, n, k), device="numpy"), format)
    return numbers(1, m, k), q.numpy().copy(), scale.numpy().astype(np.float32)


def int8_torch(m: int, n: int, k: int, format: str, cold: bool) -> dict[str, Run]:
    """quantized::linear_dynamic by each engine of this build (FBGEMM as "x86", oneDNN)."""
    torch = torch_here()
    x, q, scale = _weights(m, n, k, format)
    zeros = torch.zeros(n, dtype=torch.int64)
    variants: dict[str, Run] = {}
    for engine in ("x86", "onednn"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        weight = torch._make_per_channel_quantized_tensor(torch.from_numpy(q), torch.from_numpy(scale), zeros, 0)
        packs = [torch.ops.quantized.linear_prepack(weight, None) for _ in range(copies(q.nbytes) if cold else 1)]
        multiply = partial(torch.ops.quantized.linear_dynamic, torch.from_numpy(x), reduce_range=False)
        runs = [partial(multiply, W_prepack=pack) for pack in packs]
        variants[engine] = without_gradients(torch, in_turn(runs))
    return variants


def int4_torch(m: int, n: int, k: int, format: str, cold: bool) -> dict[str, Run]:
    """The CPU kernel behind torchao's int4 weights; it takes bfloat16 or float32 activations."""
    torch = torch_here()
    x, q, scale = _weights(m, n, k, format)
    codes = np.stack([q & 15, q >> 4], axis=-1).reshape(n, k).astype(np.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes), 1)
    zeros = np.zeros_like(scale)
    pairs = torch.from_numpy(np.ascontiguousarray(np.stack([scale, zeros], axis=-1).transpose(1, 0, 2)))
    variants: dict[str, Run] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        own, scales = torch.from_numpy(x).to(dtype), pairs.to(dtype)
        weights = [packed.clone() for _ in range(copies(packed.nbytes) if cold else 1)]
        runs = [partial(torch._weight_int4pack_mm_for_cpu, own, w, GROUP, scales) for w in weights]
        variants[name] = without_gradients(torch, in_turn(runs))
    return variants


def int8_onnxruntime(m: int, n: int, k: int, format: str, cold: bool) -> Run:
    x, q, scale = _weights(m, n, k, format)
    weights = {"w": np.ascontiguousarray(q.T), "s": scale, "z": np.zeros(n, np.int8)}
    count = copies(q.nbytes) if cold else 1
    return in_turn([_session("DynamicQuantizeMatMul", x, weights, n, {}) for _ in range(count)])


def int4_onnxruntime(m: int, n: int, k: int, format: str, cold: bool) -> Run:
    """MatMulNBits with int8 arithmetic (accuracy_level 4), the fastest it has."""
    x, q, scale = _weights(m, n, k, format)
    weights = {"w": q.reshape(n, k // GROUP, GROUP // 2), "s": scale.reshape(-1)}
    settings = {"K": k, "N": n, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
    return in_turn([_session("MatMulNBits", x, weights, n, settings) for _ in range(copies(q.nbytes) if cold else 1)])


def _session(op: str, x: np.ndarray, weights: dict[str, np.ndarray], outputs: int, settings: dict[str, Any]) -> Run:
    """A graph of one node, whose weights are constants, so that they are packed when the session is made."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(op, ["x", *weights], ["y"], domain="com.microsoft", **settings)
    graph = helper.make_graph(
        [node], op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (x.shape[0], outputs))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
