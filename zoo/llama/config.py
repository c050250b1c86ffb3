"""The shape of a LLaMA, in the field names of its published config.json (transformers' LlamaConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class LlamaConfig:
    """Where config.json leaves a field out, the defaults are transformers'."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    """None: as many as query heads."""
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    """Tokens that the model was trained to see at once."""
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    """None: 10000, or what rope_parameters say."""
    rope_scaling: Mapping[str, Any] | None = None
    """How angles are stretched beyond the context of the first training; None: they are not."""
    rope_parameters: Mapping[str, Any] | None = None
    """Both of the above in one, as transformers 5 writes them."""
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    layout: str = "transformers"
    """The published layout that the tensors came in, and are exported to: a key of weights.LAYOUTS."""

    def __post_init__(self) -> None:
        fill = object.__setattr__  # of a frozen dataclass
        if self.num_key_value_heads is None:
            fill(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size = {self.hidden_size} does not divide among num_attention_heads = "
                    f"{self.num_attention_heads}, and there is no head_dim"
                )
            fill(self, "head_dim", self.hidden_size // self.num_attention_heads)
        rope = dict(self.rope_parameters or self.rope_scaling or {})
        rope.setdefault("rope_type", rope.pop("type", "default"))
        rope.setdefault("rope_theta", self.rope_theta or 10000.0)
        if rope["rope_type"] not in ROPE_TYPES:
            raise ValueError(f"rope_type = {rope['rope_type']!r}; known are {', '.join(ROPE_TYPES)}")
        fill(self, "rope_parameters", rope)
        fill(self, "rope_scaling", None)
        fill(self, "rope_theta", rope["rope_theta"])
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings"):  # fmt: skip
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}; it must be a whole number, at least 1")
        if self.num_attention_heads % self.num_key_value_heads:  # type: ignore[operator]
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:  # type: ignore[operator]
            raise ValueError(f"head_dim = {self.head_dim}; rotary positions turn pairs, so it must be even")

    @classmethod
    def from_directory(cls, directory: Path, tensors: Mapping[str, Any]) -> LlamaConfig | None:
        """That of Meta's own checkpoints, which have a params.json (zoo/llama/meta.py); None for others."""
        from zoo.llama import meta

        return meta.config(directory, tensors)
