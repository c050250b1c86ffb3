"""Makes tests/llama/reference.npz: logits of small random models by transformers, for the tests that run without it.

    python -m zoo.llama.reference

The weights follow from a seed, so that only the logits are stored.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.hub import save
from zoo.llama.config import LlamaConfig
from zoo.llama.model import Llama

OUT = Path(__file__).parents[2] / "tests" / "llama" / "reference.npz"
IDS = np.random.default_rng(1).integers(0, 97, (2, 40)).astype(np.int32)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama 1: as many key heads as query heads": {},
    "llama 2 70b, TinyLlama: grouped heads": {"num_key_value_heads": 2},
    "llama 3.1": {"num_key_value_heads": 1, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama 3.2, SmolLM: tied": {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "head_dim of its own": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "another activation": {"hidden_act": "gelu"},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 24},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "yarn, no truncation": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32,
                                             "truncate": False, "beta_fast": 16.0}},
}  # fmt: skip
"""What the published configs differ in."""
SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64}  # fmt: skip


def model_of(family: str, device: str, seed: int = 0) -> Llama:
    return Llama(LlamaConfig(**{**SHAPE, **FAMILIES[family]})).init(seed, device)


def load(directory: Path) -> Any:
    """transformers' model with a checkpoint's weights, in float32: for `zoo compare`."""
    import torch
    import transformers

    kind = transformers.LlamaForCausalLM
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def call(module: Any, ids: np.ndarray) -> Any:
    """What it makes of the port's example, which is in our layout."""
    import torch

    return module(input_ids=torch.tensor(ids.astype(np.int64)))


def main() -> None:
    import torch
    import transformers

    logits = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            save(model_of(family, "numpy"), directory, port="llama")
            theirs = transformers.LlamaForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            logits[family] = theirs(torch.tensor(IDS)).logits.numpy()[:, ::13]  # some of the positions: 70 kB
    np.savez_compressed(OUT, **logits)
    print(f"{OUT}: {len(logits)} models, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
