"""The shape of a Whisper, in the field names of its published config.json (transformers' WhisperConfig)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.core.errors import WeightsError

DIMS = "beside.dims"
"""Where the metadata of OpenAI's files hold their shape (zoo/hub/torch_file.py)."""
MULTILINGUAL = 51865
"""Entries of the vocabulary of models of many languages, at least; those of English alone have one less."""


@dataclass(frozen=True)
class WhisperConfig:
    """Where config.json leaves a field out, the defaults are transformers': those of whisper-tiny."""

    vocab_size: int = 51865
    num_mel_bins: int = 80
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_ffn_dim: int = 1536
    d_model: int = 384
    activation_function: str = "gelu"
    """Of the feed-forward layers; the convolutions always have gelu."""
    max_source_positions: int = 1500
    """Positions of the encoder: half as many as the frames of a window."""
    max_target_positions: int = 448
    """Tokens of a window, at most."""
    tie_word_embeddings: bool = True
    """The head is the embedding of tokens."""
    decoder_start_token_id: int = 50257
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    pad_token_id: int | None = 50256
    layout: str = "transformers"
    """The published layout that the tensors came in, and are exported to: a key of weights.LAYOUTS."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_mel_bins", "encoder_attention_heads", "decoder_attention_heads",
                     "encoder_ffn_dim", "decoder_ffn_dim", "d_model", "max_source_positions",
                     "max_target_positions", "encoder_layers", "decoder_layers"):  # fmt: skip
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}; it must be a whole number, at least 1")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model = {self.d_model} does not divide among {name} = {getattr(self, name)}")

    @property
    def frames(self) -> int:
        """Frames of log-mel features in a window; 3000 are 30 seconds."""
        return 2 * self.max_source_positions

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> WhisperConfig | None:
        """That of a file as OpenAI publishes it, which holds its shape beside its tensors; None for others.

        Raises WeightsError if that is missing or makes no sense.
        """
        if "encoder.blocks.0.attn.query.weight" not in tensors or "decoder.token_embedding.weight" not in tensors:
            return None
        what, fix = "cannot use these weights of Whisper", "Fetch the .pt file again, or its transformers checkpoint."
        if DIMS not in metadata:
            why = "the file has OpenAI's tensors, and no `dims` to say how many heads they are"
            raise WeightsError(what, why, fix)
        try:
            return cls._from_dims(json.loads(metadata[DIMS]))
        except KeyError as error:
            raise WeightsError(what, f"its dims lack {error}", fix) from error
        except (TypeError, ValueError) as error:
            raise WeightsError(what, f"its dims make no sense: {error}", fix) from error

    @classmethod
    def _from_dims(cls, dims: Mapping[str, Any]) -> WhisperConfig:
        if dims["n_audio_state"] != dims["n_text_state"]:
            raise ValueError("encoder and decoder are of different width")
        width, many = dims["n_audio_state"], dims["n_vocab"] >= MULTILINGUAL
        end = 50257 if many else 50256  # <|endoftext|>; <|startoftranscript|> is the next
        return cls(
            vocab_size=dims["n_vocab"],
            num_mel_bins=dims["n_mels"],
            encoder_layers=dims["n_audio_layer"],
            encoder_attention_heads=dims["n_audio_head"],
            decoder_layers=dims["n_text_layer"],
            decoder_attention_heads=dims["n_text_head"],
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            d_model=width,
            max_source_positions=dims["n_audio_ctx"],
            max_target_positions=dims["n_text_ctx"],
            decoder_start_token_id=end + 1,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            layout="openai",
        )
