"""From prompts to what the U-Net is told: weights in the text, texts longer than the encoder's window, empty ones.

    a (red:1.4) bicycle      weighs 1.4        (red)  1.1       [red]  1 / 1.1       \\( \\[ \\: are signs of the text

What is told of a weighted token is multiplied, and the whole brought back to its mean (as AUTOMATIC1111's web UI has
it). A text longer than 75 tokens is encoded in chunks of 75, whose outputs stand in a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.stable_diffusion.tokenizer import Tokenizer

MORE = 1.1
"""What a pair of brackets multiplies or divides by."""
_WEIGHT = re.compile(r"^(.*):\s*(\d+(?:\.\d*)?|\.\d+)\s*$", re.DOTALL)


class Told(NamedTuple):
    """Of B texts."""

    hidden: Tensor
    """(B, S, D); S is 77 for each chunk."""
    pooled: Tensor | None
    """(B, P), SDXL's; of the first chunk."""
    lost: tuple[str, ...]
    """What of each text did not fit, where it was cut off."""


def parse(text: str) -> list[tuple[str, float]]:
    """Pieces of a text and their weights. A bracket without its partner is a sign of the text."""
    pieces: list[list[Any]] = [["", 1.0]]
    opened: list[tuple[str, int]] = []

    def close(kind: str) -> None:
        _, start = opened.pop()
        factor = MORE if kind == ")" else 1 / MORE
        last = pieces[-1]
        if kind == ")" and len(pieces) > start and (found := _WEIGHT.match(last[0])):
            last[0], factor = found[1], float(found[2])
        for piece in pieces[start:]:
            piece[1] *= factor
        pieces.append(["", 1.0])

    i = 0
    while i < len(text):
        sign = text[i]
        if sign == "\\" and text[i + 1 : i + 2] in ("(", ")", "[", "]", "\\", ":"):
            i += 1
            pieces[-1][0] += text[i]
            if text[i] == ":":
                pieces.append(["", 1.0])  # what follows is no weight
        elif sign in "([":
            opened.append((sign, len(pieces)))
            pieces.append(["", 1.0])
        elif sign in ")]" and opened and opened[-1][0] == {")": "(", "]": "["}[sign]:
            close(sign)
        else:
            pieces[-1][0] += sign
        i += 1
    for sign, start in opened:
        pieces[start][0] = sign + pieces[start][0]
    merged: list[tuple[str, float]] = []
    for piece, weight in pieces:
        if piece and merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + piece, weight)
        elif piece:
            merged.append((piece, weight))
    return merged or [("", 1.0)]


def tell(
    model: Any, tokenizers: Sequence[Tokenizer], texts: Sequence[str], *, cut: bool = False, skip: int = 0
) -> Told:
    """What the U-Net is told of texts, all with as many chunks as the longest needs.

    cut: one chunk only, as diffusers does it; what is lost then is told. skip: so many of the encoders' last layers
    are left out.
    """
    parsed = [parse(text) for text in texts]
    rows, weights, lost = [], [], [""] * len(texts)
    for tokenizer in tokenizers:
        listed = [_tokens(tokenizer, pieces) for pieces in parsed]
        room = tokenizer.room
        if cut:
            lost = [tokenizer.decode([token for token, _ in tokens[room:]]) for tokens in listed]
            listed = [tokens[:room] for tokens in listed]
        chunks = max(1, *(-(-len(tokens) // room) for tokens in listed))
        cuts = [[tokens[i * room : (i + 1) * room] for i in range(chunks)] for tokens in listed]
        rows.append(np.asarray([[tokenizer.row([t for t, _ in part]) for part in row] for row in cuts], np.int32))
        weights.append(np.ones(rows[-1].shape, np.float32))
        for b, row in enumerate(cuts):
            for c, part in enumerate(row):
                weights[-1][b, c, 1 : 1 + len(part)] = [w for _, w in part]
    hidden, pooled = [], None
    for c in range(rows[0].shape[1]):
        ids = [Tensor(model.device.from_host(np.ascontiguousarray(r[:, c])), model.device) for r in rows]
        out, first = model.encode_text(ids, skip)
        hidden.append(_weighted(out, weights[0][:, c]))
        pooled = first if c == 0 else pooled
    return Told(hidden[0] if len(hidden) == 1 else ops.concat(hidden, axis=1), pooled, tuple(lost))


def _tokens(tokenizer: Tokenizer, pieces: Sequence[tuple[str, float]]) -> list[tuple[int, float]]:
    return [(token, weight) for piece, weight in pieces for token in tokenizer.tokens(piece)]


def _weighted(hidden: Tensor, weights: np.ndarray) -> Tensor:
    """hidden (B, L, D) times weights (B, L), each text's mean as before; untouched where nothing is weighted."""
    if (weights == 1).all():
        return hidden
    scaled = hidden * Tensor(hidden.device.from_host(weights[..., None]), hidden.device)
    before, after = (ops.mean(x, axis=(1, 2), keepdims=True).numpy() for x in (hidden, scaled))
    plain = (weights == 1).all(axis=1)[:, None, None] | (np.abs(after) < 1e-12)
    factor = np.where(plain, 1.0, before / np.where(plain, 1.0, after)).astype(np.float32)
    return scaled * Tensor(hidden.device.from_host(factor), hidden.device)
