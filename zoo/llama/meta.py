"""Checkpoints as Meta publishes them: params.json and consolidated.*.pth (zoo/hub/consolidated.py), and beside them
tokenizer.model, which is SentencePiece's up to Llama 2 and tiktoken's from Llama 3 on (zoo/llama/vocabulary.py).

What params.json leaves out follows from the release that it belongs to, as in transformers'
convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.consolidated import PARAMS
from zoo.hub.files import read_json
from zoo.llama.config import LlamaConfig

LLAMA_3 = 500000.0
"""rope_theta since Llama 3; Code Llama has 1000000."""
BOS_3, EOS_3 = 128000, (128001, 128008, 128009)
"""<|begin_of_text|>; <|end_of_text|>, <|eom_id|>, <|eot_id|>: nothing says whether weights were tuned for chat, and all
three mean that nothing follows."""
_FEWEST = 100000
"""Tokens that only the vocabulary of Llama 3 has."""


def config(directory: Path, tensors: Mapping[str, Any]) -> LlamaConfig | None:
    """The shape of a checkpoint of Meta's; None if it is none. `tensors`: name -> .shape.

    Raises WeightsError if params.json cannot be read, or lacks what is needed.
    """
    embedding = tensors.get("tok_embeddings.weight")
    if embedding is None or "layers.0.attention.wq.weight" not in tensors:
        return None
    what = f"cannot use {directory}"
    if not (directory / PARAMS).is_file():
        why = f"it has the tensors of Meta's LLaMA, and no {PARAMS} to say how many heads they are"
        raise WeightsError(what, why, f"Fetch {PARAMS} into the same directory.")
    params = read_json(directory / PARAMS)
    params = params["model"] if isinstance(params.get("model"), dict) else params
    try:
        return _config(params, embedding.shape[0], "output.weight" not in tensors)
    except KeyError as error:
        raise WeightsError(what, f"its {PARAMS} lacks {error}", f"Fetch {PARAMS} again.") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(what, f"its {PARAMS} makes no sense: {error}", f"Fetch {PARAMS} again.") from error


def _config(params: Mapping[str, Any], vocabulary: int, tied: bool) -> LlamaConfig:
    dim, theta = params["dim"], float(params.get("rope_theta") or 10000.0)
    scaled = bool(params.get("use_scaled_rope"))
    third = vocabulary > _FEWEST
    return LlamaConfig(
        vocab_size=vocabulary,  # params.json says -1 where the tokenizer was to say it
        hidden_size=dim,
        intermediate_size=intermediate(dim, params.get("ffn_dim_multiplier") or 1, params.get("multiple_of") or 256),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads"),
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=params.get("max_seq_len") or _context(theta, scaled, params["norm_eps"]),
        rope_theta=theta,
        rope_scaling=_stretched(dim, params) if scaled else None,
        tie_word_embeddings=tied,
        bos_token_id=BOS_3 if third else 1,
        eos_token_id=EOS_3 if third else 2,
        layout="meta",
    )


def intermediate(dim: int, multiplier: float, multiple_of: int) -> int:
    """Width of the feed-forward layers: two thirds of 4 dim, times `multiplier`, rounded up to a multiple."""
    width = int(multiplier * int(8 * dim / 3))
    return multiple_of * -(-width // multiple_of)


def _context(theta: float, scaled: bool, eps: float) -> int:
    """Tokens that the release was trained to see at once."""
    if theta >= LLAMA_3:
        return 131072 if scaled else 8192 if theta == LLAMA_3 else 16384  # 3.1; 3; Code Llama
    return 4096 if eps >= 1e-5 else 2048  # 2; 1, and the first files of 2's chat models


def _stretched(dim: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's rotary positions. The factor is in Meta's code, not in its older files: 32 for the two small models
    of 3.2 (2048 and 3072 wide), 8 for all others."""
    factor = params.get("rope_scaling_factor") or (32.0 if dim < 4096 else 8.0)
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
