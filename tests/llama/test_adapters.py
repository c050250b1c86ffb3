"""Adapters beside rounded weights, and merged into full ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.cli.main import main
from zoo.core import ops
from zoo.core.errors import WeightsError, ZooError
from zoo.core.tensor import Tensor
from zoo.hub import adapter, load, save
from zoo.hub.export import export
from zoo.hub.safetensors import read
from zoo.llama.config import LlamaConfig
from zoo.llama.finetune import TARGETS, finetune, loss
from zoo.llama.model import Llama
from zoo.nn import Linear, QuantizedLinear, lora
from zoo.nn.quantized import FORMATS, formats

SHAPE = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}


def drawn(model, seed: int = 1):
    """The adapter's numbers, so that it does something."""
    rng = np.random.default_rng(seed)
    for path, parameter in model.parameters().items():
        model.set(path, zoo.tensor(rng.normal(0, 0.1, parameter.shape).astype(np.float32), device=model.device))
    return model


def ids_on(device, rows: int = 2) -> Tensor:
    return zoo.tensor(np.random.default_rng(3).integers(0, 60, (rows, 9)).astype(np.int32), device=device)


@pytest.fixture
def base(tmp_path) -> Path:
    config = LlamaConfig(60, **SHAPE, num_key_value_heads=2)
    return save(Llama(config).init(0, "numpy"), tmp_path / "base", port="llama")


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_flow_through_rounded_weights(base, format):
    """As through the same weights in full: on numpy, where activations are not rounded, to float32's rounding."""
    rounded = load(base, device="numpy", dtype=format)
    full = load(base, device="numpy")
    for path, module in rounded.named_modules():
        if isinstance(module, QuantizedLinear):
            full.set(f"{path}.weight", ops.dequantize(module.weight, module.scale, module.format))
    found = []
    for model in (rounded, full):
        assert lora.attach(model, 3, targets=TARGETS) == 14
        live = drawn(model).to(zoo.Autodiff(model.device))
        ids = ids_on(model.device)
        grads = loss(live, (ids[:, :-1], ids[:, 1:], None)).backward()
        found.append({path: grads[p].numpy() for path, p in live.parameters().items()})
    mine, theirs = found
    assert len(mine) == 28 and mine.keys() == theirs.keys()
    for path, gradient in mine.items():
        assert np.abs(gradient).max() > 0
        assert np.linalg.norm(gradient - theirs[path]) < 1e-4 * np.linalg.norm(theirs[path]), path
    assert formats(rounded) and all(isinstance(layer.base, QuantizedLinear) for layer in lora.layers(rounded).values())


def test_the_cpu_device_agrees(base):
    """Its products round activations to 8 bits."""
    found = []
    for device in ("numpy", "cpu"):
        model = load(base, device=device, dtype="int4")
        lora.attach(model, 3, targets=TARGETS)
        live, ids = drawn(model).to(zoo.Autodiff(model.device)), ids_on(model.device)
        grads = loss(live, (ids[:, :-1], ids[:, 1:], None)).backward()
        found.append({path: grads[p].numpy() for path, p in live.parameters().items()})
    for path, gradient in found[0].items():
        assert np.linalg.norm(found[1][path] - gradient) < 0.1 * np.linalg.norm(gradient), path


@pytest.mark.parametrize("format", FORMATS)
def test_an_adapter_learns_beside_rounded_weights(tiny, tmp_path, format, capsys):
    (tiny / "text.txt").write_text("the cat sat on the mat. " * 60)
    out = tmp_path / "out"
    command = ["finetune", "llama", "--weights", str(tiny), "--data", str(tiny / "text.txt"), "--context", "32",
               "--epochs", "3", "--lr", "1e-2", "--out", str(out), "--dtype", format, "--json", "--quiet"]  # fmt: skip
    assert main(command) == 1 and "rounded weights are not trained" in capsys.readouterr().err
    assert main([*command, "--lora", "4", "--accumulate", "2", "--checkpoint"]) == 0
    (done,) = json.loads(capsys.readouterr().out)["results"]
    assert done["perplexity"] < 0.6 * done["perplexity_before"]
    base = load(tiny, device="cpu", dtype=format)
    after = load(out, device="cpu", dtype=format)
    assert formats(after).values() and len(formats(after)) == len(formats(base))
    assert main(["run", "llama", "the", "--weights", str(out), "--dtype", format, "--max-tokens", "3", "-q"]) == 0


@pytest.mark.parametrize("settings", [{"accumulate": 3}, {"checkpoint": True, "lora": 2},
                                      {"accumulate": 2, "checkpoint": True, "lora": 2, "rounded": "int8"}])  # fmt: skip
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, settings, monkeypatch):
    (tiny / "text.txt").write_text("the cat sat on the mat. " * 60)
    dtype = settings.pop("rounded", None)

    def run(out, **more):
        model = load(tiny, device="cpu", dtype=dtype)
        list(finetune(model, data=tiny / "text.txt", out=tmp_path / out, context=32, epochs=2, lr=1e-2, quiet=True,
                      **settings, **more))  # fmt: skip
        return {path: tensor.numpy() for path, tensor in model.state().items()}

    from zoo.train import Learner

    whole = run("whole")
    fit = Learner.fit
    monkeypatch.setattr(Learner, "fit", lambda self, epochs: fit(self, steps=4))
    run("parts")
    monkeypatch.setattr(Learner, "fit", fit)
    parts = run("parts", resume=True)
    assert all(np.array_equal(whole[path], parts[path]) for path in whole)


def test_two_batches_to_a_step_are_one_twice_as_large(tiny, tmp_path):
    """Rows with different numbers of learned tokens: the losses of all steps agree."""
    words = ["the", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "the", "moon"]
    lines = [{"prompt": " ".join(words[: 1 + i % 5]), "completion": " " + " ".join(words[i % 7 :])} for i in range(63)]
    (tiny / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = []
    for batch, accumulate in ((8, 1), (4, 2)):
        out = tmp_path / str(batch)
        list(finetune(load(tiny, device="cpu"), data=tiny / "rows.jsonl", out=out, context=62, epochs=3, lr=1e-3,
                      batch=batch, accumulate=accumulate, quiet=True))  # fmt: skip
        found.append([json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()])
    assert len(found[0]) == len(found[1]) and found[0] == pytest.approx(found[1], rel=1e-4)


def test_checkpointing_changes_no_bit(tiny):
    model = load(tiny, device="cpu")
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        live, ids = model.to(zoo.Autodiff(model.device)), ids_on(model.device)
        grads = loss(live, (ids[:, :-1], ids[:, 1:], None)).backward()
        found.append({path: grads[p].numpy() for path, p in live.parameters().items()})
    assert all(np.array_equal(found[0][path], found[1][path]) for path in found[0])


def test_what_info_says_of_an_adapter(base, tmp_path, capsys):
    directory = adapter_of(base, tmp_path / "adapter")
    assert main(["info", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert f"LORA of {base}" in shown and "r 3, lora_alpha 5.0" in shown and "up_proj.lora_A.weight" in shown
    assert main(["info", str(directory), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    model = load(directory, device="numpy")
    assert told["parameters"] == sum(p.size for p in model.parameters().values()) and told["base"] == str(base)


# --- merging


def adapter_of(base: Path, out: Path) -> Path:
    model = load(base, device="numpy")
    lora.attach(model, 3, alpha=5, targets=TARGETS)
    return adapter.save(drawn(model), out, str(base))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_adapter_is_what_peft_makes_of_it(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed; PEFT runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    peft = pytest.importorskip("peft", reason="peft is not installed; it is the reference")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=60, **SHAPE, num_key_value_heads=2, attention_bias=True)
    theirs = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    theirs.save_pretrained(tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--merge", "--quiet"]) == 0
    expected = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").merge_and_unload().state_dict()
    with read(tmp_path / "merged" / "model.safetensors") as tensors:
        assert set(tensors) == set(expected)
        for name, array in tensors.items():
            wanted = expected[name].float().numpy()
            assert array.dtype.name == dtype
            # one step of the dtype at most: the sum may lie between two
            assert np.abs(array.astype(np.float32) - wanted).max() <= np.abs(wanted).max() * 2 ** -(
                8 if dtype == "bfloat16" else 22
            )
    read_back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ours = load(tmp_path / "adapter", device="numpy")
    with torch.no_grad():
        logits = read_back.float()(torch.tensor(ids_on("numpy").numpy()).long()).logits.numpy()
    mine = ours(ids_on(ours.device)).numpy()
    assert np.abs(mine - logits).max() < (1e-4 if dtype == "float32" else 0.05) * np.abs(logits).max()


def test_merging_changes_the_weights_it_should(base, tmp_path):
    merged = export(adapter_of(base, tmp_path / "adapter"), tmp_path / "merged", merge=True)
    before, after = load(base, device="numpy"), load(merged.directory, device="numpy")
    beside = load(tmp_path / "adapter", device="numpy")
    assert np.allclose(after(ids_on(after.device)).numpy(), beside(ids_on(after.device)).numpy(), atol=1e-5)
    for path, tensor in before.state().items():
        same = np.array_equal(tensor.numpy(), after.state()[path].numpy())
        assert same != any(target in path for target in TARGETS), path


def test_what_is_not_merged(base, tmp_path):
    directory = adapter_of(base, tmp_path / "adapter")
    with pytest.raises(WeightsError, match="cannot export") as raised:
        export(directory, tmp_path / "out")
    assert "--merge" in raised.value.fix
    with pytest.raises(WeightsError, match="cannot merge") as raised:
        export(base, tmp_path / "out", merge=True)
    assert "no adapter" in raised.value.why
    rounded = save(load(base, device="numpy", dtype="int4"), tmp_path / "rounded", port="llama")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(rounded)}))
    with pytest.raises(WeightsError, match="cannot export") as raised:
        export(directory, tmp_path / "out", merge=True)
    assert "rounded to int4" in raised.value.why and not (tmp_path / "out").exists()
    beside = load(directory, device="numpy")
    assert isinstance(beside.model.layers[0].mlp.up_proj.base, QuantizedLinear)
    with pytest.raises(ZooError, match="not merged into rounded weights"):
        lora.merge(beside)
    assert isinstance(beside.model.layers[0].mlp.up_proj, lora.LoRA) and not isinstance(
        beside.model.layers[0].mlp.up_proj, Linear
    )
    assert math.isfinite(float(beside(ids_on(beside.device)).sum()))
