"""Several texts side by side: each pass reads the weights once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.random import Generator
from zoo.llama.cache import Cache
from zoo.llama.generate import PREFILL, room
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.step import step


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),  # noqa: B008 - immutable
    *,
    max_tokens: int,
    stops: frozenset[int] = frozenset(),
    seed: int = 0,
    cache_dtype: Any = None,
    ended: set[int] | None = None,
) -> Iterator[tuple[int, int]]:
    """(row, token id) as they come: to each of `prompts` what `generate` gives for it alone with `seed` + its row, up
    to the order of additions. Shorter prompts are padded on the left, which nothing looks at.

    A row ends by itself, and whoever asks may end one by adding it to `ended`. Those that have ended are computed
    along until all have. cache_dtype: in which keys and values are kept; None: as they come.
    Raises ZooError as `generate` does.
    """
    if max_tokens < 1:
        raise ZooError("there is nothing to write", f"{max_tokens} tokens are to be written", "Ask for at least 1.")
    limits = [min(max_tokens, room(model, len(prompt))) for prompt in prompts]
    longest = max(map(len, prompts))
    starts = [longest - len(prompt) for prompt in prompts]
    ids = np.array([[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)], np.int32)
    kept = model.activations if cache_dtype is None else cache_dtype
    cache = Cache(model.config, batch=len(ids), capacity=longest + max(limits), dtype=kept, device=model.device)
    rngs = [Generator(seed + row) for row in range(len(ids))]
    generated: list[list[int]] = [[] for _ in prompts]
    ended = set() if ended is None else ended
    for at in range(0, longest, PREFILL):
        logits = step(model, ids[:, at : at + PREFILL], cache, starts=starts)[:, 0]
    while True:
        for row, scores in enumerate(logits):
            if row in ended:
                continue
            draw = float(rngs[row].uniform(()).numpy()) if sampling.temperature else 0.0
            token = sampling.choose(scores, prompts[row], generated[row], draw)
            if token in stops:
                ended.add(row)
                continue
            generated[row].append(token)
            if len(generated[row]) == limits[row]:
                ended.add(row)
            yield row, token
        if len(ended) == len(prompts):
            return
        last = [[0 if row in ended else generated[row][-1]] for row in range(len(prompts))]
        logits = step(model, np.array(last, np.int32), cache, starts=starts)[:, 0]
