"""A config.json as a dataclass of the same fields."""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Mapping
from typing import Any

BOOKKEEPING = {
    "_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "gradient_checkpointing", "id2label",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "return_dict", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers_version", "use_cache",
}  # fmt: skip
"""What published configs say of programs, and not of the network."""


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that describe the network."""
    return {
        name: value
        for name, value in config.items()
        if name not in BOOKKEEPING and name.isidentifier() and not keyword.iskeyword(name) and name[0] != "_"
    }


def sources(config: Mapping[str, Any]) -> list[str]:
    """A line of source for each field, with the published value as its default."""
    return [_line(name, value) for name, value in kept(config).items()]


def literal(value: Any) -> str:
    """A JSON value as source, lists as tuples: tuples do not change."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _line(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{name}: Mapping[str, Any] = field(default_factory=lambda: {literal(value)})"
    if isinstance(value, list):
        return f"{name}: tuple[Any, ...] = {literal(value)}"
    return f"{name}: {'Any' if value is None else type(value).__name__} = {literal(value)}"
