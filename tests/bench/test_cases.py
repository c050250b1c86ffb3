"""The cases themselves: every function is there, names are different, shapes are those of the networks."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from small_cases import PORTS, small

from zoo import port as ports
from zoo.bench import kernels, worker
from zoo.bench.case import ROOFS, Case
from zoo.bench.convolutions import CONVOLUTIONS, Conv


def cases_of_ports() -> list[Case]:
    return [case for name in PORTS for case in import_module(ports.get(name).bench).CASES]


def test_cases_are_whole():
    everything = [*kernels.CASES, *cases_of_ports()]
    assert len({case.name for case in everything}) == len(everything) > 90
    for case in everything:
        for function in (case.ours, *case.peers.values()):
            module, _, name = function.partition(":")
            assert callable(getattr(import_module(module), name))
        assert case.work > 0 and case.roof in (*ROOFS, None)


def test_the_networks_have_their_convolutions():
    assert Conv("resnet50", 1, 7, 512, 512) in CONVOLUTIONS and Conv("resnet50", 1, 56, 128, 128, 3, 2) in CONVOLUTIONS
    assert Conv("resnet50", 1, 14, 1024, 2048, 1, 2) in CONVOLUTIONS
    # inputs of the UNet's upper blocks (diffusers: up_blocks.*.resnets.*.conv1)
    ups = {(c.size, c.inputs, c.outputs) for c in CONVOLUTIONS if c.network == "unet" and c.inputs > c.outputs > 4}
    assert ups == {
        (8, 2560, 1280), (16, 2560, 1280), (16, 1920, 1280), (32, 1920, 640), (32, 1280, 640), (32, 960, 640),
        (64, 960, 320), (64, 640, 320),
    }  # fmt: skip
    # the whole ResNet-50 has 53 convolutions; these are its distinct ones
    assert len([c for c in CONVOLUTIONS if c.network == "resnet50"]) == 23
    assert Conv("vae", 1, 512, 128, 128) in CONVOLUTIONS and Conv("vae", 1, 256, 512, 512) in CONVOLUTIONS


KINDS = {
    (c.ours, c.settings.get("format"), c.settings.get("op"), c.settings.get("queries") == 1): c for c in kernels.CASES
}


KINDS_OF_PORTS = {
    (case.ours, case.settings.get("format"), case.settings.get("dtype")): case for case in cases_of_ports()
}  # batches differ, and are made small here


@pytest.mark.parametrize("case", [*KINDS.values(), *KINDS_OF_PORTS.values()], ids=lambda c: c.name)
def test_ours_and_peers_compute_the_same(case, native):
    def result(function: str) -> float:
        module, _, name = function.partition(":")
        made = getattr(import_module(module), name)(**small(case))
        sizes = [worker.rms(run()) for run in ([made] if callable(made) else made.values())]
        assert np.ptp(sizes) <= case.agree * sizes[0], "variants compute the same"
        return sizes[0]

    ours = result(case.ours)
    assert ours > 0
    for peer, function in case.peers.items():
        if peer == "torch":
            pytest.importorskip("torch")
        if peer == "transformers":
            pytest.importorskip("transformers")
        if peer == "llama-cpp-python":
            pytest.importorskip("llama_cpp")
            pytest.importorskip("gguf")
        if peer in ("ctranslate2", "faster-whisper", "pywhispercpp"):
            pytest.importorskip(peer.replace("-", "_"))
            pytest.importorskip("transformers")
        if peer == "onnxruntime":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnx")
        if peer in ("diffusers", "openvino"):
            pytest.importorskip(peer)
            pytest.importorskip("torch")
        assert result(function) == pytest.approx(ours, rel=max(case.agree, 1e-6))
