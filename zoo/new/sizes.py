"""Which field of a config a number in a tensor's shape is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ROLES = {
    "count": ("vocab", "position", "type_vocab", "num_embeddings"),
    "length": ("num_hidden_layers", "n_layer", "num_layers", "layers", "depth", "blocks"),
    "kernel": ("kernel", "patch_size"),
    "inputs": ("hidden_size", "d_model", "n_embd", "^dim$", "embed_dim", "channels", "intermediate", "ffn", "n_inner",
               "width", "_size", "_dim", "num_labels"),
}  # fmt: skip
"""Role -> words in a field's name, the likeliest first; every other role reads like inputs."""
NEVER = re.compile(r"token_id|version|image_size|max_length|_heads$|window|adapter")
"""Numbers that are no width, whatever they equal."""


def field_for(value: int, role: str, config: Mapping[str, Any]) -> str | None:
    """The likeliest field of this value; None if no name fits. Where two fit, the earlier word of ROLES decides, and
    who reads the model must look."""
    same = [k for k, v in config.items() if type(v) is int and v == value and not NEVER.search(k)]
    for word in ROLES.get(role, ROLES["inputs"]):
        for name in same:
            if re.search(word, name):
                return name
    return None
