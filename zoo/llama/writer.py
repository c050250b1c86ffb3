"""Text that is being written: tokens become pieces of text, until the model, a stop string or a limit ends it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.core.stats import peak_memory
from zoo.llama.batch import generate_batch
from zoo.llama.cache import Cache
from zoo.llama.generate import Overflow, common, generate, room
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.speculative import Proposer
from zoo.llama.tokenizer import Tokenizer


@dataclass
class Answer:
    """What was generated, and how fast."""

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    stopped: str = ""
    """Why it ended: "end" (the model's own), "stop" (a stop string), "length", "context"."""
    cached: int = 0
    """Tokens of the prompt that an earlier turn had worked out."""
    first: float = 0.0
    """Seconds to the first token."""
    others: float = 0.0
    """Seconds for the others."""
    offered: int = 0
    """Tokens that were guessed (zoo/llama/speculative.py)."""
    right: int = 0
    alone: bool = True
    """One document, not one of a list of results."""
    shown: str = ""
    """It as text, where it was not streamed."""

    @property
    def stats(self) -> dict[str, float]:
        rate = (len(self.tokens) - 1) / self.others if self.others else 0.0
        prefill = (len(self.prompt_tokens) - self.cached) / self.first if self.first else 0.0
        return {"prefill_tps": prefill, "decode_tps": rate, "ttft_s": self.first, "peak_mb": (peak_memory() or 0) / 1e6}

    def to_json(self) -> dict[str, Any]:
        guesses = {"guesses": {"offered": self.offered, "right": self.right}} if self.offered else {}
        return {"prompt_tokens": self.prompt_tokens, "tokens": self.tokens, "text": self.text, "stopped": self.stopped,
                "stats": self.stats, **guesses}  # fmt: skip

    def note(self) -> str:
        """How fast it was, and why it ended where that is not plain."""
        stats = self.stats
        why = {"length": " · stopped by --max-tokens", "context": " · the context is full"}.get(self.stopped, "")
        cached = f" ({self.cached:,} known)" if self.cached else ""
        guessed = f" · {self.right:,} of {self.offered:,} guesses right" if self.offered else ""
        return (
            f"  prompt {len(self.prompt_tokens):,} tokens{cached}, {stats['prefill_tps']:,.1f}/s · first after "
            f"{stats['ttft_s']:.2f} s · {len(self.tokens):,} tokens, {stats['decode_tps']:,.1f}/s{guessed}{why}"
        )

    def __str__(self) -> str:
        return self.shown


@dataclass
class Writer:
    """A model that writes, with its tokenizer and settings; it keeps what it has seen for the next turn."""

    model: Llama
    tokenizer: Tokenizer
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0
    cache_dtype: Any = None
    """In which keys and values are kept; None: as they come."""
    proposer: Proposer | None = None
    overflow: Overflow = "stop"
    cache: Cache | None = None

    def write(self, ids: Sequence[int]) -> Iterator[Any]:
        """Pieces of text as they come, then the Answer. What is the same as in the turn before is not worked out
        again."""
        answer, context = Answer(list(ids)), self.model.config.max_position_embeddings
        limit = self.max_tokens
        if self.overflow == "stop":
            limit = min(limit, room(self.model, len(ids)))
        if self.cache is None:
            capacity = min(len(ids) + limit, context)
            dtype = self.model.activations if self.cache_dtype is None else self.cache_dtype
            self.cache = Cache(self.model.config, capacity=capacity, dtype=dtype, device=self.model.device)
        answer.cached = max(min(common(self.cache.tokens, ids), len(ids) - 1), 0)
        guessed = (self.proposer.offered, self.proposer.right) if self.proposer is not None else (0, 0)
        tokens = generate(self.model, ids, self.sampling, max_tokens=limit, stops=self.tokenizer.stops, seed=self.seed,
                          cache=self.cache, proposer=self.proposer, overflow=self.overflow)  # fmt: skip
        text = Text(answer, self.stop, self.tokenizer.decoder(ids))
        try:
            for token in tokens:
                if shown := text.add(token):
                    yield shown
                if answer.stopped:
                    break
            else:
                answer.stopped = "end" if len(answer.tokens) < limit else "length"
                if answer.stopped == "length" and limit < self.max_tokens:
                    answer.stopped = "context"
                if shown := text.rest():
                    yield shown
        finally:
            tokens.close()  # what the cache then holds, it has seen
        if self.proposer is not None:
            answer.offered, answer.right = self.proposer.offered - guessed[0], self.proposer.right - guessed[1]
        yield answer

    def write_all(self, prompts: Sequence[Sequence[int]], texts: Sequence[str]) -> Iterator[Answer]:
        """The answers to several prompts, worked out side by side; an answer shows what is in `texts` before it."""
        answers = [Answer(list(ids), alone=False, shown=text) for ids, text in zip(prompts, texts, strict=True)]
        parts = [Text(answer, self.stop, self.tokenizer.decoder(answer.prompt_tokens)) for answer in answers]
        limits = [min(self.max_tokens, room(self.model, len(ids))) for ids in prompts]
        ended: set[int] = set()
        for row, token in generate_batch(self.model, prompts, self.sampling, max_tokens=self.max_tokens,
                                         stops=self.tokenizer.stops, seed=self.seed, cache_dtype=self.cache_dtype,
                                         ended=ended):  # fmt: skip
            parts[row].add(token)
            if answers[row].stopped:
                ended.add(row)
        for answer, part, limit in zip(answers, parts, limits, strict=True):
            if not answer.stopped:
                part.rest()
                full = "context" if limit < self.max_tokens else "length"
                answer.stopped = "end" if len(answer.tokens) < limit else full
            answer.shown += answer.text
            yield answer


class Text:
    """The text of an answer while its tokens come."""

    def __init__(self, answer: Answer, stop: Iterable[str], decode: Any):
        self.answer, self.stop, self.decode = answer, tuple(stop), decode
        self.held = ""
        self.start = time.perf_counter()

    def add(self, token: int) -> str:
        """What can be shown now; the answer is `stopped` if that was its end."""
        answer = self.answer
        answer.tokens.append(token)
        now = time.perf_counter() - self.start
        answer.first, answer.others = (now, 0.0) if len(answer.tokens) == 1 else (answer.first, now - answer.first)
        shown, self.held, ended = until(self.stop, self.held + self.decode(token))
        answer.text += shown
        answer.stopped = "stop" if ended else ""
        return shown

    def rest(self) -> str:
        """What was held back, now that no stop string can come."""
        self.answer.text += self.held
        return self.held


def until(stops: Iterable[str], text: str) -> tuple[str, str, bool]:
    """(what can be shown, what must wait, whether a stop string came): text that may be the beginning of a stop string
    is held back until that is known."""
    stops = [stop for stop in stops if stop]
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], "", True
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
