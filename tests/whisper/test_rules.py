"""What may be written next: against logits made by hand, openai/whisper's own classes and transformers'."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from zoo.whisper.rules import ApplyTimestampRules, SuppressBlank, SuppressTokens

EOT, NO_TIMESTAMPS, BEGIN, VOCABULARY = 20, 28, 29, 60
"""20 tokens of text, special tokens, and 31 timestamps from 29 on."""


def allowed(written, logits=None, max_initial=None):
    """Which tokens may follow."""
    logits = np.zeros((1, VOCABULARY), np.float32) if logits is None else logits.copy()
    ApplyTimestampRules(BEGIN, EOT, NO_TIMESTAMPS, max_initial).apply(logits, [written])
    return set(np.flatnonzero(np.isfinite(logits[0])).tolist())


def stamps(first, last=VOCABULARY):
    return set(range(BEGIN + first, last))


def likely(token):
    """Logits in which a text token is so likely that no timestamps' sum is above it."""
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, token] = 10
    return logits


TEXT = set(range(EOT))
SPECIAL = set(range(EOT, BEGIN)) - {NO_TIMESTAMPS}


def test_the_first_token_is_a_timestamp_within_the_limit():
    assert allowed([], likely(3)) == stamps(0)
    assert allowed([], likely(3), max_initial=5) == stamps(0, BEGIN + 6)


def test_timestamps_come_in_pairs_and_never_go_back():
    # behind the first, text; the same or an earlier one cannot come
    assert allowed([BEGIN + 2], likely(3)) == TEXT | SPECIAL
    # behind text: more text, the end, or a later timestamp
    assert allowed([BEGIN + 2, 5], likely(3)) == TEXT | SPECIAL | stamps(3)
    # behind the timestamp that ends a text: the same, or a later one, or the end, but no text
    assert allowed([BEGIN + 2, 5, BEGIN + 7], likely(EOT)) == SPECIAL | stamps(7)
    # a pair is whole: text
    assert allowed([BEGIN + 2, 5, BEGIN + 7, BEGIN + 7], likely(3)) == TEXT | SPECIAL


def test_timestamps_that_are_together_likelier_than_any_text_win():
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 4] = np.log(27.5)  # 28 timestamps are left behind the third, each of probability 1 to 27.5
    assert allowed([BEGIN + 2, 5], logits) == stamps(3)
    logits[0, 4] = np.log(28.5)
    assert allowed([BEGIN + 2, 5], logits) == TEXT | SPECIAL | stamps(3)


def test_what_is_never_written_and_what_is_not_written_first():
    logits = np.zeros((2, VOCABULARY), np.float32)
    SuppressTokens([3, 5, 5]).apply(logits, [[], []])
    SuppressBlank([1, EOT]).apply(logits, [[7], [8]])
    assert np.flatnonzero(np.isinf(logits[1])).tolist() == [3, 5]
    SuppressBlank([1, EOT]).apply(logits, [[], []])
    assert np.flatnonzero(np.isinf(logits[0])).tolist() == [1, 3, 5, EOT]


def histories(rng, rows, length):
    """Texts as the rules allow them, and some that they do not."""
    found = []
    for _ in range(rows):
        kind = rng.integers(0, 2, length)
        last, text = 0, []
        for mark in kind:
            last = int(rng.integers(last, 28)) if mark else last
            text.append(BEGIN + last if mark else int(rng.integers(0, EOT)))
        found.append(text)
    return found


@pytest.mark.parametrize("length", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("max_initial", [None, 0, 4])
def test_logits_are_those_of_openais_classes(length, max_initial):
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    theirs = pytest.importorskip("whisper.decoding", reason="openai-whisper is not installed; it is the reference")
    rng = np.random.default_rng(length)
    tokenizer = SimpleNamespace(timestamp_begin=BEGIN, eot=EOT, no_timestamps=NO_TIMESTAMPS, encode=lambda text: [1])
    for _ in range(40):
        written = histories(rng, 3, length)
        logits = rng.normal(0, 3, (3, VOCABULARY)).astype(np.float32)
        expected, tokens = torch.tensor(logits), torch.tensor([[50, *row] for row in written])
        theirs.SuppressBlank(tokenizer, 1).apply(expected, tokens)
        theirs.SuppressTokens([2, 9]).apply(expected, tokens)
        theirs.ApplyTimestampRules(tokenizer, 1, max_initial).apply(expected, tokens)
        for rule in (SuppressBlank([1, EOT]), SuppressTokens([9, 2]),
                     ApplyTimestampRules(BEGIN, EOT, NO_TIMESTAMPS, max_initial)):  # fmt: skip
            rule.apply(logits, written)
        assert np.array_equal(logits, expected.numpy())


def test_logits_are_those_of_transformers():
    """Its processor agrees where a text begins with a timestamp, which openai's rule sees to."""
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    config = transformers.GenerationConfig(eos_token_id=EOT, bos_token_id=EOT, no_timestamps_token_id=NO_TIMESTAMPS,
                                           max_initial_timestamp_index=4)  # fmt: skip
    processor = transformers.WhisperTimeStampLogitsProcessor(config, begin_index=1)
    rng = np.random.default_rng(7)
    for _ in range(100):
        length = int(rng.integers(0, 6))
        written = [[BEGIN + int(rng.integers(0, 4)), *row] for row in histories(rng, 1, length)]
        written = [[]] if not length else [[written[0][0], *(max(t, written[0][0]) if t >= BEGIN else t
                                                             for t in written[0][1:])]]  # fmt: skip
        logits = rng.normal(0, 3, (1, VOCABULARY)).astype(np.float32)
        expected = processor(torch.tensor([[50, *written[0]]]), torch.tensor(logits)).numpy()
        ApplyTimestampRules(BEGIN, EOT, NO_TIMESTAMPS, 4).apply(logits, written)
        assert np.array_equal(logits, expected)
