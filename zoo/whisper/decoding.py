"""From encoded windows to tokens (openai/whisper: whisper/decoding.py).

Shapes: A windows, n hypotheses of each, R = A n rows side by side, the n of a window together; V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zoo.core.errors import WeightsError, ZooError
from zoo.core.tensor import Tensor
from zoo.whisper.beam import BeamSearch
from zoo.whisper.cache import Cache
from zoo.whisper.generation import Generation
from zoo.whisper.hypothesis import Hypothesis, best, log_total
from zoo.whisper.model import Whisper
from zoo.whisper.rules import ApplyTimestampRules, Rule, SuppressBlank, SuppressTokens
from zoo.whisper.sampling import Sampling
from zoo.whisper.segment import STEP
from zoo.whisper.step import step
from zoo.whisper.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodingOptions:
    """How a window is decoded. Raises ZooError for values that make no sense."""

    task: str = "transcribe"
    """Or "translate": into English."""
    language: str | None = None
    """Code of what is spoken; None: the likeliest for each window."""
    temperature: float = 0.0
    """0: the likeliest text; above, tokens are drawn."""
    best_of: int = 1
    """Hypotheses that are drawn, of which the best is kept; where temperature is above 0."""
    beam_size: int = 1
    """Hypotheses that are followed at once where temperature is 0; 1: the likeliest token is always taken."""
    patience: float = 1.0
    """A beam ends when it has found patience * beam_size texts (Kasai et al. 2022, arXiv:2204.05424)."""
    length_penalty: float | None = None
    """Hypotheses are compared by log probability / ((5 + length) / 6)^this (Wu et al. 2016); None: / length."""
    prompt: Sequence[int] = ()
    """Tokens of what was said before the window; the newest that fit are used."""
    prefix: Sequence[int] = ()
    """Tokens with which the window's own text begins; they are not in the result."""
    max_tokens: int | None = None
    """Of a window's text; None: half of the decoder's positions."""
    suppress_tokens: Sequence[int] | None = None
    """Never written; None: those of generation_config.json, else what is not speech."""
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    """Seconds after which the first timestamp cannot be."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, what in (
            ("task", self.task in ("transcribe", "translate"), "transcribe or translate"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or above"),
            ("best_of", self.best_of >= 1, "at least 1"),
            ("beam_size", self.beam_size >= 1, "at least 1"),
            ("patience", round(self.patience * self.beam_size) >= 1, "above 0"),
            ("length_penalty", self.length_penalty is None or 0 <= self.length_penalty <= 1, "from 0 to 1"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
        ):
            if not good:
                raise ZooError("cannot decode like that", f"{name} is {getattr(self, name)}", f"It must be {what}.")


@dataclass(frozen=True)
class Result:
    """What was heard in a window."""

    tokens: list[int]
    """Timestamps among them; without the end."""
    text: str
    language: str | None
    temperature: float
    avg_logprob: float
    """Of a token, the end counted as one."""
    no_speech_prob: float
    """That the window holds no speech; 0 for tokenizers that cannot say."""
    compression_ratio: float


class Search(Protocol):
    """Which tokens are written."""

    written: list[list[int]]
    """By row, all of the same length."""

    def step(self, logits: np.ndarray) -> list[int] | None:
        """Adds a token to each row. logits (R, V) that the rules have seen -> the row that each row continues; None
        when enough is known. The first step sees one row for each window."""

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Of each window."""


def decode(
    model: Whisper,
    encoded: Tensor,
    options: DecodingOptions,
    *,
    tokenizer: Tokenizer | None = None,
    cache: Cache | None = None,
    places: Sequence[int] | None = None,
) -> list[Result]:
    """Windows of speech as text, each by itself.

    encoded: (A, S, d_model), what `model.encode` gave
    cache: of these windows, from an earlier call: their keys and values are not worked out again
    places: a number for each window; what is drawn for a window depends on it, the seed and the temperature alone
    Raises ZooError for a language or task that the model lacks.
    """
    tokenizer = tokenizer or Tokenizer.of(model)
    generation = Generation.of(model)
    cache = cache or Cache(model, encoded)
    windows = encoded.shape[0]
    languages: list[str | None] = [options.language] * windows
    if options.language is None and tokenizer.multilingual:
        languages = [max(found, key=found.__getitem__) for found in detect_language(model, cache, tokenizer)]
    prompts = [prompt(model, tokenizer, options, language) for language in languages]
    before, after = np.array([one[0] for one in prompts]), np.array([one[1] for one in prompts])
    most = options.max_tokens or model.config.max_target_positions // 2
    room = model.config.max_target_positions - before.shape[1] - after.shape[1] + 1  # the last is not read again
    search = _search(options, tokenizer.eot, range(windows) if places is None else places)
    allowed = rules(tokenizer, generation, options)

    start(cache, windows)
    logits = forward(model, before, cache)
    no_speech = _probability(logits, tokenizer.no_speech)
    if after.shape[1]:
        logits = forward(model, after, cache)
    for i in range(min(most, room)):
        for rule in allowed:
            rule.apply(logits, search.written or [[]] * windows)
        sources = search.step(logits)
        if sources is None or i + 1 == min(most, room):
            break
        if sources != list(range(len(sources))) or len(sources) != len(logits):
            cache.reorder(sources)
        logits = forward(model, np.array([row[-1:] for row in search.written]), cache)

    found = [best(those, options.length_penalty) for those in search.hypotheses()]
    if any(one.logprob != one.logprob for one in found):
        fix = "Fetch the weights again, or try --dtype f32."
        raise WeightsError("no text", "the network computed NaN; its weights may be damaged", fix)
    texts = [tokenizer.decode([token for token in one.tokens if token < tokenizer.eot]).strip() for one in found]
    return [
        Result(one.tokens, text, language, options.temperature, one.logprob / (len(one.tokens) + 1), silence,
               compression_ratio(text))
        for one, text, language, silence in zip(found, texts, languages, no_speech, strict=True)
    ]  # fmt: skip


def detect_language(model: Whisper, heard: Tensor | Cache, tokenizer: Tokenizer) -> list[dict[str, float]]:
    """Code of a language -> its probability, for each window: `heard` is (A, S, d_model), or a cache of it.

    Raises ZooError for a model of one language.
    """
    if not tokenizer.multilingual:
        raise ZooError("cannot tell the language", "the model knows English alone", "Take a multilingual model.")
    cache = Cache(model, heard) if isinstance(heard, Tensor) else heard
    windows = cache.windows
    start(cache, windows)
    logits = forward(model, np.full((windows, 1), tokenizer.sot), cache)
    ids = np.array(list(tokenizer.languages.values()))
    shares = np.exp(logits[:, ids] - logits[:, ids].max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [dict(zip(tokenizer.languages, map(float, row), strict=True)) for row in shares]


def prompt(
    model: Whisper, tokenizer: Tokenizer, options: DecodingOptions, language: str | None
) -> tuple[list[int], list[int]]:
    """What the decoder reads before it writes: up to <|startoftranscript|>, and behind it.

    Raises ZooError for a language that the model does not know, and for translation by one of English alone.
    """
    half = model.config.max_target_positions // 2
    sot, *after = sot_sequence(tokenizer, language, options.task)
    if options.without_timestamps:
        after.append(tokenizer.no_timestamps)
    if options.prefix:
        after += list(options.prefix)[-max(half - len(after) - (options.max_tokens or 0), 1) :]
    before = [tokenizer.sot_prev, *list(options.prompt)[-(half - 1) :]] if options.prompt else []
    return [*before, sot], after


def sot_sequence(tokenizer: Tokenizer, language: str | None, task: str) -> list[int]:
    """<|startoftranscript|>, and for a multilingual model language and task. Raises ZooError as `prompt`."""
    if not tokenizer.multilingual:
        if task == "translate":
            raise ZooError("cannot translate", "the model knows English alone", "Take a multilingual model.")
        if language not in (None, "en"):
            why = f"the model knows English alone, and the language is {language!r}"
            raise ZooError("cannot transcribe this", why, "Leave the language out, or take a multilingual model.")
    elif language not in tokenizer.languages:
        known = ", ".join(sorted(tokenizer.languages))
        raise ZooError(f"unknown language {language!r}", f"the model knows: {known}", "Choose one of these.")
    return list(tokenizer.sot_sequence(language, task))


def rules(tokenizer: Tokenizer, generation: Generation, options: DecodingOptions) -> list[Rule]:
    """Those that the options ask for, in the order in which they are applied."""
    found: list[Rule] = []
    if options.suppress_blank:
        first = generation.begin_suppress_tokens
        found.append(SuppressBlank([*tokenizer.encode(" "), tokenizer.eot] if first is None else first))
    never = options.suppress_tokens
    if never is None:
        never = generation.suppress_tokens
    if never is None:
        never = tokenizer.non_speech_tokens
    t = tokenizer
    special = (t.transcribe, t.translate, t.sot, t.sot_prev, t.sot_lm, t.no_speech)
    found.append(SuppressTokens([*never, *(token for token in special if token is not None)]))
    if not options.without_timestamps:
        first_stamp = None if options.max_initial_timestamp is None else round(options.max_initial_timestamp / STEP)
        found.append(ApplyTimestampRules(t.timestamp_begin, t.eot, t.no_timestamps, first_stamp))
    return found


def start(cache: Cache, windows: int) -> None:
    """Forgets all tokens; what was heard stays. One row for each window again."""
    if cache.length:
        cache.truncate(0)
        cache.reorder(range(windows))


def forward(model: Whisper, ids: np.ndarray, cache: Cache) -> np.ndarray:
    """Reads ids (R, L); logits (R, V) behind the last, float32, for the caller to change."""
    return np.array(step(model, np.asarray(ids, np.int32), cache)[:, -1], np.float32)


def compression_ratio(text: str) -> float:
    """Bytes of a text for one that zlib makes of it: high where it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _search(options: DecodingOptions, eot: int, places: Sequence[int]) -> Search:
    if options.temperature == 0 and options.beam_size > 1:
        return BeamSearch(len(places), options.beam_size, options.patience, eot)
    count = options.best_of if options.temperature > 0 else 1
    return Sampling(places, count, options.temperature, eot, options.seed)


def _probability(logits: np.ndarray, token: int | None) -> list[float]:
    """That of one token, by row."""
    if token is None:
        return [0.0] * len(logits)
    return [float(share) for share in np.exp(logits[:, token] - log_total(logits)[:, 0])]
