"""`zoo run llama`: a text goes on, or a conversation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.core.errors import ZooError
from zoo.core.stats import peak_memory
from zoo.llama import tokenizer as tokenizers
from zoo.llama.cache import Cache
from zoo.llama.generate import generate, room
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.tokenizer import Tokenizer


@dataclass
class Answer:
    """What was generated, and how fast. As text it is the end of the line: the text itself was streamed."""

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    stopped: str = ""
    """Why it ended: "end" (the model's own), "stop" (a stop string), "length", "context"."""
    cached: int = 0
    """Tokens of the prompt that an earlier turn had worked out."""
    first: float = 0.0
    """Seconds to the first token."""
    rest: float = 0.0
    """Seconds for the others."""
    alone = True  # one document, not a list of results

    @property
    def stats(self) -> dict[str, float]:
        rate = (len(self.tokens) - 1) / self.rest if self.rest else 0.0
        prefill = (len(self.prompt_tokens) - self.cached) / self.first if self.first else 0.0
        return {"prefill_tps": prefill, "decode_tps": rate, "ttft_s": self.first, "peak_mb": (peak_memory() or 0) / 1e6}

    def to_json(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "tokens": self.tokens, "text": self.text, "stopped": self.stopped,
                "stats": self.stats}  # fmt: skip

    def note(self) -> str:
        """How fast it was, and why it ended where that is not plain."""
        stats = self.stats
        why = {"length": " · stopped by --max-tokens", "context": " · the context is full"}.get(self.stopped, "")
        cached = f" ({self.cached:,} known)" if self.cached else ""
        return (
            f"  prompt {len(self.prompt_tokens):,} tokens{cached}, {stats['prefill_tps']:,.1f}/s · first after "
            f"{stats['ttft_s']:.2f} s · {len(self.tokens):,} tokens, {stats['decode_tps']:,.1f}/s{why}"
        )

    def __str__(self) -> str:
        return ""


def run(
    model: Llama,
    prompt: str = "",
    *,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: list[str] | None = None,
    chat: bool = False,
    system: str = "",
    seed: int = 0,
) -> Iterator[Any]:
    """Continue a text, or chat.

    prompt: text to go on from, - for standard input; without one, from the beginning
    max_tokens: tokens to write at most
    temperature: 0 takes the likeliest token; without it, as generation_config.json says, else 0
    top_k: draw among the k likeliest tokens; 0 for all
    top_p: draw among the likeliest that make up this share
    min_p: draw among those at least this share as likely as the likeliest
    repetition_penalty: above 1, what occurred becomes less likely
    stop: end before this text; may be given several times
    chat: a conversation by the model's own chat template; with a prompt, one answer
    system: what the conversation begins with
    """
    tokenizer = tokenizers.of(model)
    published = tokenizer.generation if tokenizer.generation.get("do_sample") else {}
    sampling = _sampling(
        temperature=published.get("temperature", 1.0 if published else 0.0) if temperature is None else temperature,
        top_k=published.get("top_k", 0) if top_k is None else top_k,
        top_p=published.get("top_p", 1.0) if top_p is None else top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    writer = Writer(model, tokenizer, sampling, max_tokens, tuple(stop or ()), seed)
    if chat and not text and sys.stdin.isatty():
        from zoo.llama.chat import converse

        yield from converse(writer, system)
    else:
        ids = tokenizer.chat(conversation(system, text)) if chat else tokenizer.encode(text)
        yield "" if chat else text
        yield from writer.write(ids)


def conversation(system: str, text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]


def _sampling(**settings: Any) -> Sampling:
    try:
        return Sampling(**settings)
    except ValueError as error:
        raise ZooError("cannot sample like that", str(error)) from error


@dataclass
class Writer:
    """A model that writes, with its tokenizer and settings; it keeps what it has seen for the next turn."""

    model: Llama
    tokenizer: Tokenizer
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0
    seen: list[int] = field(default_factory=list)
    cache: Cache | None = None

    def write(self, ids: Sequence[int]) -> Iterator[Any]:
        """Pieces of text as they come, then the Answer. What is the same as in the turn before is not worked out
        again."""
        answer = Answer(list(ids))
        limit = min(self.max_tokens, room(self.model, len(ids)))
        if self.cache is None:
            self.cache = Cache(self.model.config, capacity=len(ids) + limit, device=self.model.device)
        answer.cached = min(common(self.seen, ids), len(ids) - 1)
        self.cache.truncate(answer.cached)
        start = time.perf_counter()
        tokens = generate(self.model, ids, self.sampling, max_tokens=limit, stops=self.tokenizer.stops, seed=self.seed,
                          cache=self.cache)  # fmt: skip
        held = ""
        try:
            for token, piece in self.tokenizer.stream(tokens, after=ids):
                answer.tokens.append(token)
                now = time.perf_counter() - start
                answer.first, answer.rest = (
                    (now, 0.0) if len(answer.tokens) == 1 else (answer.first, now - answer.first)
                )
                shown, held, ended = until(self.stop, held + piece)
                if shown:
                    answer.text += shown
                    yield shown
                if ended:
                    answer.stopped = "stop"
                    break
            else:
                answer.text += held
                yield held
                answer.stopped = "end" if len(answer.tokens) < limit else "length"
                if answer.stopped == "length" and limit < self.max_tokens:
                    answer.stopped = "context"
        finally:
            self.seen = [*ids, *answer.tokens][: self.cache.length]
        yield answer


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def until(stops: Iterable[str], text: str) -> tuple[str, str, bool]:
    """(what can be shown, what must wait, whether a stop string came): text that may be the beginning of a stop string
    is held back until that is known."""
    stops = [stop for stop in stops if stop]
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], "", True
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
