"""The same models in transformers, for `zoo compare bert`; and tests/bert/reference.npz made with them.

    python -m zoo.bert.reference

The weights follow from a seed, so that only outputs are stored. Nothing else in the zoo imports this file, or torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bert.config import BertConfig
from zoo.bert.model import Bert
from zoo.hub import save

OUT = Path(__file__).parents[2] / "tests" / "bert" / "reference.npz"
SHAPE: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "intermediate_size": 56, "max_position_embeddings": 48}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert with the approximate gelu": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
}
"""What the published configs differ in."""
IDS = np.random.default_rng(1).integers(2, 97, (2, 24)).astype(np.int32)
MASK = (np.arange(24) < np.array([[24], [15]])).astype(np.int32)
"""The second text is shorter, and filled up with padding."""


def model_of(family: str, device: Any, seed: int = 0) -> Bert:
    return Bert(BertConfig(**{**SHAPE, **FAMILIES[family]})).init(seed, device).eval()


def padded(model: Bert) -> np.ndarray:
    """IDS with the model's own padding where MASK is 0."""
    return np.where(MASK > 0, IDS, model.config.pad_token_id or 0).astype(np.int32)


def load(directory: Path) -> Any:
    """transformers' model with a checkpoint's weights, in float32: for `zoo compare`."""
    import torch
    import transformers

    kind = transformers.AutoModel
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def call(module: Any, ids: np.ndarray) -> Any:
    """What it makes of the port's example."""
    import torch

    return module(input_ids=torch.tensor(ids.astype(np.int64)))


def hidden(module: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A vector for each token, (B, L, D)."""
    import torch

    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids.astype(np.int64)), "attention_mask": torch.tensor(mask)}
        return module(**given).last_hidden_state.float().numpy()


def main() -> None:
    import transformers

    found: dict[str, Any] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            model = model_of(family, "numpy")
            save(model, directory, port="bert")
            found[family] = hidden(load(Path(directory)), padded(model), MASK)
    np.savez_compressed(OUT, **found)
    print(f"{OUT}: {len(found)} models, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
