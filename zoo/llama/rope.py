"""Rotary positions (Su et al. 2021): the angles by which pairs of channels are turned, and how they are stretched for
contexts longer than those of the first training. Formulas: transformers/modeling_rope_utils.py, in float32 as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.llama.config import LlamaConfig

F32 = np.float32


class Rope(NamedTuple):
    """cos and sin of the angles of some positions, (L, D/2) or (B, L, D/2)."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, L, H, D), turned."""
        return ops.rope(x, self.cos, self.sin)


def angles(config: LlamaConfig, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin for positions (...): each (..., D/2), float32."""
    frequencies, attention_factor = _frequencies(config, int(positions.max(initial=-1)) + 1)
    angle = positions.astype(F32)[..., None] * frequencies
    return np.cos(angle) * F32(attention_factor), np.sin(angle) * F32(attention_factor)


def _frequencies(config: LlamaConfig, length: int) -> tuple[np.ndarray, float]:
    """Radians per position of each pair of channels (D/2,), and a factor for cos and sin. `length` counts positions up
    to the last one: only "dynamic" depends on it."""
    rope = config.rope_parameters or {}
    kind, theta, dim = rope["rope_type"], float(rope["rope_theta"]), config.head_dim or 0
    if kind == "linear":  # Kaiokendev 2023: positions as if they were closer together
        return _powers(theta, dim) / F32(rope["factor"]), 1.0
    if kind == "dynamic":  # the base grows with the text
        trained, factor = config.max_position_embeddings, float(rope["factor"])
        stretch = factor * max(length, trained) / trained - (factor - 1)
        return _powers(theta * stretch ** (dim / (dim - 2)), dim), 1.0
    if kind == "llama3":
        return _llama3(_powers(theta, dim), rope), 1.0
    if kind == "yarn":
        return _yarn(theta, dim, config, rope)
    return _powers(theta, dim), 1.0


def _powers(theta: float, dim: int) -> np.ndarray:
    return F32(1) / (F32(theta) ** (np.arange(0, dim, 2, dtype=F32) / F32(dim)))


def _llama3(frequencies: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Slow pairs are stretched by `factor`, fast ones are left, those between go from one to the other (Llama 3.1)."""
    factor, low, high = (F32(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = F32(rope["original_max_position_embeddings"]) * frequencies / F32(2 * math.pi)  # in the first context
    smooth = np.clip((turns - low) / (high - low), F32(0), F32(1))
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def _yarn(theta: float, dim: int, config: LlamaConfig, rope: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """Peng et al. 2023: as llama3, with the borders counted in turns and a ramp over channels; attention is sharpened
    by the factor."""
    first = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    factor = float(rope.get("factor") or config.max_position_embeddings / first)

    def channel(turns: float) -> float:
        """The pair that turns so often within the first context."""
        return dim * math.log(first / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(rope.get("beta_fast") or 32), channel(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=F32) - F32(low)) / F32(high - low), F32(0), F32(1))
    plain = _powers(theta, dim)

    def sharpened(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    attention = rope.get("attention_factor")
    if attention is None:
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        attention = sharpened(rope["mscale"]) / sharpened(rope["mscale_all_dim"]) if both else sharpened(1.0)
    return plain / F32(factor) * ramp + plain * (1 - ramp), float(attention)
