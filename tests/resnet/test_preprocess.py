"""What the files beside the weights say is what the network sees: against transformers' own processor, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.core.errors import WeightsError
from zoo.hub.refs import Checkpoint
from zoo.resnet import labels, preprocess
from zoo.resnet.classify import SAMPLES
from zoo.resnet.config import ResNetConfig
from zoo.resnet.model import ResNet
from zoo.resnet.preprocess import CIFAR, Preprocessing

MICROSOFT = {  # preprocessor_config.json of microsoft/resnet-50
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
TIMM = {  # pretrained_cfg of timm/resnet50.a1_in1k
    "input_size": [3, 224, 224], "fixed_input_size": False, "pool_size": [7, 7], "crop_pct": 0.95,
    "crop_mode": "center", "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "num_classes": 1000, "first_conv": "conv1", "classifier": "fc",
}  # fmt: skip


def model(directory: Path, shape: ResNetConfig | None = None, **files: Any) -> ResNet:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    made = ResNet(shape or ResNetConfig())
    made.source = Checkpoint(directory / "model.safetensors", directory)
    return made


def test_as_published_for_transformers(tmp_path: Path) -> None:
    found = preprocess.of(model(tmp_path, preprocessor_config=MICROSOFT))
    assert found == Preprocessing(224, 256, "bicubic")
    generic = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 240},
               "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}  # fmt: skip
    found = preprocess.of(model(tmp_path, preprocessor_config=generic))
    assert found == Preprocessing(224, 240, "bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    square = {"size": {"height": 96, "width": 96}, "do_normalize": False}
    found = preprocess.of(model(tmp_path, preprocessor_config=square))
    assert (found.size, found.resize, found.squash, found.mean, found.std) == (96, 96, True, (0.0,) * 3, (1.0,) * 3)


def test_as_published_for_timm(tmp_path: Path) -> None:
    made = model(tmp_path, config={"architecture": "resnet50", "pretrained_cfg": TIMM})
    assert preprocess.of(made) == Preprocessing(224, 235, "bicubic") and labels.of(made) is None
    named = {"pretrained_cfg": TIMM, "label_names": ["tench", "goldfish"]}
    two = ResNetConfig(num_labels=2)
    assert labels.of(model(tmp_path, two, config=named)) == ["tench", "goldfish"]


def test_usual_where_nothing_is_said(tmp_path: Path) -> None:
    assert preprocess.of(ResNet(ResNetConfig())) == Preprocessing(224, 256, "bilinear")
    assert preprocess.of(ResNet(ResNetConfig(small_stem=True))) == CIFAR
    own = Preprocessing(48, 64, "box")
    assert preprocess.of(model(tmp_path, ResNetConfig(preprocessing=own), preprocessor_config=MICROSOFT)) == own


@pytest.mark.parametrize(
    "content", [{"size": {"height": 96, "width": 64}}, {"resample": 17}, {"size": "large"}, {"size": {}}]
)
def test_what_is_not_understood_is_told(content: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not understood"):
        preprocess.of(model(tmp_path, preprocessor_config=content))


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (57, 400), (224, 224), (31, 33), (1, 1), (1, 900)])
@pytest.mark.parametrize("settings", [MICROSOFT, MICROSOFT | {"size": 384, "resample": 2}], ids=["crop", "squash"])
def test_pixels_are_transformers(settings: Any, size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    with Image.open(SAMPLES / "cat.jpg") as photograph:
        picture = photograph.convert("RGB").resize(size)
    given = {name: value for name, value in settings.items() if name != "feature_extractor_type"}
    theirs = ConvNextImageProcessorPil(**given)(picture, return_tensors="np")["pixel_values"][0]
    found = preprocess.of(model(tmp_path, preprocessor_config=settings))
    ours = found.normalise(found.pixels(picture))
    assert ours.shape == (found.size, found.size, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 0, -1), rtol=0, atol=1e-5)


def test_by_hand() -> None:
    """A picture twice as wide as high: the middle, halved by the mean of 2 x 2, then normalised."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    found = Preprocessing(4, 4, "box", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    halved = picture[:, 4:12].reshape(4, 2, 4, 2, 3).astype(np.float64).mean(axis=(1, 3))
    seen = found.pixels(Image.fromarray(picture))
    np.testing.assert_allclose(seen, halved, atol=1)  # Pillow rounds after each axis
    wanted = (seen / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 1.0])
    np.testing.assert_allclose(found.normalise(seen), wanted, rtol=0, atol=1e-6)


def test_names_of_classes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("tench\n goldfish \n\n")
    (tmp_path / "list.json").write_text('["tench", "goldfish"]')
    (tmp_path / "keras.json").write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
    for name in ("lines.txt", "list.json", "keras.json"):
        assert labels.read(tmp_path / name, 2) == ["tench", "goldfish"]
        with pytest.raises(Exception, match="it holds 2 names; the network has 3 classes"):
            labels.read(tmp_path / name, 3)
    with pytest.raises(Exception, match="cannot read"):
        labels.read(tmp_path / "none.txt", 2)
