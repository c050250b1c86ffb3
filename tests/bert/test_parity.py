"""BERT and RoBERTa against transformers on small random models, live and as stored values; and tensors back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from zoo.bert import PORT
from zoo.bert.reference import FAMILIES, MASK, OUT, model_of, padded
from zoo.bert.weights import table
from zoo.hub.formats import read
from zoo.hub.load import save

TOLERANCE = 2e-5  # of values up to 4 behind the last norm: float32, sums in another order
DEVICES = ["numpy", "cpu"]


def placed(model: Any, array: np.ndarray) -> Any:
    return zoo.tensor(array, device=model.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_values_of_transformers(family: str, device: str) -> None:
    model = model_of(family, device)
    found = model(placed(model, padded(model)), placed(model, MASK)).numpy()
    real = MASK.astype(bool)
    with np.load(OUT) as stored:
        assert np.abs(found - stored[family])[real].max() < TOLERANCE


def test_padding_changes_nothing() -> None:
    model = model_of("bert", "numpy")
    ids = padded(model)
    both = model(placed(model, ids), placed(model, MASK)).numpy()
    alone = model(placed(model, ids[1:, :15])).numpy()
    assert np.abs(both[1, :15] - alone[0]).max() < TOLERANCE


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers writes them: with and without a head before the encoder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 56, "max_position_embeddings": 48}  # fmt: skip
    made = {
        "BertModel": transformers.BertModel(transformers.BertConfig(**shape)),
        "BertForMaskedLM": transformers.BertForMaskedLM(transformers.BertConfig(**shape)),
        "RobertaModel": transformers.RobertaModel(transformers.RobertaConfig(**shape)),
        "XLMRobertaForMaskedLM": transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**shape)),
    }
    root = tmp_path_factory.mktemp("published")
    for name, model in made.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in made}


NAMES = ["BertModel", "BertForMaskedLM", "RobertaModel", "XLMRobertaForMaskedLM"]


@pytest.mark.parametrize(("name", "device"), [("BertModel", "numpy"), *((name, "cpu") for name in NAMES)])
def test_every_module_agrees_with_transformers(name: str, device: str, published: dict[str, Path]) -> None:
    from zoo.compare import compare

    comparison = compare(PORT, str(published[name]), device=device)
    assert comparison.agrees, str(comparison)
    assert len(comparison.rows) > 30


@pytest.mark.parametrize("name", NAMES)
def test_tensors_go_back_byte_for_byte(name: str, published: dict[str, Path]) -> None:
    model = zoo.load(published[name], device="numpy")
    state = {path: tensor.numpy() for path, tensor in model.state().items()}
    back = dict(table(model.config).export(state, model.config).translate(state))
    with read(published[name] / "model.safetensors") as tensors:
        kept = [one for one in tensors if not one.startswith(("cls.", "lm_head.")) and "position_ids" not in one]
        assert sorted(back) == sorted(kept)
        assert all(back[one].tobytes() == np.asarray(tensors[one]).tobytes() for one in kept)


def test_the_oldest_files_call_norms_parts_gamma_and_beta(tmp_path: Path) -> None:
    """bert-base-uncased's own, with the prefix of a model with heads."""
    from zoo.hub.safetensors import write

    model = model_of("bert", "numpy")
    state = {name: tensor.numpy() for name, tensor in model.state().items()}
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in state.items()
    }
    write(tmp_path / "model.safetensors", {**old, "cls.predictions.bias": np.zeros(97, np.float32)}, {})
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "intermediate_size": 56, "max_position_embeddings": 48})
    )  # fmt: skip
    loaded = zoo.load(tmp_path, device="numpy")
    assert all(np.array_equal(loaded.state()[name].numpy(), array) for name, array in state.items())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = model_of("roberta", "numpy")
    save(model, tmp_path, port="bert")
    loaded = zoo.load(tmp_path, device="numpy")
    assert loaded.config == model.config and loaded.config.first_position == 2
    ids = placed(model, padded(model))
    assert np.array_equal(model(ids).numpy(), loaded(ids).numpy())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_size": 30}, "does not divide"), ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
     ({"is_decoder": True}, "an encoder is needed")],
)  # fmt: skip
def test_a_config_that_cannot_be_honoured_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PORT.config(**change)
