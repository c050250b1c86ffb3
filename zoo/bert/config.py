"""The shape of a BERT, with the field names of transformers' BertConfig and RobertaConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIXES = ("", "bert.", "roberta.")
WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class BertConfig:
    """Defaults: BERT base. The last four fields say what a config.json does not, and follow from the tensors."""

    model_type: str = "bert"
    """bert, roberta or xlm-roberta: the latter two count positions from behind the padding's id."""
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    prefix: str = ""
    """What stands before the tensors' names: "bert." where the file holds a head beside the encoder."""
    gamma: bool = False
    """Norms are published under TensorFlow's names, gamma and beta."""
    pooler: bool = True
    """There is a layer for the first token, which was trained to tell whether a sentence follows another."""
    position_ids: bool = False
    """The file holds the table 0, 1, 2, ..., too."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size = {self.hidden_size} does not divide among {self.num_attention_heads} heads")
        if self.position_embedding_type != "absolute":
            raise ValueError(f"position_embedding_type = {self.position_embedding_type!r}; only 'absolute' is known")
        if self.is_decoder:
            raise ValueError("is_decoder = true; an encoder is needed")

    @property
    def first_position(self) -> int:
        """fairseq's models, RoBERTa's and XLM-R's, keep positions up to the padding's id for padding."""
        return 0 if self.model_type == "bert" else (self.pad_token_id or 0) + 1

    @property
    def longest(self) -> int:
        """Tokens of a text, the first and last mark included."""
        return self.max_position_embeddings - self.first_position

    def with_tensors(self, tensors: Mapping[str, Any]) -> BertConfig:
        """What the names of the tensors tell: prefix, norms' names, whether there is a pooler."""
        prefix = next((p for p in PREFIXES if f"{p}{WORDS}" in tensors), "")
        return dataclasses.replace(
            self,
            prefix=prefix,
            gamma=f"{prefix}embeddings.LayerNorm.gamma" in tensors,
            pooler=f"{prefix}pooler.dense.weight" in tensors,
            position_ids=f"{prefix}embeddings.position_ids" in tensors,
        )
