"""`zoo eval llama`: how well a text is predicted.

    perplexity = exp(-1/N  sum over tokens t_i of  log p(t_i | the tokens before it in its window))

Windows of `context` tokens advance by `stride`, and in each only the tokens that no earlier window held are scored, so
that every token of the text but the first is scored once (N of them), with context - stride to context - 1 tokens
before it: transformers' recipe for models of fixed length. The longer the overlap, the less a token suffers from
standing at the beginning of a window, and the more is worked out twice. A perplexity belongs to its tokenizer;
bits per byte, (sum of -log2 p) / (bytes of the text), compares models of different ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.errors import DataError, ZooError
from zoo.core.tensor import Tensor
from zoo.llama import tokenizer as tokenizers
from zoo.llama.cache import Cache
from zoo.llama.data import text_of
from zoo.llama.model import Llama

LONGEST = 4096
"""Tokens of a window that nobody asked for: models trained for 131,072 would take hours, and gigabytes of cache."""
PIECE = 512
"""Positions whose logits are worked out at once: at a vocabulary of 128,256 they take 0.26 GB."""


@dataclass(frozen=True)
class Evaluated:
    data: Path
    perplexity: float
    bits_per_byte: float
    tokens: int
    """That were scored: all but the first."""
    bytes: int
    context: int
    stride: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data": str(self.data)}

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.4f} · {self.bits_per_byte:.4f} bits per byte"

    def note(self) -> str:
        return (
            f"  {self.tokens:,} tokens of {self.bytes:,} bytes, each scored once, in windows of {self.context:,} "
            f"tokens that advance by {self.stride:,}"
        )


def evaluate(
    model: Llama, *, data: Path, context: int | None = None, stride: int | None = None, progress: Any = None
) -> Iterator[Evaluated]:
    """Measure how well a text is predicted: perplexity, and bits per byte.

    data: a text file
    context: tokens that the model sees at once; without it, as many as it was trained for, 4,096 at most
    stride: tokens by which the window advances; without it, half of --context
    """
    limit = model.config.max_position_embeddings
    context = min(limit, LONGEST) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 2 <= context <= limit:
        why = f"the model sees {limit:,} tokens at once, and predicting needs 2"
        raise ZooError(f"there is no window of {context:,} tokens", why, f"Choose --context from 2 to {limit}.")
    if not 1 <= stride < context:
        why = f"windows of {context:,} tokens that advance by {stride:,} would leave tokens out, or never end"
        raise ZooError(f"--stride {stride} does not fit", why, f"Choose one from 1 to {context - 1}.")
    if data.suffix == ".jsonl":
        why = "rows are not one text, and of some only the answers count"
        raise DataError(f"there is no perplexity of {data}", why, "Give a .txt; `zoo finetune` says that of rows.")
    text = text_of(data)
    ids = tokenizers.of(model).encode(text)
    if len(ids) < 2:
        raise DataError(f"there is nothing to predict in {data}", f"it has {len(ids)} tokens", "Give a longer text.")
    total, what = len(ids) - 1, f"reading {data.name}"
    nats = 0.0
    for start, scored, end in windows(len(ids), context, stride):
        nats += _window(model, ids[start:end], scored - start)
        if progress is not None:
            progress(end - 1, total, what)
    mean, size = nats / total, len(text.encode())
    if not mean < 700:  # exp would overflow; NaN comes here, too
        why = f"the mean of -log p is {mean}: the weights hold NaN, infinities, or nothing that was trained"
        raise ZooError("this model predicts nothing", why, "Use another checkpoint.")
    yield Evaluated(data, math.exp(mean), nats / math.log(2) / size, total, size, context, stride)


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first token scored, end) of each window over so many tokens. stride < context: a token that is scored
    has one before it."""
    start, scored = 0, 1
    while scored < tokens:
        end = min(start + context, tokens)
        yield start, scored, end
        start, scored = start + stride, end


def _window(model: Llama, ids: Sequence[int], first: int) -> float:
    """Sum of -log p of ids[first:], each given all before it; in pieces, since logits take much memory."""
    device = model.device
    cache = Cache(model.config, capacity=len(ids) - 1, dtype=model.activations, device=device)

    def on_device(part: Sequence[int]) -> Tensor:
        return Tensor(device.from_host(np.array([part], dtype=np.int32)), device)

    for start in range(0, first - 1, PIECE):  # seen and not scored
        model(on_device(ids[start : min(start + PIECE, first - 1)]), cache, last=1)
    nats = 0.0
    for start in range(first - 1, len(ids) - 1, PIECE):
        end = min(start + PIECE, len(ids) - 1)
        each = ops.cross_entropy(model(on_device(ids[start:end]), cache), on_device(ids[start + 1 : end + 1]))
        nats += float(each.numpy().sum(dtype=np.float64))
    return nats
