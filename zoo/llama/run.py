"""`zoo run llama`: a text goes on, several do, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal

from zoo.core.errors import ZooError
from zoo.llama import tokenizer as tokenizers
from zoo.llama.cache import DTYPES
from zoo.llama.model import Llama
from zoo.llama.sampling import Sampling
from zoo.llama.speculative import Draft, Lookup, Proposer, check_vocabulary
from zoo.llama.writer import Writer


def run(
    model: Llama,
    prompt: list[str] | None = None,
    *,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: list[str] | None = None,
    stop: list[str] | None = None,
    chat: bool = False,
    system: str = "",
    cache: Literal["f32", "f16", "bf16", "int8"] | None = None,
    overflow: Literal["stop", "shift"] = "stop",
    lookup: int = 0,
    draft: str | None = None,
    seed: int = 0,
) -> Iterator[Any]:
    """Continue a text, or several side by side, or chat.

    prompt: text to go on from, - for standard input; several are worked out together; without one, from the beginning
    max_tokens: tokens to write at most
    temperature: 0 takes the likeliest token; without it, as generation_config.json says, else 0
    top_k: draw among the k likeliest tokens; 0 for all
    top_p: draw among the likeliest that make up this share
    min_p: draw among those at least this share as likely as the likeliest
    repetition_penalty: above 1, what occurred becomes less likely
    presence_penalty: above 0, what was written becomes less likely, once
    frequency_penalty: above 0, what was written becomes less likely, each time
    logit_bias: ID=VALUE, added to the logit of that token; may be given several times
    stop: end before this text; may be given several times
    chat: a conversation by the model's own chat template; with a prompt, one answer
    system: what the conversation begins with
    cache: how keys and values are kept; int8 takes a quarter of f32's memory, and longer; without it, as they come:
        f32, and on a GPU as the weights
    overflow: where the context is full, stop, or shift: forget the oldest half but the first tokens, and go on
    lookup: guess so many tokens by what followed the same words before; the text stays what it is
    draft: a smaller checkpoint with the same tokenizer, which guesses tokens; the text stays what it is
    """
    tokenizer = tokenizers.of(model)
    if max_tokens < 1:
        raise ZooError("there is nothing to write", f"--max-tokens is {max_tokens}", "Ask for at least 1.")
    published = tokenizer.generation if tokenizer.generation.get("do_sample") else {}
    sampling = _sampling(
        temperature=published.get("temperature", 1.0 if published else 0.0) if temperature is None else temperature,
        top_k=published.get("top_k", 0) if top_k is None else top_k,
        top_p=published.get("top_p", 1.0) if top_p is None else top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=dict(_bias(entry, model.config.vocab_size) for entry in logit_bias or ()),
    )
    texts = [sys.stdin.read() if text == "-" else text for text in prompt or [""]]
    if len(texts) > 1 and (lookup or draft or overflow != "stop"):
        why = "--lookup, --draft and --overflow shift are for one text at a time"
        raise ZooError(f"cannot continue {len(texts)} texts like that", why, "Leave them out, or give one prompt.")
    proposer = _proposer(model, tokenizer, lookup, draft)
    kept = None if cache is None else DTYPES[cache]
    writer = Writer(model, tokenizer, sampling, max_tokens, tuple(stop or ()), seed, kept, proposer, overflow)
    if chat and texts == [""] and sys.stdin.isatty():
        from zoo.llama.chat import converse

        yield from converse(writer, system)
        return
    ids = [tokenizer.chat(conversation(system, text)) if chat else tokenizer.encode(text) for text in texts]
    before = [""] * len(texts) if chat else texts
    if len(texts) > 1:
        yield from writer.write_all(ids, before)
    else:
        yield before[0]
        yield from writer.write(ids[0])


def conversation(system: str, text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]


def _sampling(**settings: Any) -> Sampling:
    try:
        return Sampling(**settings)
    except ValueError as error:
        raise ZooError("cannot sample like that", str(error)) from error


def _bias(entry: str, vocabulary: int) -> tuple[int, float]:
    token, _, value = entry.partition("=")
    try:
        found = int(token), float(value)
    except ValueError:
        found = -1, 0.0
    if not 0 <= found[0] < vocabulary or found[1] != found[1]:
        why = f"a bias is ID=VALUE, with an id from 0 to {vocabulary - 1:,}: 42=-100 forbids token 42"
        raise ZooError(f"cannot use --logit-bias {entry}", why)
    return found


def _proposer(model: Llama, tokenizer: tokenizers.Tokenizer, lookup: int, draft: str | None) -> Proposer | None:
    if lookup and draft:
        raise ZooError("cannot guess in two ways", "--lookup and --draft are both given", "Choose one.")
    if lookup < 0:
        raise ZooError(f"cannot guess {lookup} tokens", "--lookup counts the tokens of a guess", "Give 10, say.")
    if draft is None:
        return Lookup(lookup) if lookup else None
    from zoo.hub import load

    small = load(draft, port="llama", device=model.device).prepare()
    check_vocabulary(tokenizer, tokenizers.of(small), draft)
    return Draft(small, model.config.vocab_size)
