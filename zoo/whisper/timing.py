"""When each word is said: by where in the audio the decoder looks while it writes it (openai/whisper: timing.py).

Attention of the heads that follow the speech, smoothed over time, is a matrix of tokens by positions of the encoder;
dynamic time warping finds the way through it that goes forward in both and gathers most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zoo.core.errors import WeightsError
from zoo.core.tensor import Tensor
from zoo.whisper.cache import Cache
from zoo.whisper.decoding import sot_sequence
from zoo.whisper.generation import Generation
from zoo.whisper.model import Whisper
from zoo.whisper.segment import FRAMES, STEP, Segment, Word
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.window import Window

MEDIAN = 7
"""Positions of 0.02 s over which attention is smoothed."""
LONGEST = 0.7
"""Seconds that the median word takes at most: where it is longer, what was measured are pauses."""
SENTENCE_ENDS = ".。!！?？"
BEFORE = "\"'“¿([{-"
"""Punctuation that belongs to the word behind it."""
AFTER = "\"'.。,，!！?？:：”)]}、"
"""And to the word before it."""


@dataclass
class Timing:
    """A word and its tokens; seconds from the beginning of the window."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float

    @property
    def duration(self) -> float:
        return self.end - self.start


def add_word_timestamps(
    segments: list[Segment], model: Whisper, tokenizer: Tokenizer, encoded: Tensor, window: Window,
    *, language: str | None, task: str,
) -> None:  # fmt: skip
    """Fills in the words of the segments of a window, and moves the segments' own times to them.

    encoded: (1, S, d_model); window.last_speech: seconds at which the last word before it ended
    """
    if not segments:
        return
    texts = [[token for token in segment.tokens if token < tokenizer.eot] for segment in segments]
    tokens = [token for text in texts for token in text]
    timings = align(model, tokenizer, tokens, encoded, window.size, language=language, task=task)
    lengths = [one.duration for one in timings if one.duration]
    usual = min(LONGEST, float(np.median(lengths))) if lengths else 0.0
    if lengths:
        shorten_at_sentence_ends(timings, 2 * usual)
    merge_punctuation(timings)
    last, at = window.last_speech, 0
    for segment, text in zip(segments, texts, strict=True):
        known, words = 0, list[Word]()
        while at < len(timings) and known < len(text):
            timing = timings[at]
            if timing.word:
                start, end = round(window.start + timing.start, 2), round(window.start + timing.end, 2)
                words.append(Word(timing.word, start, end, timing.probability))
            known += len(timing.tokens)
            at += 1
        if words:
            last = _fit(segment, words, last, usual)
            segment.start, segment.end = round(segment.start, 2), round(segment.end, 2)
            for word in words:
                word.start, word.end = round(word.start, 2), round(word.end, 2)
        segment.words = words


def end_of(segments: Sequence[Segment]) -> float | None:
    """When the last word ends; where there are no words, the last segment."""
    for segment in reversed(segments):
        if segment.words:
            return segment.words[-1].end
    return segments[-1].end if segments else None


def align(
    model: Whisper, tokenizer: Tokenizer, tokens: Sequence[int], encoded: Tensor, size: int,
    *, language: str | None, task: str,
) -> list[Timing]:  # fmt: skip
    """Words of a text (tokens without timestamps), and when they are said in a window of `size` frames."""
    if not tokens:
        return []
    words, ids = tokenizer.words([*tokens, tokenizer.eot], language)
    if len(ids) <= 1:
        return []
    before = [*sot_sequence(tokenizer, language, task), tokenizer.no_timestamps]
    read = Tensor(model.device.from_host(np.array([[*before, *tokens, tokenizer.eot]], np.int32)), model.device)
    logits = model.decode(read, Cache(model, encoded)).numpy()[0, len(before) - 1 :][: len(tokens), : tokenizer.eot]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shares[np.arange(len(tokens)), list(tokens)] / shares.sum(axis=1)
    weights = model.cross_weights(read, encoded, alignment_heads(model), frames=max(size // FRAMES, 1)).numpy()
    rows, columns = dtw(-followed(weights)[len(before) - 1 : -1])
    times = columns[np.diff(rows, prepend=-1) > 0] * STEP  # when each token begins
    bounds = np.cumsum([0, *(len(one) for one in ids[:-1])])
    return [
        Timing(word, list(one), float(times[a]), float(times[b]), float(probabilities[a:b].mean()))
        for word, one, a, b in zip(words, ids, bounds, bounds[1:], strict=False)
    ]


def alignment_heads(model: Whisper) -> list[tuple[int, int]]:
    """(layer, head): those that generation_config.json names, else all of the upper half of the layers."""
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    named = Generation.of(model).alignment_heads
    return list(named or ((layer, head) for layer in range(layers // 2, layers) for head in range(heads)))


def followed(weights: np.ndarray) -> np.ndarray:
    """Attention weights (heads, L, S) -> how much more a token looks at a position than the others do, (L, S)."""
    total = np.zeros(weights.shape[1:], np.float32)
    for head in weights:  # one by one: a head of a long text stays in the cache
        deviation = head.std(axis=0)
        total += median_filter((head - head.mean(axis=0)) / np.where(deviation > 0, deviation, 1), MEDIAN)
    if not np.isfinite(total).all():
        fix = "Fetch the weights again, or try --dtype f32."
        raise WeightsError("no times of words", "the network computed NaN; its weights may be damaged", fix)
    return total / np.float32(len(weights))


def median_filter(x: np.ndarray, width: int) -> np.ndarray:
    """Median of `width` (odd) neighbours along the last axis, the ends reflected; x itself if it is too short.

    Half of the neighbours and two more have a smallest and a largest that cannot be the median: both go, the next one
    comes in, until one is left. Whole rows are compared at once.
    """
    half = width // 2
    if x.shape[-1] <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    waiting = [padded[..., i : i + x.shape[-1]] for i in range(width)]
    kept = [waiting.pop() for _ in range(half + 2)] if half else waiting[:1]
    while len(kept) > 1:
        for i in range(1, len(kept)):  # the smallest comes to the front
            kept[0], kept[i] = np.minimum(kept[0], kept[i]), np.maximum(kept[0], kept[i])
        for i in range(1, len(kept) - 1):  # the largest to the end
            kept[-1], kept[i] = np.maximum(kept[-1], kept[i]), np.minimum(kept[-1], kept[i])
        kept = kept[1:-1] + ([waiting.pop()] if waiting else [])
    return kept[0]


def dtw(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest way from the first to the last corner of `cost` (N, M), in steps down, right or both:
    its rows and its columns.

    D[i, j] = cost[i, j] + min(D[i-1, j-1], D[i-1, j], D[i, j-1]). All of an antidiagonal i + j depend on the two before
    it only, and are worked out at once. Between equals, the step right is taken, as openai/whisper does.
    """
    N, M = cost.shape
    cost = cost.astype(np.float64)
    totals = np.full((N + M + 1, N + 1), np.inf, np.float32)  # [i + j, i], with a row and a column of inf before
    step = np.full((N + 1, M + 1), RIGHT, np.int8)
    totals[0, 0] = 0
    for d in range(2, N + M + 1):
        low, high = max(1, d - M), min(N, d - 1)
        i = np.arange(low, high + 1)
        both, down, right = totals[d - 2, low - 1 : high], totals[d - 1, low - 1 : high], totals[d - 1, low : high + 1]
        take_both, take_down = (both < down) & (both < right), (down < both) & (down < right)
        least = np.where(take_both, both, np.where(take_down, down, right))
        step[i, d - i] = np.where(take_both, BOTH, np.where(take_down, DOWN, RIGHT))
        totals[d, low : high + 1] = cost[i - 1, d - i - 1] + least
    step[0, :], step[:, 0] = RIGHT, DOWN
    way, at_row, at_column = [], N, M
    while at_row > 0 or at_column > 0:
        way.append((at_row - 1, at_column - 1))
        taken = step[at_row, at_column]
        at_row -= taken != RIGHT
        at_column -= taken != DOWN
    rows, columns = np.array(way[::-1]).T
    return rows, columns


BOTH, DOWN, RIGHT = 0, 1, 2


def shorten_at_sentence_ends(timings: list[Timing], longest: float) -> None:
    """A pause between sentences is no part of the word at either side of it."""
    for before, one in pairwise(timings):
        if one.duration > longest:
            if one.word in SENTENCE_ENDS:
                one.end = one.start + longest
            elif before.word in SENTENCE_ENDS:
                one.start = one.end - longest


def merge_punctuation(timings: list[Timing]) -> None:
    """Makes punctuation part of the word it belongs to; what was merged keeps no text and no tokens."""
    at = len(timings) - 1
    for i in range(len(timings) - 2, -1, -1):
        mark, word = timings[i], timings[at]
        if mark.word.startswith(" ") and mark.word.strip() in BEFORE:
            word.word, word.tokens = mark.word + word.word, mark.tokens + word.tokens
            mark.word, mark.tokens = "", []
        else:
            at = i
    at = 0
    for i in range(1, len(timings)):
        word, mark = timings[at], timings[i]
        if not word.word.endswith(" ") and mark.word in AFTER:
            word.word, word.tokens = word.word + mark.word, word.tokens + mark.tokens
            mark.word, mark.tokens = "", []
        else:
            at = i


def _fit(segment: Segment, words: list[Word], last: float, usual: float) -> float:
    """Shortens words that have swallowed the pause before or behind them, and brings times of segment and words
    together. Returns when the segment ends."""
    longest, first, final = 2 * usual, words[0], words[-1]
    second = words[1] if len(words) > 1 else None
    if first.end - last > 4 * usual and (
        first.end - first.start > longest or (second is not None and second.end - first.start > 2 * longest)
    ):
        if second is not None and second.end - second.start > longest:
            first.end = second.start = max(second.end / 2, second.end - longest)
        first.start = max(0.0, first.end - longest)
    if segment.start < first.end and segment.start - 0.5 > first.start:
        first.start = max(0.0, min(first.end - usual, segment.start))
    else:
        segment.start = first.start
    if segment.end > final.start and segment.end + 0.5 < final.end:
        final.end = max(final.start + usual, segment.end)
    else:
        segment.end = final.end
    return segment.end
