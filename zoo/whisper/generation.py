"""generation_config.json: what a checkpoint's authors say of how it is decoded. All of it may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json

FILE = "generation_config.json"


@dataclass(frozen=True)
class Generation:
    """None where the file does not say."""

    suppress_tokens: tuple[int, ...] | None = None
    """Never written."""
    begin_suppress_tokens: tuple[int, ...] | None = None
    """Never written first."""
    alignment_heads: tuple[tuple[int, int], ...] | None = None
    """(layer, head) of cross-attention that follow the speech."""

    @classmethod
    def of(cls, model: Any) -> Generation:
        """That of a loaded model. Raises WeightsError if it names tokens or heads that the model lacks."""
        directory = getattr(model.source, "directory", None)
        if directory is None or not (directory / FILE).is_file():
            return cls()
        return cls.from_dict(read_json(directory / FILE), model.config)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], config: Any) -> Generation:
        try:
            heads = fields.get("alignment_heads")
            found = cls(
                _ids(fields.get("suppress_tokens"), config.vocab_size),
                _ids(fields.get("begin_suppress_tokens"), config.vocab_size),
                None if heads is None else tuple((int(layer), int(head)) for layer, head in heads) or None,
            )
            for layer, head in found.alignment_heads or ():
                if not (0 <= layer < config.decoder_layers and 0 <= head < config.decoder_attention_heads):
                    raise ValueError(f"alignment_heads name head {head} of layer {layer}, which the model lacks")
        except (TypeError, ValueError) as error:
            fix = "Take the file that belongs to this checkpoint, or remove it."
            raise WeightsError(f"cannot use {FILE}", str(error), fix) from error
        return found


def _ids(value: Any, vocabulary: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    found = tuple(int(token) for token in value if token != -1)  # -1: those of openai/whisper, which the caller adds
    if any(not 0 <= token < vocabulary for token in found):
        raise ValueError(f"it suppresses tokens beyond the {vocabulary:,} of the model")
    return None if len(found) < len(value) else found
