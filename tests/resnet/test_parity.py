"""Logits against the networks of those who publish them: transformers, torchvision, timm, the CIFAR repositories."""

from __future__ import annotations

import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.hub.export import export
from zoo.hub.formats import read
from zoo.hub.safetensors import write
from zoo.resnet import preprocess
from zoo.resnet.config import ResNetConfig
from zoo.resnet.reference import torch_net

SIZES = {
    "18": {"layer_type": "basic", "hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2)},
    "50": {"layer_type": "bottleneck", "hidden_sizes": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3)},
    "v1": {
        "layer_type": "bottleneck", "hidden_sizes": (64, 128, 256), "depths": (1, 2, 1),
        "downsample_in_bottleneck": True,
    },
    "first stage halves": {
        "layer_type": "basic", "embedding_size": 8, "hidden_sizes": (8, 16), "depths": (1, 1),
        "downsample_in_first_stage": True,
    },
}  # fmt: skip
CIFAR = {
    "option A": ResNetConfig(
        embedding_size=16, hidden_sizes=(16, 32, 64), depths=(3, 3, 3), layer_type="basic", num_labels=10,
        small_stem=True, shortcut="padding", layout="cifar",
    ),
    "option B": ResNetConfig(
        embedding_size=16, hidden_sizes=(16, 32, 64, 128), depths=(1, 2, 1, 1), layer_type="basic", num_labels=100,
        small_stem=True, layout="cifar",
    ),
    "option B, bottleneck": ResNetConfig(
        embedding_size=16, hidden_sizes=(32, 64, 128), depths=(1, 1, 1), num_labels=10, small_stem=True, layout="cifar"
    ),
}  # fmt: skip


def close(ours: Any, theirs: np.ndarray, folded: bool) -> None:
    """Within 1e-4 of the largest logit; float32 sums of up to 4,608 terms, through up to 50 layers."""
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max(), err_msg=f"{folded=}")


def check(path: Any, pictures: np.ndarray, theirs: np.ndarray, device: str | None) -> Any:
    """As loaded and as prepared; -> the config that was found."""
    model = zoo.load(path, device=device)
    x = zoo.tensor(pictures, device=model.device)
    close(model(x), theirs, folded=False)
    close(model.prepare()(x), theirs, folded=True)
    assert not any("normalization" in name for name in model.spec())
    return model.config


def byte_for_byte(path: Any, tmp_path: Any) -> None:
    """Translated to a checkpoint of ours, and exported: what it was."""
    from zoo import hub

    hub.save(zoo.load(path, device="numpy"), tmp_path / "ours", port="resnet")
    export(tmp_path / "ours", tmp_path / "back")
    source = path if path.is_file() else path / "model.safetensors"
    with read(source) as published, read(tmp_path / "back" / "model.safetensors") as back:
        assert sorted(published) == sorted(back)
        for name in published:
            assert published[name].dtype == back[name].dtype and published[name].tobytes() == back[name].tobytes()


@pytest.mark.parametrize("device", ["numpy", None])
@pytest.mark.parametrize("size", SIZES)
def test_transformers(size: str, device: str | None, others: Any, pictures: np.ndarray, tmp_path: Any) -> None:
    """The published sizes on the native kernels, a quarter of their widths on numpy."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    others.torch.manual_seed(0)
    shape: Any = SIZES[size]
    if device == "numpy":
        shape = shape | {"embedding_size": 16, "hidden_sizes": [n // 4 for n in shape["hidden_sizes"]]}
    config = transformers.ResNetConfig(**shape, num_labels=12)
    net = others.randomised(transformers.ResNetForImageClassification(config))
    net.save_pretrained(tmp_path / "theirs")
    theirs = others.logits(net, pictures)
    found = check(tmp_path / "theirs", pictures, theirs, device)
    assert (found.layout, found.num_labels, found.id2label["11"]) == ("transformers", 12, "LABEL_11")
    if device is not None:
        byte_for_byte(tmp_path / "theirs", tmp_path)
        # without its config.json, the tensors tell all but where strides are
        if size in ("18", "50"):
            assert check(tmp_path / "theirs" / "model.safetensors", pictures, theirs, device).depths == found.depths


def test_features_of_each_stage_are_transformers(others: Any, pictures: np.ndarray, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(**SIZES["v1"], num_labels=2)
    net = others.randomised(transformers.ResNetForImageClassification(config))
    net.save_pretrained(tmp_path)
    with others.torch.no_grad():
        x = others.torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
        theirs = net(x, output_hidden_states=True).hidden_states[1:]
    model = zoo.load(tmp_path)
    features = model.features(zoo.tensor(pictures, device=model.device))
    assert [f.shape for f in features] == [(2, 9, 10, 64), (2, 5, 5, 128), (2, 3, 3, 256)]
    for ours, stage in zip(features, theirs, strict=True):
        close(ours, stage.numpy().transpose(0, 2, 3, 1), folded=False)


@pytest.mark.parametrize("device", ["numpy", None])
@pytest.mark.parametrize("size", ["18", "50"])
def test_torchvisions_layout(size: str, device: str | None, others: Any, pictures: np.ndarray, tmp_path: Any) -> None:
    """The names and shapes of torchvision and timm, from a module of our own in torch."""
    others.torch.manual_seed(0)
    shape: Any = SIZES[size]
    if device == "numpy":
        shape = shape | {"embedding_size": 16, "hidden_sizes": [n // 4 for n in shape["hidden_sizes"]]}
    net = others.randomised(torch_net(ResNetConfig(**shape, num_labels=10)))
    path = tmp_path / "theirs.safetensors"
    write(path, others.arrays(net))
    config = check(path, pictures, others.logits(net, pictures), device)
    assert (config.layout, config.depths, config.id2label) == ("torchvision", SIZES[size]["depths"], None)
    if device is not None:
        byte_for_byte(path, tmp_path)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_live(library: str, name: str, others: Any, pictures: np.ndarray, tmp_path: Any) -> None:
    """torchvision's C++ part does not load beside every torch, and then raises RuntimeError."""
    found: Any = (ImportError, RuntimeError)
    module = pytest.importorskip(library, reason=f"{library} is not installed, or not for this torch", exc_type=found)
    net = others.randomised(module.models.__dict__[name]() if library == "torchvision" else module.create_model(name))
    path = tmp_path / "theirs.pth"
    others.torch.save(net.state_dict(), path)
    config = check(path, pictures, others.logits(net, pictures), None)
    assert (config.layout, config.num_labels) == ("torchvision", 1000)
    byte_for_byte(path, tmp_path)


@pytest.mark.parametrize("kind", CIFAR)
def test_cifar_nets(kind: str, others: Any, tmp_path: Any) -> None:
    """As training programs leave them: legacy format, under `state_dict`, behind `module.`."""
    others.torch.manual_seed(0)
    net = others.randomised(torch_net(CIFAR[kind], head="linear", shortcut="shortcut"))
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    path = tmp_path / "theirs.th"
    others.torch.save({"state_dict": state, "best_prec1": 91.7, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    pictures = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    config = check(path, pictures, others.logits(net, pictures), None)
    assert config.shortcut == CIFAR[kind].shortcut and config.small_stem and config.layout == "cifar"
    assert (config.id2label is not None) == (config.num_labels == 10)
    byte_for_byte(path, tmp_path)


def test_older_files_do_not_count_batches(others: Any, tmp_path: Any) -> None:
    """torchvision's files from before torch 0.4.1 lack num_batches_tracked; they load, train and go back without."""
    config = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1), num_labels=3)
    net = others.randomised(torch_net(config))
    state = {name: a for name, a in others.arrays(net).items() if "num_batches" not in name}
    write(tmp_path / "old.safetensors", state)
    pictures = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    assert not check(tmp_path / "old.safetensors", pictures, others.logits(net, pictures), None).batch_counts
    model = zoo.load(tmp_path / "old.safetensors").train()
    assert np.isfinite(model(zoo.tensor(pictures, device=model.device)).numpy()).all()
    byte_for_byte(tmp_path / "old.safetensors", tmp_path)


def test_the_real_resnet20_gives_torchs_logits_on_1000_real_pictures(others: Any, real: Any, tmp_path: Any) -> None:
    path, archive = real("resnet-cifar10", "resnet20-12fca82f.th"), real("cifar10-jpeg", "train.tar.gz")
    model = zoo.load(path)
    prepared = preprocess.of(model)
    with tarfile.open(archive) as tar:
        files = [member for member in tar if member.name.endswith(".jpg")][::50]  # of all ten classes
        seen = [prepared.pixels(Image.open(tar.extractfile(member)).convert("RGB")) for member in files]
    assert len(seen) == 1000
    x = prepared.normalise(np.stack(seen))
    net = torch_net(model.config, head="linear")
    with read(path) as file:
        state = {name: others.torch.from_numpy(np.array(file[name])) for name in file}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    theirs = others.logits(net.eval(), x)
    placed = zoo.tensor(x, device=model.device)
    close(model(placed), theirs, folded=False)
    ours = model.prepare()(placed)
    close(ours, theirs, folded=True)
    # where the two likeliest are closer than rounding, either may come first
    clear = np.diff(np.sort(theirs, axis=1)[:, -2:], axis=1)[:, 0] > 1e-4
    assert clear.sum() > 990 and (ours.numpy().argmax(1) == theirs.argmax(1))[clear].all()
    byte_for_byte(path, tmp_path)
