"""Generation is a generator: one token id at a time, so that whoever asks can show, count or stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.random import Generator
from zoo.core.tensor import Tensor
from zoo.llama.cache import Cache
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling

PREFILL = 512
"""Tokens of a prompt that are worked out at once: enough for full speed, and little memory."""


def generate(
    model: Llama,
    prompt: Sequence[int],
    sampling: Sampling = Sampling(),  # noqa: B008 - immutable
    *,
    max_tokens: int,
    stops: frozenset[int] = frozenset(),
    seed: int = 0,
    cache: Cache | None = None,
) -> Iterator[int]:
    """Token ids after `prompt`, until one of `stops` (which is not given), `max_tokens`, or the end of the
    context that the model was trained for.

    cache: what an earlier call has seen of the same conversation: its tokens must be the beginning of `prompt`, and are
    not worked out again. Afterwards it has seen all that was given, except the last token.
    Raises ZooError if the prompt alone fills the context.
    """
    max_tokens = min(max_tokens, room(model, len(prompt)))
    if cache is None:
        cache = Cache(model.config, capacity=len(prompt) + max_tokens, device=model.device)
    cache.truncate(len(prompt) - 1)  # at least one token must go through the model
    rng, generated = Generator(seed), list[int]()
    logits = prefill(model, prompt[cache.length :], cache)
    for _ in range(max_tokens):
        draw = float(rng.uniform(()).numpy()) if sampling.temperature else 0.0
        token = sampling.choose(logits, prompt, generated, draw)
        if token in stops:
            return
        generated.append(token)
        yield token
        if len(generated) < max_tokens:
            logits = prefill(model, [token], cache)


def prefill(model: Llama, ids: Sequence[int], cache: Cache) -> np.ndarray:
    """Adds tokens to the cache; the logits (V,) of the one that comes next."""
    for start in range(0, len(ids), PREFILL):
        part = np.array([ids[start : start + PREFILL]], dtype=np.int32)
        logits = model(Tensor(model.device.from_host(part), model.device), cache, last=True)
    return logits.numpy()[0, -1]


def room(model: Llama, prompt: int) -> int:
    """Tokens that fit after a prompt of so many. Raises ZooError if there is no room for one."""
    context = model.config.max_position_embeddings
    if prompt >= context:
        raise ZooError(
            f"the prompt is too long: {prompt:,} tokens",
            f"this model was trained to see {context:,} tokens at once, the answer among them",
            "Shorten the prompt.",
        )
    return context - prompt
