"""What a REF names, and where weights are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.core.errors import WeightsError
from zoo.hub import refs
from zoo.hub.safetensors import write


def checkpoint(directory: Path, file: str = "model.safetensors") -> Path:
    write(directory / file, {"a": np.zeros(1, np.float32)})
    return directory


def test_zoo_weights_comes_first(weights):
    assert refs.weights_dir() == weights and refs.search_path()[0] == weights


def test_without_it_the_checkout_that_one_runs_from(weights, monkeypatch, tmp_path):
    monkeypatch.delenv("ZOO_WEIGHTS")
    monkeypatch.setattr(refs, "__file__", str(tmp_path / "site-packages" / "zoo" / "hub" / "refs.py"))
    work = Path.cwd()
    (work / "pyproject.toml").write_text('[project]\nname = "zoo-models"\n')
    (work / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(work / "deep" / "er")
    assert refs.weights_dir() == work / "weights"


def test_without_a_checkout_the_cache(weights, monkeypatch, tmp_path):
    monkeypatch.delenv("ZOO_WEIGHTS")
    monkeypatch.setattr(refs, "__file__", str(tmp_path / "site-packages" / "zoo" / "hub" / "refs.py"))
    (Path.cwd() / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert refs.weights_dir() == refs.cache_dir("weights") and refs.weights_dir().is_relative_to(tmp_path / "cache")


def test_what_ships_in_an_installed_package_is_found(weights, monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "zoo"
    monkeypatch.setattr(refs, "__file__", str(package / "hub" / "refs.py"))
    checkpoint(package / "_shipped" / "demo")
    assert refs.resolve("demo").directory == package / "_shipped" / "demo"
    checkpoint(weights / "demo")  # the user's own of the same name wins
    assert refs.resolve("demo").directory == weights / "demo"


def test_a_name_wins_over_a_directory_of_that_name(weights):
    checkpoint(weights / "demo")
    checkpoint(Path("demo"))
    assert refs.resolve("demo").directory == weights / "demo"
    assert refs.resolve("./demo").directory == Path("demo")
    assert refs.resolve(Path("demo")).directory == Path("demo")


def test_directories_and_files(weights):
    checkpoint(Path("one"), "other.safetensors")
    assert refs.resolve("one").file == Path("one/other.safetensors")
    assert refs.resolve("one/other.safetensors") == refs.Checkpoint(Path("one/other.safetensors"))
    checkpoint(Path("one"), "second.safetensors")
    with pytest.raises(WeightsError, match=r"2 \.safetensors files: other\.safetensors, second\.safetensors"):
        refs.resolve("one")
    checkpoint(Path("one"))
    assert refs.resolve("one").file == Path("one/model.safetensors")
    (Path("one") / "training_args.bin").touch()
    Path("torch").mkdir()
    (Path("torch") / "resnet.th").touch()
    assert refs.resolve("torch").file == Path("torch/resnet.th")
    Path("none").mkdir()
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        refs.resolve("none")


def test_shown_as_a_user_would_write_it(weights, tmp_path):
    checkpoint(Path.cwd() / "mine")
    assert refs.resolve(str(Path.cwd() / "mine")).shown == "mine"
    checkpoint(weights / "demo")
    assert refs.resolve("demo").shown == str(weights / "demo")


def test_an_unknown_name_is_told_with_the_nearest(weights):
    checkpoint(weights / "demonstration")
    with pytest.raises(WeightsError) as raised:
        refs.resolve("demonstraton")
    assert raised.value.fix == "Did you mean demonstration?"


def test_a_hub_repository_is_told_how_to_get(weights):
    with pytest.raises(WeightsError) as raised:
        refs.resolve("openai/whisper-tiny@main")
    assert "`zoo pull openai/whisper-tiny@main`" in raised.value.fix


@pytest.mark.parametrize("ref", ["", "..", "demo/..", "\0", "~no-such-user/x", "/nowhere/at/all", "x" * 5000])
def test_hostile_names_are_only_unknown(weights, ref):
    checkpoint(weights.parent / "demo")
    with pytest.raises(WeightsError):
        refs.resolve(ref)


def test_config_and_card(weights):
    checkpoint(weights / "demo")
    found = refs.resolve("demo")
    assert found.config() is None and found.card() == {}
    (weights / "demo" / "config.json").write_text('{"model_type": "demo"}')
    (weights / "demo" / "card.json").write_text("{")
    assert found.config() == {"model_type": "demo"}
    with pytest.raises(WeightsError, match="not valid JSON"):
        found.card()
