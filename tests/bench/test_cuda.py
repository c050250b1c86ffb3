"""`zoo bench --device cuda` without a GPU: ours on the emulated one, torch's side on the processor under another name.
No figure that comes out of this says anything; that they are taken of the right work, at the right moment, does."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from small_cases import PORTS, small

from zoo import port as ports
from zoo.bench import kernels, report, worker
from zoo.bench.case import Case, ProcessorOnly, Variants
from zoo.bench.gpu import GPU_ROOFS, Gpu
from zoo.bench.runner import Failed, Row, Taken
from zoo.core.errors import DeviceError
from zoo.core.testing.emulator import emulated

THERE = "cpu:0"
"""The processor, for torch; no "cpu" for us: so everything that is done on a GPU alone is done."""
GPU_PEERS = ("torch", "transformers", "diffusers")


def cuda_cases(module: Any) -> tuple[Case, ...]:
    return getattr(module, "CUDA_CASES", module.CASES)


CASES = [*kernels.CASES, *(case for name in PORTS for case in cuda_cases(import_module(ports.get(name).bench)))]
KINDS = {(c.ours, c.numbers, c.settings.get("op"), c.settings.get("queries") == 1): c for c in CASES}


def tiny(case: Case) -> dict[str, Any]:
    return small(case) | ({"shape": "CIFAR ResNet-20", "batch": 8} if "shape" in case.settings else {})


def function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cuda` is the emulated GPU, and what is measured of it takes no time."""
    monkeypatch.setattr("zoo.core.device._cuda", lambda index: emulated())
    for name, value in {"WIDTH": 32, "BUFFER": 1 << 12, "MEMORY": 1e-4, "MEDIUM": 1e-4, "LONG": 1e-4}.items():
        monkeypatch.setattr(f"zoo.bench.gpu.{name}", value)
    monkeypatch.setattr("zoo.bench.gpu._cuda", lambda xp: "13.0")
    return Gpu("cuda")


def test_cases_are_whole():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert "device" in inspect.signature(function(case.ours)).parameters
        for peer, name in case.peers.items():
            takes = "device" in inspect.signature(function(name)).parameters
            assert takes == (peer in GPU_PEERS and "quant_peers" not in name), name
    floors = {case.name for case in CASES if case.flops and case.floor_bytes}
    assert floors >= {"1.1B bf16 decode", "1.1B bf16 prompt of 2048", "SD 1.5 U-Net f16, batch 2, 512 px",
                      "base f16 window", "mnist_cnn training, batch 64", "ResNet-50 training, batch 8"}  # fmt: skip


OURS = [case for kind, case in KINDS.items() if kind[0].startswith("zoo.bench") and kind[1] != "int4"]
OURS += [
    case for case in CASES if case.name in ("mnist_cnn batch 1", "mnist_cnn training, batch 64", "base f16 encoder")
]


@pytest.mark.parametrize("case", OURS, ids=lambda c: c.name)
def test_ours_computes_on_the_gpu_what_it_does_on_numpy(case, gpu):
    settings = tiny(case) | ({"batch": 4} if "training" in case.name else {})
    made = [function(case.ours)(**settings, device=name) for name in ("numpy", "cuda")]
    want, found = (run() for run in made)
    if not isinstance(found, float):
        assert found.device is gpu.device
    assert worker.rms(found) == pytest.approx(worker.rms(want), rel=case.agree)


@pytest.mark.parametrize("case", KINDS.values(), ids=lambda c: c.name)
def test_peers_compute_the_same_in_each_variant(case, native, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda made, **how: compiled.append(made) or made)
    named = {peer: function(name) for peer, name in case.peers.items()}
    able = {peer: f for peer, f in named.items() if "device" in inspect.signature(f).parameters}
    if not able:
        pytest.skip("no peer that can use a GPU")
    ours = function(case.ours)(**tiny(case))
    ours = ours() if callable(ours) else next(iter(ours.values()))()
    for peer, build in able.items():
        pytest.importorskip(peer)
        try:
            made = build(**tiny(case), device=THERE)
        except ProcessorOnly:
            assert case.numbers == "int8"
            continue
        variants = {"": made} if callable(made) else made
        for name, run in variants.items():
            assert worker.rms(run()) == pytest.approx(worker.rms(ours), rel=case.agree), name
        assert len(compiled) == sum(worker.COMPILED in name for name in variants)


class Clock:
    """What a builder is told and what is waited for, in the order in which it happens."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def run(self) -> list[float]:
        self.seen.append("run")
        return [2.0]

    def finish(self) -> None:
        self.seen.append("wait")


def test_a_time_begins_and_ends_when_the_gpu_has_nothing_to_do():
    clock = Clock()
    worker.timed(clock.run, 3, clock.finish)
    assert clock.seen == ["wait", "run", "run", "run", "wait"]
    ready, dropped = worker.warm({"eager": clock.run}, clock.finish)
    assert clock.seen[5:] == ["run"] * worker.WARM + ["wait"] and list(ready) == ["eager"] and not dropped


def test_what_waits_is_the_device_that_works(gpu, monkeypatch):
    assert worker.finisher("zoo-models", "cpu") is worker.done is worker.finisher("torch", "cpu")
    assert worker.finisher("zoo-models", "cuda") == gpu.device.sync
    torch = pytest.importorskip("torch")
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    worker.finisher("transformers", "cuda:1")()
    assert waited == ["cuda:1"]


def test_a_compiled_variant_that_fails_is_dropped_and_named_another_is_an_error():
    def fails() -> Any:
        raise RuntimeError("no triton\nsecond line")

    clock = Clock()
    ready, dropped = worker.warm(Variants({"eager": lambda: clock.run, "compiled": lambda: fails}), clock.finish)
    assert list(ready) == ["eager"] and dropped == {"compiled": "RuntimeError: no triton"}
    with pytest.raises(RuntimeError):
        worker.warm({"eager": fails}, clock.finish)


def test_a_peer_without_a_device_is_left_out():
    request = {"build": "fake_candidates:quick", "settings": {"device": "cuda"}, "package": "numpy"}
    with pytest.raises(ProcessorOnly, match="processor alone"):
        worker.build(request)


def test_the_ceilings_of_a_gpu(gpu, monkeypatch):
    assert set(gpu.roofs()) == set(GPU_ROOFS) and all(rate > 0 for rate in gpu.roofs().values())
    gpu.begin()
    assert gpu.ceiling["read"] > 0 and gpu.ceiling["int8"] == 0 and gpu.clean(gpu.ceiling["copy"])
    assert not gpu.clean(0.5 * gpu.ceiling["copy"])
    about = gpu.describe()
    assert about["isa"] == "sm_90" and {"driver", "cuda", "cupy", "processor", "threads", "python"} <= about.keys()
    monkeypatch.setattr("zoo.core.device._cuda", lambda index: emulated(75))
    older = Gpu("cuda").roofs()
    assert older["bf16"] == older["tf32"] == 0 and older["f16"] > 0


def test_the_probes_do_what_their_rates_count(gpu):
    run, work = gpu._product("bf16")
    a, b, c = (cell.cell_contents for cell in run.__closure__ if hasattr(cell.cell_contents, "shape"))
    run()
    want = np.asarray(b, np.float32) @ np.asarray(a, np.float32)  # columns lie one after the other
    assert work == 2 * 32**3 and np.abs(np.asarray(c, np.float32) - want).max() <= 0.01 * np.abs(want).max()
    assert gpu._copy()[1] == 2 << 12


def test_a_floor_is_the_slower_of_both(gpu):
    gpu.ceiling |= {"bf16": 1000.0, "copy": 100.0}
    case = Case("a", "tokens/s", 1, "m:f", settings={"format": "bf16"}, flops=4e9, floor_bytes=1e8)
    floor = gpu.floor(case)
    assert floor == {"gflop": 4.0, "gb": 0.1, "milliseconds": pytest.approx(4.0)}
    row = report.entry(Row(case, {"ours": Taken([200.0, 200.0], True, 2, 2)})) | {"floor": floor}
    assert report.cells(row, [], floor=True)[-1] == "4 GFLOP, 0.1 GB: 4 ms, 0.80 of ours"
    found = report.document({"processor": "H", "isa": "sm_90", "threads": 1, "python": "3", "driver": "580.1",
                             "cuda": "13.0", "cupy": "14.1"}, gpu.ceiling, [row])  # fmt: skip
    text = report.markdown(found)
    assert "driver 580.1, CUDA 13.0, CuPy 14.1" in text and "| f16 | 0 GFLOP/s |" in text and "0.80 of ours |" in text
    assert gpu.floor(Case("a", "u", 1, "m:f")) is None


class InProcess:
    """A Worker without a process: so the emulated GPU is there."""

    def __init__(self, package: str, threads: int):
        self.finish = worker.done

    def ask(self, **request: Any) -> dict[str, Any]:
        if "run" in request:
            return worker.timed(self.run, request["run"], self.finish) | {"waited": 0.0}
        try:
            self.finish = worker.finisher(request["package"], request["settings"]["device"])
            self.run, answer = worker.build(request, self.finish)
        except ProcessorOnly as error:
            raise Failed(str(error)) from error
        return answer

    def close(self) -> None:
        pass


def test_the_command(gpu, monkeypatch, capsys, tmp_path):
    from zoo.cli.main import main

    monkeypatch.setattr("zoo.bench.runner.Worker", InProcess)
    monkeypatch.setattr("zoo.bench.runner.REPETITION", 0)
    case = Case("a case", "pictures/s", 1, "zoo.mnist_cnn.bench:train_step", {"numpy": "fake_candidates:quick"},
                {"batch": 2}, memory=True, flops=1e6, floor_bytes=1e6)  # fmt: skip
    monkeypatch.setattr("zoo.mnist_cnn.bench.CUDA_CASES", (case,), raising=False)
    save = tmp_path / "gpu.json"
    command = ["bench", "mnist_cnn", "--device", "cuda", "--seconds", "0", "--peers"]
    assert main([*command, "--save", str(save)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[-1] == "floor" and out.splitlines()[1].endswith("of ours")
    assert "numpy: it is measured on the processor alone" in err and "sm_90" in err
    found = json.loads(save.read_text())
    assert found["rows"][0]["floor"]["gflop"] == 1e-3 and found["machine"]["isa"] == "sm_90"
    assert main([*command, "--save", str(save), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    assert again == found["rows"] or not found["rows"][0]["clean"], "measured once"
    assert main(["bench", "roof", "--device", "cuda"]) == 0
    assert "float16 products by cuBLAS" in capsys.readouterr().out
    assert main(["bench", "llama", "--device", "cuda", "--list"]) == 0
    assert "prompt of 2048" in capsys.readouterr().out


def test_devices_that_cannot_be_measured(capsys):
    from zoo.cli.main import main

    assert main(["bench", "roof", "--device", "numpy"]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3 and "'numpy'" in told[0]
    try:
        Gpu("cuda:99")
    except DeviceError:
        assert main(["bench", "mnist_cnn", "--device", "cuda:99"]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 3


class TestFloors:
    """What was counted, counted again by torch on tensors without numbers."""

    def counted(self, run: Any) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def test_unet(self):
        torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
        from zoo.stable_diffusion.bench import STEP, UNETS, WEIGHTS

        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**vars(UNETS["SD 1.5"]))
            x, text, time = torch.zeros(2, 4, 64, 64), torch.zeros(2, 77, 768), torch.tensor(1.0)
            assert self.counted(lambda: unet(x, time, text)) == STEP
        assert sum(p.numel() for p in unet.parameters()) == WEIGHTS

    def test_training(self):
        torch = pytest.importorskip("torch")
        from zoo.mnist_cnn import bench as digits
        from zoo.mnist_cnn.peers import _network
        from zoo.resnet import bench as resnet
        from zoo.resnet.reference import torch_net

        networks = (
            (torch_net(resnet.SHAPES["ResNet-50"][1]), (8, 3, 224, 224), 8 * resnet.LEARNING, resnet.WEIGHTS),
            (_network("cpu"), (64, 1, 28, 28), digits.LEARNING, digits.WEIGHTS),
        )
        for network, shape, flops, weights in networks:
            network, x = network.to("meta").train(), torch.zeros(shape, device="meta")
            assert self.counted(lambda network=network, x=x: network(x).sum().backward()) == flops
            assert sum(p.numel() for p in network.parameters()) == weights

    def test_llama(self):
        pytest.importorskip("transformers")
        import torch

        from zoo.llama.bench import SHAPES, ids, work
        from zoo.llama.peers import _transformers

        c, new = SHAPES["tiny"], 40
        network, text = _transformers(c, "f32"), torch.tensor([ids(new)])
        network.set_attn_implementation("eager")
        found = self.counted(lambda: network(text, logits_to_keep=1))
        seen = 4 * c.num_hidden_layers * c.hidden_size  # for each key of a query; torch counts those that none sees too
        floor = work("tiny", "bf16", new, 0, 1, 1)
        assert found - seen * new * new == floor["flops"] - seen * new * (new + 1) // 2
        products = [p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name]
        assert floor["floor_bytes"] == 2 * sum(p.numel() for p in products)
        step = work("tiny", "bf16", 2, 10, 2, 2)  # two passes, which find 11 and 12 keys
        assert step["floor_bytes"] == 2 * floor["floor_bytes"] + 8 * 2 * 128 * 23

    def test_whisper(self):
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        from zoo.whisper.bench import HEARD, SHAPES, TEXT, work
        from zoo.whisper.model import Whisper
        from zoo.whisper.peers import FIELDS

        c = SHAPES["base"]
        with torch.device("meta"):
            config = transformers.WhisperConfig.from_dict({name: getattr(c, name) for name in FIELDS})
            encoder = transformers.WhisperForConditionalGeneration(config).model.encoder
            assert self.counted(lambda: encoder(torch.zeros(1, 80, 3000))) == HEARD
        spec = {name: slot.shape for name, slot in Whisper(c).spec().items() if len(slot.shape) == 2}
        sizes = {part: sum(a * b for name, (a, b) in spec.items() if part in name) for part in ("encoder.layers",
                 "decoder.layers", "embed_tokens", "encoder_attn.k_proj", "encoder_attn.v_proj")}  # fmt: skip
        assert work("encoder", "f16")["floor_bytes"] == 2 * sizes["encoder.layers"]
        crossed = sizes["encoder_attn.k_proj"] + sizes["encoder_attn.v_proj"]
        token = sizes["decoder.layers"] - crossed + sizes["embed_tokens"]
        heard = 2 * c.decoder_layers * 1500 * 512  # numbers, as wide as activations: half, beside f16
        assert work("decoder", "f16")["floor_bytes"] == (len(TEXT) + 1) * (2 * token + 2 * heard)
        assert work("decoder", "f32")["floor_bytes"] == (len(TEXT) + 1) * (4 * token + 4 * heard)
        parts = [work(part, "f16")["flops"] for part in ("encoder", "decoder", "window")]
        assert parts[2] - parts[1] - parts[0] == 2 * 1500 * crossed
