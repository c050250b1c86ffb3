"""Generation is a generator: one token id at a time, so that whoever asks can show, count or stop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from zoo.core import random
from zoo.core.errors import ZooError
from zoo.llama.cache import Cache
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.step import forget_stale, step

if TYPE_CHECKING:
    from zoo.llama.speculative import Proposer

PREFILL = 512
"""Tokens of a prompt that are worked out at once: enough for full speed, and little memory."""
KEPT = 4
"""Tokens at the beginning that are never dropped: much attention rests on them, whatever they say (Xiao et al. 2023,
"Efficient Streaming Language Models with Attention Sinks")."""
Overflow = Literal["stop", "shift"]


def generate(
    model: Llama,
    prompt: Sequence[int],
    sampling: Sampling = Sampling(),  # noqa: B008 - immutable
    *,
    max_tokens: int,
    stops: frozenset[int] = frozenset(),
    seed: int = 0,
    cache: Cache | None = None,
    proposer: Proposer | None = None,
    overflow: Overflow = "stop",
) -> Generator[int, None, None]:
    """Token ids after `prompt`, until one of `stops` (which is not given), `max_tokens`, or the end of the
    context that the model was trained for.

    cache: what an earlier call has seen: what `prompt` begins with of it is not worked out again. Afterwards it has
    seen all of the text except the last token, or the last of it that still fits the context.
    proposer: guesses the next tokens (zoo/llama/speculative.py). Guesses are looked at all at once, and one that is
    not what the model itself chooses is thrown away with all behind it: the tokens are those without a proposer.
    overflow: where the context is full, "stop", or "shift": go on with the first tokens and the newer half of the rest
    (`shifted`), which are worked out anew. Keys could be turned to their new places instead, but in every layer above
    the first they would still depend on the tokens that were dropped; half a context every half a context costs little.
    Raises ZooError if there is nothing to write, or, with "stop", if the prompt alone fills the context.
    """
    if max_tokens < 1:
        raise ZooError("there is nothing to write", f"{max_tokens} tokens are to be written", "Ask for at least 1.")
    context, text = model.config.max_position_embeddings, list(prompt)
    if overflow == "stop":
        max_tokens = min(max_tokens, room(model, len(text)))
    text = shifted(text, context)
    if cache is None:
        capacity = min(len(text) + max_tokens, context)
        cache = Cache(model.config, capacity=capacity, dtype=model.activations, device=model.device)
    forget_stale(model, cache)
    cache.truncate(min(common(cache.tokens, text), len(text) - 1))  # at least one token must go through the model
    rng, generated, guesses = random.Generator(seed), list[int](), list[int]()
    logits = forward(model, text[cache.length :], cache)
    try:
        while True:
            for i, row in enumerate(logits):  # behind the text, and behind each guess
                draw = float(rng.uniform(()).numpy()) if sampling.temperature else 0.0
                token = sampling.choose(row, prompt, generated, draw)
                if token in stops:
                    return
                generated.append(token)
                text.append(token)
                right = i < len(guesses) and token == guesses[i]
                if right and proposer is not None:
                    proposer.right += 1
                yield token
                if len(generated) == max_tokens:
                    return
                if not right:
                    break
            known = len(text) - 1
            if len(text) > context:
                text = shifted(text, context)
                known = common(cache.tokens, text)
            cache.truncate(known)
            new = text[known:]
            most = min(max_tokens - len(generated) - 1, context - len(text), PREFILL - 1)
            guesses = [] if proposer is None or len(new) > 1 or most < 1 else proposer.guess(text, most)
            logits = forward(model, [*new, *guesses], cache, len(guesses) + 1)
    finally:
        cache.truncate(min(len(cache.tokens), len(text) - 1))


def forward(model: Llama, ids: Sequence[int], cache: Cache, rows: int = 1) -> np.ndarray:
    """Adds tokens to the cache; the logits (rows, V) behind the last `rows` of them, at most PREFILL."""
    for start in range(0, len(ids), PREFILL):
        part = list(ids[start : start + PREFILL])
        logits = step(model, np.array([part], np.int32), cache, rows)
        cache.tokens += part
    return logits[0]


def room(model: Llama, prompt: int) -> int:
    """Tokens that fit after a prompt of so many. Raises ZooError if there is no room for one."""
    context = model.config.max_position_embeddings
    if prompt >= context:
        raise ZooError(
            f"the prompt is too long: {prompt:,} tokens",
            f"this model was trained to see {context:,} tokens at once, the answer among them",
            "Shorten the prompt, or let it forget the oldest: --overflow shift.",
        )
    return context - prompt


def shifted(text: list[int], context: int) -> list[int]:
    """The text, or where it is longer than the context the part of it that stays: the first KEPT tokens, and of the
    others the newest that fill half of what is left."""
    if len(text) <= context:
        return text
    kept = min(KEPT, context // 2)
    return text[:kept] + text[-max((context - kept) // 2, 1) :]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
