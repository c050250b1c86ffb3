"""Checkpoints that are kept in int8 and int4: the same bits after loading, and no weight in full on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.hub import load, quantized, refs, save
from zoo.hub.export import export
from zoo.hub.pull import pull
from zoo.hub.safetensors import read, write
from zoo.llama.config import LlamaConfig
from zoo.llama.model import Llama
from zoo.nn import Linear, QuantizedLinear, quantize
from zoo.nn.quantized import FORMATS, formats

ROOT = Path(__file__).parents[2]
SHAPE = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = LlamaConfig(50, **SHAPE, attention_bias=True)


@pytest.fixture
def plain(tmp_path) -> Path:
    return save(Llama(CONFIG).init(0, "numpy"), tmp_path / "plain", port="llama")


def arrays(model) -> dict[str, np.ndarray]:
    return {path: np.asarray(tensor) for path, tensor in model.state().items()}


def logits(model) -> np.ndarray:
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    return model(Tensor(model.device.from_host(ids), model.device)).numpy()


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_kept_is_read_bit_by_bit(plain, tmp_path, format, device):
    before = load(plain, device=device, dtype=format)
    expected = logits(before)
    save(before.prepare(), tmp_path / "kept", port="llama")
    after = load(tmp_path / "kept", device=device)
    assert formats(after) == formats(before) and set(formats(after).values()) == {"int8", format}
    assert same(arrays(after), arrays(before)) and np.array_equal(logits(after), expected)
    assert same(arrays(load(tmp_path / "kept", device=device, dtype=format)), arrays(before))
    full, kept = ((d / "model.safetensors").stat().st_size for d in (plain, tmp_path / "kept"))
    assert kept < full * (0.31 if format == "int8" else 0.21)


def test_convolutions_too(tmp_path):
    before = load("resnet", device="cpu", dtype="int8")
    save(before, tmp_path / "kept", port="resnet")
    after = load(tmp_path / "kept", device="cpu")
    assert formats(after) == formats(before) and same(arrays(after), arrays(before))
    assert same(arrays(before), arrays(quantize(load("resnet", device="cpu"), "int8")))
    picture = zoo.tensor(np.random.default_rng(0).random((1, 32, 32, 3), np.float32), device="cpu")
    assert np.array_equal(after.prepare()(picture).numpy(), before.prepare()(picture).numpy())


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_on_the_way_is_rounding_a_loaded_model(plain, format, monkeypatch):
    monkeypatch.setattr(quantized, "BLOCK", 3000)  # rows by rows, with a remainder
    assert same(arrays(load(plain, device="numpy", dtype=format)),
                arrays(quantize(load(plain, device="numpy"), format)))  # fmt: skip


def test_the_head_and_narrow_layers_are_int8_of_an_int4_model(plain, tmp_path):
    kept = save(load(plain, device="numpy", dtype="int4"), tmp_path / "kept", port="llama")
    with read(kept / "model.safetensors") as tensors:
        stated = json.loads(tensors.metadata["zoo.quantized"])
        assert tensors.infos["model.layers.0.mlp.up_proj.weight"].shape == (160, 64)
        assert tensors.infos["model.layers.0.mlp.up_proj.scale"].dtype == np.float16
    assert stated["format"] == "int4" and stated["layers"]["lm_head"] == "int8"
    assert stated["layers"]["model.layers.1.self_attn.q_proj"] == "int4" and len(stated["layers"]) == 15


def test_other_dtypes_leave_the_scales(plain, tmp_path):
    """float32 for int8, float16 for int4: kernels read no other."""
    model = load(plain, device="numpy", dtype="int4")
    kept = save(model, tmp_path / "kept", port="llama", dtype="bfloat16")
    for other in (load(kept, device="numpy"), load(plain, device="numpy", dtype="int4").astype("bfloat16"),
                  load(kept, device="numpy", dtype="bf16")):  # fmt: skip
        found = {layer.scale.dtype.name for _, layer in other.named_modules() if isinstance(layer, QuantizedLinear)}
        assert found == {"float32", "float16"} and other.model.norm.weight.dtype.name == "bfloat16"
        assert other.model.layers[0].self_attn.q_proj.bias.dtype.name == "bfloat16"
        assert np.array_equal(other.lm_head.scale.numpy(), model.lm_head.scale.numpy())
    assert load(kept, device="numpy", dtype="f32").model.norm.weight.dtype == np.float32


def changed(directory: Path, stated: str) -> Path:
    with read(directory / "model.safetensors") as tensors:
        about = {**tensors.metadata, "zoo.quantized": stated}
        write(directory / "model.safetensors", {name: array.copy() for name, array in tensors.items()}, about)
    return directory


def test_what_cannot_be_used(plain, tmp_path):
    kept = save(load(plain, device="numpy", dtype="int8"), tmp_path / "kept", port="llama")
    with pytest.raises(WeightsError, match="as int4") as raised:
        load(kept, dtype="int4")
    assert "kept as int8" in raised.value.why
    with pytest.raises(WeightsError, match="cannot export") as raised:
        export(kept, tmp_path / "published")
    assert "rounded to int8" in raised.value.why and not (tmp_path / "published").exists()
    for stated, why in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": "int3", "layers": {}}', "rounded to int3"),
        ('{"format": "int8", "layers": {"model.norm": "int8"}}', "no such layer"),
        ('{"format": "int8", "layers": {}}', "lm_head.scale has no place"),
        ('{"format": "int8", "layers": {"lm_head": "int4"}}', "lm_head.weight"),
    ):
        with pytest.raises(WeightsError) as raised:
            load(changed(kept, stated))
        assert why in str(raised.value), stated


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_rounded(plain, bad):
    model = load(plain, device="numpy")
    weight = model.lm_head.weight.numpy().copy()
    weight[3, 4] = bad
    model.set("lm_head.weight", zoo.tensor(weight, device=model.device))
    save(model, plain, port="llama")
    assert isinstance(load(plain).lm_head, Linear)
    with pytest.raises(WeightsError) as raised:
        load(plain, dtype="int8")
    assert "lm_head.weight holds NaN or infinities" in raised.value.why


@pytest.mark.parametrize("format", FORMATS)
def test_pulled_and_kept(plain, hub, weights, tmp_path, format, capsys):
    published = export(plain, tmp_path / "published").directory
    hub.revisions["main"] = {path.name: path.read_bytes() for path in published.iterdir()}
    assert main(["pull", "owner/name", "--check", "--json", "--dtype", format]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert {t["dtype"] for t in seen["tensors"] if "_proj" in t["target"] and "weight" in t["target"]} <= {
        "int8", "uint8"}  # fmt: skip
    assert main(["pull", "owner/name", "--dtype", format, "--quiet"]) == 0
    model = load("owner/name", device="numpy")
    assert same(arrays(model), arrays(load(plain, device="numpy", dtype=format)))
    assert abs(seen["memory_bytes"] - sum(a.nbytes for a in arrays(model).values())) == 0
    assert refs.resolve("owner/name").provenance()["dtype"] == format
    assert not pull("owner/name", dtype=format).fresh and pull("owner/name").fresh
    assert pull("owner/name", dtype=format).fresh
    capsys.readouterr()
    assert main(["list"]) == 0 and f", {format})" in capsys.readouterr().out
    assert main(["info", "owner/name", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == sum(p.size for p in load(plain).state().values())
    assert told["quantized"]["format"] == format and list(told["memory"]["weights"]) == [format]
    assert main(["info", "owner/name"]) == 0
    assert f"layers to {format}" in capsys.readouterr().out


PEAK = """
import sys
import zoo.llama, huggingface_hub.hf_api
from zoo import hub
from zoo.hub.pull import pull

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

before = peak()
what, format = sys.argv[1:]
if what == "pull":
    pull("owner/name", dtype=format)
else:
    model = hub.load(what, device="numpy", dtype=format)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_no_weight_is_ever_in_memory_in_full(hub, weights, tmp_path):
    """163 MB of float32 in matrices of 1 to 3 MB. A block of 0.5 MB is rounded at a time (4 MB
    by default, which are more than these matrices), and takes about ten times as many bytes."""
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = LlamaConfig(64, **shape)
    full = save(Llama(config).init(0, "cpu"), tmp_path / "full", port="llama")
    size = (full / "model.safetensors").stat().st_size
    published = export(full, tmp_path / "published").directory
    hub.revisions["main"] = {path.name: path.read_bytes() for path in published.iterdir()}
    script = PEAK.replace(
        "before = peak()", "from zoo.hub import quantized\nquantized.BLOCK = 1 << 19\nbefore = peak()"
    )
    for what, format, kept in ((str(full), "int4", size / 6), (str(full), "int8", size / 3.8), ("pull", "int4", 0)):
        done = subprocess.run([sys.executable, "-c", script, what, format], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        used = int(done.stdout.split()[-1])
        assert used < kept + 36e6, f"{what} {format}: {used / 1e6:.0f} MB, of {size / 1e6:.0f} MB"
        assert size > 150e6
