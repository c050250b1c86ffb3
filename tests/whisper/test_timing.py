"""Times of words: the way through a matrix against all ways and openai/whisper's, the rest against openai/whisper's."""

from __future__ import annotations

import copy
import itertools
import sys
import time

import numpy as np
import pytest

import zoo
from zoo.whisper import timing
from zoo.whisper.segment import Segment
from zoo.whisper.timing import Timing, dtw, median_filter, merge_punctuation, shorten_at_sentence_ends
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.window import Window, encode


def cheapest(cost):
    """The least total of all ways, by looking at every one."""
    N, M = cost.shape
    found = [np.inf]

    def walk(i, j, total):
        total += cost[i, j]
        if (i, j) == (N - 1, M - 1):
            found[0] = min(found[0], total)
        for down, right in ((1, 0), (0, 1), (1, 1)):
            if i + down < N and j + right < M:
                walk(i + down, j + right, total)

    walk(0, 0, 0.0)
    return found[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 4), (5, 5), (6, 4)])
def test_the_way_is_the_cheapest_of_all(shape):
    rng = np.random.default_rng(0)
    for _ in range(5):
        cost = rng.normal(size=shape)
        rows, columns = dtw(cost)
        assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, shape[0] - 1, shape[1] - 1)
        steps = set(zip(np.diff(rows).tolist(), np.diff(columns).tolist(), strict=True))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        # totals are float32
        assert cost[rows, columns].sum() == pytest.approx(cheapest(cost), abs=1e-5)


def openai_timing():
    pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    pytest.importorskip("whisper", reason="openai-whisper is not installed; it is the reference")
    return sys.modules["whisper.timing"]


@pytest.mark.parametrize("shape", [(1, 1), (7, 50), (50, 7), (40, 200)])
def test_the_way_is_openais_ties_included(shape):
    theirs = openai_timing()
    rng = np.random.default_rng(1)
    pure = theirs.dtw_cpu.py_func if hasattr(theirs.dtw_cpu, "py_func") else theirs.dtw_cpu
    for cost in (rng.normal(size=shape), rng.integers(0, 3, shape).astype(float), np.zeros(shape)):
        assert np.array_equal(np.array(dtw(cost)), pure(cost))


def test_a_long_window_takes_a_moment():
    start = time.perf_counter()
    rows, _ = dtw(np.random.default_rng(0).normal(size=(224, 1500)))
    assert rows[-1] == 223 and time.perf_counter() - start < 2  # 0.03 s; element by element, Python takes 3 s


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9])
def test_medians(width):
    x = np.random.default_rng(2).integers(0, 9, (3, 4, 20)).astype(np.float32)
    half = width // 2
    padded = np.pad(x, [(0, 0), (0, 0), (half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    assert np.array_equal(median_filter(x, width), np.median(windows, axis=-1))
    short = x[..., : max(half, 1)]
    assert np.array_equal(median_filter(short, width), short)


WORDS = [" Hello", ",", ' "', "you", '"', " (", "there", ")", ".", " -", "yes", "!", " No", " ¿", "que", "?", " end"]


def test_punctuation_goes_where_openais_goes():
    theirs = openai_timing()
    rng = np.random.default_rng(3)
    for _ in range(50):
        words = list(rng.choice(WORDS, size=int(rng.integers(1, 12))))
        ours = [Timing(word, [i], i, i + 1, 0.5) for i, word in enumerate(words)]
        others = [theirs.WordTiming(word, [i], i, i + 1, 0.5) for i, word in enumerate(words)]
        merge_punctuation(ours)
        theirs.merge_punctuations(others, "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")
        assert [(one.word, one.tokens) for one in ours] == [(one.word, one.tokens) for one in others]


def test_punctuation_by_hand():
    words = [" Hello", ",", ' "', "you", '"', "!"]
    timings = [Timing(word, [i], i, i + 1, 0.5) for i, word in enumerate(words)]
    merge_punctuation(timings)
    assert [one.word for one in timings if one.word] == [" Hello,", ' "you"!']
    assert [one.tokens for one in timings if one.word] == [[0, 1], [2, 3, 4, 5]]


def test_a_pause_between_sentences_belongs_to_no_word():
    timings = [Timing(" one", [1], 0.0, 0.4, 1), Timing(".", [2], 0.4, 3.0, 1), Timing(" Two", [3], 3.0, 6.0, 1)]
    shorten_at_sentence_ends(timings, 0.8)
    assert [(one.start, one.end) for one in timings] == [(0.0, 0.4), (0.4, 1.2000000000000002), (5.2, 6.0)]


def test_heads_are_those_of_the_file_else_the_upper_half(tiny):
    model = zoo.load(str(tiny), device="numpy")
    assert timing.alignment_heads(model) == [(1, 0), (1, 1)]


def test_segments_and_words_are_openais(openai, monkeypatch):
    """Made-up alignments, so that every rule of the clean-up comes into play; whole transcriptions are compared in
    test_transcribe.py."""
    _, _, model, _ = openai
    theirs, tokenizer = sys.modules["whisper.timing"], Tokenizer.of(model)
    rng = np.random.default_rng(5)
    moved = 0
    for _ in range(60):
        lengths = rng.choice([0.0, 0.1, 0.3, 0.5, 2.0, 4.0], size=int(rng.integers(1, 9)))
        ends = np.cumsum(lengths) + rng.choice([0.0, 1.5])
        words = list(rng.choice(WORDS, size=len(ends)))
        made = [(word, [97 + i], end - length, end, 0.5) for i, (word, length, end) in
                enumerate(zip(words, lengths, ends, strict=True))]  # fmt: skip
        cut = int(rng.integers(0, len(made)))
        spans = [(0, cut), (cut, len(made))] if cut else [(0, len(made))]
        seek, last = int(rng.integers(0, 3)) * 100, float(rng.choice([0.0, 0.5]))
        parts = []
        for a, b in spans:
            start = seek / 100 + made[a][2] + float(rng.choice([-0.6, 0.0, 0.7]))
            end = seek / 100 + made[b - 1][3] + float(rng.choice([-0.7, 0.0, 0.6]))
            parts.append((round(start, 2), round(end, 2), [267, *range(97 + a, 97 + b), 270]))
        expected = [{"seek": seek, "start": a, "end": b, "tokens": tokens} for a, b, tokens in copy.deepcopy(parts)]
        ours = [Segment(a, b, "", tokens) for a, b, tokens in copy.deepcopy(parts)]
        monkeypatch.setattr(
            theirs,
            "find_alignment",
            lambda *_, made=made, **__: [theirs.WordTiming(*copy.deepcopy(one)) for one in made],
        )
        monkeypatch.setattr(timing, "align", lambda *_, made=made, **__: [Timing(*copy.deepcopy(one)) for one in made])
        theirs.add_word_timestamps(segments=expected, model=None, tokenizer=tokenizer, mel=None, num_frames=200,
                                   last_speech_timestamp=last)  # fmt: skip
        window = Window(seek, 200, "en", last_speech=last)
        timing.add_word_timestamps(ours, model, tokenizer, None, window, language="en", task="transcribe")
        found = [(one.start, one.end, *((w.word, w.start, w.end) for w in one.words)) for one in ours]
        wanted = [
            (round(one["start"], 2), round(one["end"], 2),
             *((w["word"], round(w["start"], 2), round(w["end"], 2)) for w in one["words"]))
            for one in expected
        ]  # fmt: skip
        assert found == wanted
        moved += any(one.start != a for one, (a, _, _) in zip(ours, parts, strict=True))
    assert moved > 10


def test_words_of_a_window(tiny):
    model = zoo.load(str(tiny), device="numpy")
    tokenizer = Tokenizer.of(model)
    features = np.random.default_rng(0).normal(0, 0.5, (200, 80)).astype(np.float32)
    encoded = encode(model, [features])
    tokens = tokenizer.encode(" so it is")
    found = timing.align(model, tokenizer, tokens, encoded, 150, language="en", task="transcribe")
    assert [one.word for one in found] == [" so", " it", " is"]
    assert all(0 <= one.start <= one.end <= 1.5 and 0 < one.probability < 1 for one in found)
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    assert timing.align(model, tokenizer, [], encoded, 150, language="en", task="transcribe") == []
    # a head that looks at nothing in particular has no deviation, and says nothing
    assert not timing.followed(np.full((2, 3, 20), 0.05, np.float32)).any()
