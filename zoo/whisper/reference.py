"""Makes tests/whisper/reference.npz: outputs of small random models by transformers, for the tests that run without it.

    python -m zoo.whisper.reference

The weights follow from a seed, so that only the outputs are stored.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.hub import save
from zoo.whisper.config import WhisperConfig
from zoo.whisper.model import Whisper
from zoo.whisper.weights import table

OUT = Path(__file__).parents[2] / "tests" / "whisper" / "reference.npz"
SHAPE = {"vocab_size": 97, "num_mel_bins": 80, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 2,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_model": 32,
         "max_source_positions": 30, "max_target_positions": 24, "decoder_start_token_id": 1, "bos_token_id": 0,
         "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "tiny to large-v2": {},
    "large-v3: 128 mel bins": {"num_mel_bins": 128},
    "turbo and distil: fewer decoder layers": {"encoder_layers": 3, "decoder_layers": 1},
    "unequal heads and widths": {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "decoder_ffn_dim": 72},
    "odd sizes": {"d_model": 42, "encoder_attention_heads": 3, "decoder_attention_heads": 6, "encoder_ffn_dim": 55,
                  "decoder_ffn_dim": 39, "num_mel_bins": 13, "max_source_positions": 17, "vocab_size": 101},
    "another activation": {"activation_function": "gelu_new"},
    "a head of its own": {"tie_word_embeddings": False},
}  # fmt: skip
"""What the published configs differ in, and what their format allows."""


def config_of(family: str) -> WhisperConfig:
    return WhisperConfig(**{**SHAPE, **FAMILIES[family]})


def features_of(config: WhisperConfig, batch: int = 2) -> np.ndarray:
    """As loud as log-mel features are: from -1 to 1.5 or so."""
    shape = (batch, config.frames, config.num_mel_bins)
    return np.random.default_rng(2).normal(0, 0.5, shape).astype(np.float32)


def ids_of(config: WhisperConfig, length: int = 11) -> np.ndarray:
    return np.random.default_rng(3).integers(2, config.vocab_size, (2, length)).astype(np.int32)


def load(directory: Path) -> Any:
    """transformers' model with a checkpoint's weights, in float32: for `zoo compare`."""
    import torch
    import transformers

    kind = transformers.WhisperForConditionalGeneration
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def call(module: Any, features: np.ndarray, ids: np.ndarray) -> Any:
    """What it makes of the port's example, which is in our layout."""
    import torch

    return module(
        torch.tensor(features.transpose(0, 2, 1).copy()), decoder_input_ids=torch.tensor(ids.astype(np.int64))
    )


def main() -> None:
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    found = {}
    for family in FAMILIES:
        config = config_of(family)
        with tempfile.TemporaryDirectory() as directory:
            model = Whisper(config).init(0, "numpy")
            path = save(model, directory, port="whisper")
            ours = load_file(path / "model.safetensors")
            published = table(config).export(model.spec(), config).translate(ours)
            save_file({name: np.ascontiguousarray(a) for name, a in published}, path / "model.safetensors",
                      {"format": "pt"})  # fmt: skip
            theirs = transformers.WhisperForConditionalGeneration.from_pretrained(directory).eval()
        features, ids = torch.tensor(features_of(config).transpose(0, 2, 1)), torch.tensor(ids_of(config)).long()
        with torch.no_grad():
            out = theirs(input_features=features, decoder_input_ids=ids)
        found[f"{family}/encoded"] = out.encoder_last_hidden_state.numpy()[:, ::7]
        found[f"{family}/logits"] = out.logits.numpy()[:, ::3]
    np.savez_compressed(OUT, **found)
    print(f"{OUT}: {len(FAMILIES)} models, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
