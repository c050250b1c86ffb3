"""`zoo run bert`: a vector for each text, and how alike they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.bert import tokenizer as tokenizers
from zoo.bert.model import Bert
from zoo.core.errors import DataError
from zoo.core.tensor import Tensor
from zoo.hub.files import atomic, read_json
from zoo.hub.refs import POOLING

Pooling = Literal["mean", "cls", "max"]
SAMPLES = ["A cat sits on the mat.", "A kitten lies on a rug.", "Shares fell on Monday."]
SHOWN = 12
"""Texts whose likeness to each is shown on a terminal."""


@dataclass(frozen=True)
class Embedded:
    """A text, its vector of length 1, and the cosine of the angles to the vectors of all."""

    text: str
    embedding: np.ndarray
    similarity: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "embedding": self.embedding.tolist(), "similarity": self.similarity.tolist()}

    def __str__(self) -> str:
        return "  ".join([*(f"{value:6.3f}" for value in self.similarity[:SHOWN]), self.text])


def run(
    model: Bert,
    texts: list[str] | None = None,
    *,
    pooling: Pooling | None = None,
    batch: int = 32,
    out: Path | None = None,
) -> Iterator[Embedded]:
    """Turn texts into vectors, and say how alike they are: each line begins with the cosines to all texts.

    texts: one vector for each; - reads a text per line from standard input
    pooling: how a text's vector is made of its tokens' ones; without it, as the checkpoint says, else the mean
    batch: texts at a time
    out: keep the vectors there: .npy, a row for each text
    """
    given = texts or SAMPLES
    lines = [line for one in given for line in (sys.stdin.read().splitlines() if one == "-" else [one])]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError("there is no text", "standard input holds no line", "Give a text: zoo run bert 'a' 'b'.")
    vectors = embed(model, lines, pooling=pooling, batch=batch)
    if out is not None:
        with atomic(out) as part, part.open("wb") as file:
            np.save(file, vectors)
    alike = vectors @ vectors.T
    yield from (Embedded(*row) for row in zip(lines, vectors, alike, strict=True))


def embed(model: Bert, texts: Sequence[str], *, pooling: Pooling | None = None, batch: int = 32) -> np.ndarray:
    """A vector of length 1 for each text, (texts, hidden_size) float32. What is longer than the model sees is cut, and
    said so on stderr. (Sentence-BERT: Reimers & Gurevych 2019.)"""
    tokenizer = tokenizers.of(model)
    pooling = pooling or published_pooling(model)
    for text in texts:
        if len(text) > tokenizer.longest and (length := tokenizer.length(text)) > tokenizer.longest:
            print(f"cut to {tokenizer.longest} of {length} tokens: {text[:40]} ...", file=sys.stderr)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths side by side: less padding
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        ids, mask = tokenizer([texts[i] for i in rows])
        place = model.device
        tokens, seen = (Tensor(place.from_host(array), place) for array in (ids, mask))
        hidden = model(tokens, None if mask.all() else seen).numpy()
        vectors[rows] = pool(hidden, mask, pooling)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def pool(hidden: np.ndarray, mask: np.ndarray, pooling: Pooling) -> np.ndarray:
    """One vector of a text's: hidden (B, L, D), mask (B, L) -> (B, D)."""
    if pooling == "cls":
        return hidden[:, 0]
    real = mask[:, :, None].astype(bool)
    if pooling == "max":
        return np.where(real, hidden, -np.inf).max(axis=1)
    return np.where(real, hidden, 0.0).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def published_pooling(model: Bert) -> Pooling:
    """What sentence-transformers' 1_Pooling/config.json says, where it lies beside the weights; else the mean."""
    directory = None if model.source is None else model.source.directory
    said = None if directory is None else directory / POOLING
    if said is not None and said.is_file():
        settings = read_json(said)
        for key, pooling in {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}.items():
            if settings.get(key):
                return pooling  # type: ignore[return-value]
    return "mean"
