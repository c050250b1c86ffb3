"""Checkpoints of several components: read, pulled, previewed, given back; and what is wrong with some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hub_server
import numpy as np
import pytest

import zoo
from zoo.core.errors import WeightsError, ZooError
from zoo.hub import save
from zoo.hub.export import export
from zoo.hub.formats import read
from zoo.hub.pull import preview, pull
from zoo.hub.remote import find
from zoo.hub.request import Patience
from zoo.hub.safetensors import write
from zoo.stable_diffusion.reference import FAMILIES, model_of, ours
from zoo.stable_diffusion.weights import OLD_ATTENTION

FAST = Patience(attempts=2, timeout=5.0, backoff=0.01)


def published(place: Path, family: str = "1") -> Path:
    """As diffusers publishes it: test_parity shows that diffusers reads what `export` writes here."""
    save(model_of(family, "numpy"), place / "ours", port="stable_diffusion")
    export(place / "ours", place / "published")
    (place / "published" / "tokenizer").mkdir()
    (place / "published" / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b\n")
    (place / "published" / "scheduler").mkdir(exist_ok=True)
    (place / "published" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "PNDMScheduler"}')
    return place / "published"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def same_tensors(a: Path, b: Path) -> bool:
    with read(a / "model_index.json") as one, read(b / "model_index.json") as two:
        return set(one) == set(two) and all(one[n].tobytes() == two[n].tobytes() for n in one)


def sharded(file: Path) -> None:
    """The same tensors in two files and an index."""
    with read(file) as tensors:
        held = {name: np.array(tensors[name]) for name in tensors}
    index = {}
    for number in (1, 2):
        name = f"{file.stem}-{number:05d}-of-00002.safetensors"
        part = dict(list(held.items())[number - 1 :: 2])
        write(file.parent / name, part, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    file.unlink()
    Path(f"{file}.index.json").write_text(json.dumps({"weight_map": index}))


def renamed(file: Path, change) -> None:
    with read(file) as tensors:
        held = {change(name): np.array(tensors[name]) for name in tensors}
    file.unlink()
    write(file, held, {"format": "pt"})


def old_attention(name: str) -> str:
    for new, old in OLD_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of the test's own, and an empty place for weights."""
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "weights"))
    served = hub_server.serve()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with served:
        yield served
        served.shutdown()


@pytest.mark.parametrize("family", FAMILIES)
def test_pulled_and_given_back(hub, tmp_path, family):
    directory = published(tmp_path, family)
    (directory / "safety_checker").mkdir()
    (directory / "safety_checker" / "model.safetensors").write_bytes(b"large")
    sharded(directory / "unet" / "diffusion_pytorch_model.safetensors")
    (directory / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    renamed(directory / "vae" / "diffusion_pytorch_model.safetensors", old_attention)
    hub.revisions["main"] = contents(directory)
    seen = preview(find("owner/name"), tmp_path / "peek")
    assert seen.known.port.name == "stable_diffusion" and not seen.plan.gaps
    assert not [p for p, h in hub.asked if "/resolve/" in p and p.endswith(".safetensors") and "Range" not in h]
    made = pull("owner/name", patience=FAST)
    assert not hub.requests("safety_checker") and not hub.requests("fp16")
    expected = ours(model_of(family, "cpu"))
    for ref in ("owner/name", directory):
        found = ours(zoo.load(ref, device="cpu"))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert (made.directory / "tokenizer" / "merges.txt").is_file()
    export("owner/name", tmp_path / "back")
    assert same_tensors(tmp_path / "back", directory)
    assert {p.name for p in (tmp_path / "back" / "unet").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    scheduler = json.loads((tmp_path / "back" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "PNDMScheduler"


def test_half_precision_where_there_is_no_other(hub, tmp_path):
    directory = published(tmp_path)
    for file in directory.rglob("*.safetensors"):
        with read(file) as tensors:
            held = {name: np.array(tensors[name]).astype(np.float16) for name in tensors}
        write(file.with_suffix(".fp16.safetensors"), held, {"format": "pt"})
        file.unlink()
    hub.revisions["main"] = contents(directory)
    pull("owner/name", patience=FAST)
    model = zoo.load("owner/name", device="cpu")
    assert {tensor.dtype.name for tensor in model.state().values()} == {"float16"}
    found, expected = ours(model), ours(model_of("1", "cpu"))
    for name, value in found.items():  # 1e-2: weights are rounded by up to 5e-4 in every layer
        assert np.linalg.norm(value - expected[name]) < 1e-2 * np.linalg.norm(expected[name]), name


def test_kept_in_bfloat16_and_rounded(hub, tmp_path):
    hub.revisions["main"] = contents(published(tmp_path))
    for dtype, kept in (("bf16", "bfloat16"), ("int8", "int8")):
        pull("owner/name", dtype=dtype, patience=FAST)
        model = zoo.load("owner/name", device="cpu")
        assert model.unet.mid_block.resnets[0].conv1.weight.dtype.name == kept
        assert np.isfinite(ours(model)["noise"]).all()


def test_saved_again_it_keeps_what_lies_beside(tmp_path):
    directory = published(tmp_path)
    save(zoo.load(directory, device="numpy"), tmp_path / "again", port="stable_diffusion")
    assert (tmp_path / "again" / "tokenizer" / "merges.txt").is_file()
    assert zoo.load(tmp_path / "again", device="numpy").config == zoo.load(directory, device="numpy").config


def without(part: str):
    return lambda directory: shutil.rmtree(directory / part)


def edit(file: str, **changed):
    def change(directory: Path) -> None:
        document = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**document, **changed}))

    return change


def lose(file: str):
    return lambda directory: (directory / file).unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("vae"), "component vae is missing"),
        (lose("unet/diffusion_pytorch_model.safetensors"), "component unet has a config.json but no weights"),
        (lose("text_encoder/config.json"), "component text_encoder is missing"),
        (edit("model_index.json", vae=[None, None]), "names no vae"),
        (edit("model_index.json", **{"../evil": ["diffusers", "X"]}), "no folder beside it"),
        (edit("unet/config.json", class_embed_type="timestep"), "class_embed_type = 'timestep' is not implemented"),
        (edit("unet/config.json", block_out_channels=[16]), "down_block_types has 2 entries"),
        (edit("unet/config.json", cross_attention_dim=25), "give 24 channels"),
        (edit("vae/config.json", _class_name="AutoencoderTiny"), "'AutoencoderTiny' is not implemented"),
        (edit("vae/config.json", block_out_channels=[16, 48], norm_num_groups=16), "was expected"),
        (lambda directory: (directory / "unet" / "config.json").write_text("{"), "not valid JSON"),
        (lambda directory: (directory / "model_index.json").write_text("{}"), "names no component"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, change, why):
    directory = published(tmp_path)
    change(directory)
    with pytest.raises(ZooError) as error:
        zoo.load(directory, device="numpy", port="stable_diffusion")
    assert why in f"{error.value.what} {error.value.why}", error.value


def test_a_component_without_weights_is_told_before_any_is_fetched(hub, tmp_path):
    directory = published(tmp_path)
    (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    hub.revisions["main"] = contents(directory)
    with pytest.raises(WeightsError, match="vae"):
        pull("owner/name", patience=FAST)
    assert not [p for p in hub.requests(".safetensors") if "/cdn/" in p]
