"""The same network with the same weights for `zoo bench resnet --peers`: torch, ONNX Runtime, OpenVINO.

Imported in the peers' own processes alone. The two engines get one graph, in which batch norm is folded already, as
their exporters leave it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.case import Run, Variants
from zoo.bench.inputs import threads
from zoo.bench.peers import torch_here, ways
from zoo.resnet.bench import MOMENTUM, RATE, fresh, labels, pictures
from zoo.resnet.model import Block, ConvNorm
from zoo.resnet.reference import torch_net
from zoo.resnet.weights import TORCHVISION


def channels_first(shape: str, batch: int) -> np.ndarray:
    return np.ascontiguousarray(pictures(shape, batch).transpose(0, 3, 1, 2))


# --- torch ------------------------------------------------------------------------------------------------------------


def _network(shape: str, device: str) -> Any:
    torch = torch_here(device)
    model = fresh(shape, "numpy")
    ours = {name: t.numpy() for name, t in model.state().items()}
    published = TORCHVISION.export(ours, model.config).translate(ours)
    network = torch_net(model.config)
    network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in published})
    return network.to(device)


def _layouts(torch: Any) -> dict[str, Any]:
    return {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def forward_torch(shape: str, batch: int, device: str = "cpu") -> dict[str, Run]:
    """Eager, and frozen by TorchScript, which folds the batch norms; on a GPU compiled instead; in both
    layouts."""
    import torch

    x = torch.from_numpy(channels_first(shape, batch)).to(device)

    def variant(layout: Any, how: str) -> Run:
        network = _network(shape, device).eval().to(memory_format=layout)
        placed = x.contiguous(memory_format=layout)
        with torch.inference_mode():
            if how == "frozen":
                network = torch.jit.optimize_for_inference(torch.jit.trace(network, placed))
            elif how == "compiled":
                network = torch.compile(network)

        def run() -> Any:
            with torch.inference_mode():
                return network(placed)

        return run

    return {
        f"{name}, {how}": variant(layout, how)
        for name, layout in _layouts(torch).items()
        for how in (("eager", "frozen") if device == "cpu" else ("eager", "compiled"))
    }


def train_step(shape: str, batch: int, device: str = "cpu") -> Variants:
    import torch

    x = torch.from_numpy(channels_first(shape, batch)).to(device)
    y = torch.from_numpy(labels(batch)).long().to(device)

    def variant(layout: Any, compiled: bool) -> Run:
        network: Any = _network(shape, device).train().to(memory_format=layout)
        network = torch.compile(network) if compiled else network
        sgd: Any = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
        placed = x.contiguous(memory_format=layout)

        def run() -> float:
            loss = torch.nn.functional.cross_entropy(network(placed), y)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
            return loss.item()

        return run

    return Variants({
        name + ", compiled" * compiled: partial(variant, layout, compiled)
        for compiled in ways(device)
        for name, layout in _layouts(torch).items()
    })  # fmt: skip


# --- ONNX Runtime and OpenVINO ----------------------------------------------------------------------------------------


class _Graph:
    """An ONNX graph of a prepared ResNet: convolutions with bias, as they are after folding."""

    def __init__(self, shape: str, batch: int):
        import onnx

        self.onnx, self.helper = onnx, onnx.helper
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.model = fresh(shape, "numpy").eval()
        for _, module in self.model.named_modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self.shape = channels_first(shape, batch).shape

    def build(self) -> bytes:
        body, head = self.model.resnet, self.model.classifier[1]
        x = self.conv("pixels", body.embedder.embedder)
        if body.embedder.pools:
            x = self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in body.encoder.stages:
            for block in stage.layers:
                x = self.block(x, block)
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        x = self.node("Gemm", x, self.weight(head.weight.numpy()), self.weight(head.bias.numpy()), transB=1)
        kind, value = self.onnx.TensorProto.FLOAT, self.helper.make_tensor_value_info
        inputs, outputs = value("pixels", kind, self.shape), value(x, kind, [self.shape[0], head.weight.shape[0]])
        graph = self.helper.make_graph(self.nodes, "resnet", [inputs], [outputs], self.weights)
        opset = [self.helper.make_opsetid("", 17)]
        model = self.helper.make_model(graph, opset_imports=opset, ir_version=8)
        self.onnx.checker.check_model(model)
        return model.SerializeToString()

    def block(self, x: str, block: Block) -> str:
        y = x
        for conv in block.layer[:-1]:
            y = self.conv(y, conv)
        y = self.conv(y, block.layer[-1], act=False)
        shortcut = x if block.shortcut is None else self.conv(x, block.shortcut)
        return self.node("Relu", self.node("Add", y, shortcut))

    def conv(self, x: str, conv: ConvNorm, act: bool = True) -> str:
        c = conv.convolution
        assert c.bias is not None
        kernel = c.weight.numpy().transpose(0, 3, 1, 2)
        side, stride, pad = kernel.shape[-1], c.stride, c.padding
        y = self.node(
            "Conv", x, self.weight(kernel), self.weight(c.bias.numpy()), kernel_shape=[side, side],
            strides=[stride, stride], pads=[pad] * 4,
        )  # fmt: skip
        return self.node("Relu", y) if act and conv.act is not None else y

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _graph(shape: str, batch: int, dtype: str) -> bytes:
    """The graph; in int8 as onnxruntime.quantization makes it: scales for each channel of the weights, activations
    calibrated on the very pictures."""
    graph = _Graph(shape, batch).build()
    if dtype == "f32":
        return graph
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"pixels": channels_first(shape, batch)}])

        def get_next(self) -> Any:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as place:
        to = Path(place) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(graph), to, Pictures(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return to.read_bytes()


def forward_onnxruntime(shape: str, batch: int, dtype: str = "f32") -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(_graph(shape, batch, dtype), options, providers=["CPUExecutionProvider"])
    x = channels_first(shape, batch)
    return lambda: session.run(None, {"pixels": x})[0]


def forward_openvino(shape: str, batch: int, dtype: str = "f32") -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # as we compute: it would take bfloat16 where the processor has it
    }
    compiled = core.compile_model(core.read_model(_graph(shape, batch, dtype), b""), "CPU", settings)
    request = compiled.create_infer_request()
    x = channels_first(shape, batch)

    def run() -> Any:
        request.infer({0: x}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run
