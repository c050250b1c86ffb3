"""Whole recordings: segments, words and the walk through them are openai/whisper's; the rest by its own rules."""

from __future__ import annotations

import itertools
import sys
import tracemalloc

import numpy as np
import pytest

import zoo
from zoo.core.errors import DataError, ZooError
from zoo.whisper import batched
from zoo.whisper.audio import HOP
from zoo.whisper.decoding import Result
from zoo.whisper.recording import Samples
from zoo.whisper.segment import split
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.transcribe import Options, State, clips_of, transcribe, windows
from zoo.whisper.window import Ear, Window

FRAMES = 200


def speech(seconds, seed=0):
    n = round(16000 * seconds)
    swell = 1 + np.sin(np.arange(n) / 3000) + 0.3 * np.sin(np.arange(n) / 700)
    return (np.random.default_rng(seed).normal(0, 0.1, n) * swell).astype(np.float32)


class TheirEar(Ear):
    """Features as openai/whisper makes them: of the whole file at once, 0 behind its end."""

    def __init__(self, mel, content):
        self.mel, self.content = mel, content

    def hear(self, seek, most):
        size = max(min(most, self.content - seek), 0)
        features = np.zeros((FRAMES, 80), np.float32)
        features[:size] = self.mel[seek : seek + size]
        return size, features


PLAIN = {"compression_ratio_threshold": None, "logprob_threshold": None, "temperature": 0.0}
CASES = {
    "greedy": {},
    "beam, windows by themselves": {"beam_size": 3, "condition_on_previous_text": False},
    "thresholds, at one temperature": {"compression_ratio_threshold": 1.5, "logprob_threshold": -1.2,
                                       "no_speech_threshold": 0.002},
    "words": {"word_timestamps": True},
    "words, beam": {"word_timestamps": True, "beam_size": 2, "task": "translate"},
    "hallucinations": {"word_timestamps": True, "hallucination_silence_threshold": 0.2},
    "hallucinations, longer silence": {"word_timestamps": True, "hallucination_silence_threshold": 0.7},
    "clips": {"clip_timestamps": [1.0, 3.5, 6.0]},
    "a prompt": {"initial_prompt": "names: zoo"},
    "a prompt before every window": {"initial_prompt": "names: zoo", "carry_initial_prompt": True},
    "no timestamps": {"without_timestamps": True, "initial_prompt": "abc"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_segments_are_openais(openai, name):
    pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    theirs, reference, model, _ = openai
    given = {**PLAIN, **CASES[name]}
    clips = given.pop("clip_timestamps", [0.0])
    options = {key: value for key, value in given.items() if key != "beam_size"}
    ours = Options(language="de", beam_size=given.get("beam_size", 1), **options,
                   clips=tuple(itertools.zip_longest(clips[::2], clips[1::2])))  # fmt: skip
    audio = speech(9.5, seed=1)
    mel = theirs.audio.log_mel_spectrogram(audio, 80, padding=320 * 100)
    heard, decode = [], type(reference).decode

    def recorded(self, segment, options):
        heard.append(segment.numpy().copy())
        return decode(self, segment, options)

    type(reference).decode = recorded
    try:
        expected = sys.modules["whisper.transcribe"].transcribe(
            reference, audio, language="de", fp16=False, clip_timestamps=clips, **given
        )
    finally:
        type(reference).decode = decode
    ear = TheirEar(mel.numpy().T, mel.shape[-1] - FRAMES)
    found = list(windows(model, Samples(audio), ours, ear=ear))
    assert len(found) == len(heard) > 2
    for window, features in zip(found, heard, strict=True):  # the same place in the recording
        assert np.array_equal(ear.hear(window.seek, window.size)[1].T, features)
    segments = [segment for window in found for segment in window.segments]
    wanted = [one for one in expected["segments"] if one["text"].strip()]
    assert [one.tokens for one in segments] == [one["tokens"] for one in wanted]
    for one, other in zip(segments, wanted, strict=True):
        assert (one.start, one.end) == pytest.approx((other["start"], other["end"]), abs=0.006)
        assert one.avg_logprob == pytest.approx(other["avg_logprob"], abs=1e-4)
        for word, reported in zip(one.words or (), other.get("words", ()), strict=True):
            assert word.word == reported["word"]
            assert (word.start, word.end) == pytest.approx((reported["start"], reported["end"]), abs=0.006)  # rounded
            assert word.probability == pytest.approx(reported["probability"], abs=1e-4)
    assert bool(segments) or "hallucinations" in name


# --- without it -------------------------------------------------------------------------------------------------------

BEGIN = 100


@pytest.mark.parametrize(
    ("tokens", "pieces", "advance", "ended"),
    [
        # two pieces, and a third that is unfinished
        ([100, 1, 110, 110, 2, 130, 135, 3], [(0, 0.2, 3), (0.2, 0.6, 3)], 60, False),
        # the last is ended by a single timestamp: nothing more is said in the window
        ([100, 1, 110, 110, 2, 130], [(0, 0.2, 3), (0.2, 0.6, 3)], 200, True),
        # one piece
        ([105, 1, 2, 130], [(0, 0.6, 4)], 200, True),
        ([100, 1, 2], [(0, 2.0, 3)], 200, False),
        ([1, 2], [(0, 2.0, 2)], 200, False),
        ([], [(0, 2.0, 0)], 200, False),
    ],
)
def test_a_window_is_cut_at_pairs_of_timestamps(tokens, pieces, advance, ended):
    found, next, single = split(tokens, BEGIN, 200)
    assert [(one.start, pytest.approx(one.end), len(one.tokens)) for one in found] == pieces
    assert (next, single) == (advance, ended)


def test_where_no_other_window_will_hear_the_unfinished_piece_it_is_one():
    found, _, _ = split([100, 1, 110, 110, 2, 130, 135, 3], BEGIN, 200, whole=True)
    assert [(one.start, one.end) for one in found] == [(0, 0.2), (0.2, 0.6), (0.7000000000000001, 2.0)]
    found, _, _ = split([100, 1, 110, 110], BEGIN, 200, whole=True)  # a timestamp, and no text
    assert len(found) == 1


def result(**values):
    base = {"tokens": [], "text": "", "language": "en", "temperature": 0.0, "avg_logprob": -0.5,
            "no_speech_prob": 0.0, "compression_ratio": 1.0}  # fmt: skip
    return Result(**{**base, **values})


def test_why_a_window_is_tried_again_or_skipped():
    options = Options()
    assert options.reasons(result()) == []
    assert options.reasons(result(compression_ratio=3.1)) == ["compression 3.10 > 2.40"]
    assert options.reasons(result(avg_logprob=-1.3)) == ["log probability -1.30 < -1.00"]
    assert len(options.reasons(result(avg_logprob=-1.3, compression_ratio=3.0))) == 2
    assert options.reasons(result(avg_logprob=-1.3, no_speech_prob=0.9)) == []  # silence is not tried again
    assert options.silence(result(no_speech_prob=0.9, avg_logprob=-1.3)) == "no speech 0.90 > 0.60"
    assert options.silence(result(no_speech_prob=0.9, avg_logprob=-0.3)) == ""
    assert options.silence(result(no_speech_prob=0.1, avg_logprob=-1.3)) == ""
    off = Options(compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None)
    worst = result(avg_logprob=-9.0, compression_ratio=9.0, no_speech_prob=1.0)
    assert off.reasons(worst) == [] and off.silence(worst) == ""


@pytest.fixture(scope="module")
def model(tiny):
    return zoo.load(str(tiny), device="cpu").prepare()


def test_each_temperature_is_tried_until_one_is_good_enough(model):
    audio = speech(6)
    found = list(windows(model, Samples(audio), Options(language="ja", beam_size=1, best_of=2)))
    tried = [[attempt.temperature for attempt in window.attempts] for window in found]
    assert all(temperatures == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0][: len(temperatures)] for temperatures in tried)
    assert any(len(temperatures) > 1 for temperatures in tried)
    for window in found:
        *failed, last = window.attempts
        assert all(attempt.why for attempt in failed) and (not last.why or last.temperature == 1.0)
    never = Options(language="ja", beam_size=1, logprob_threshold=-100.0, compression_ratio_threshold=None)
    assert all(len(window.attempts) == 1 for window in windows(model, Samples(audio), never))


def test_text_of_a_high_temperature_is_no_context(model):
    state, options = State(tokens=[1, 2]), Options()
    for temperature, reset in ((0.4, 0), (0.6, 8)):
        segment = zoo.whisper.segment.Segment(0, 1, " a", [3, 4, 5])
        window = Window(0, 200, "en", next=150, segments=[segment],
                        attempts=[zoo.whisper.window.Attempt(temperature)])  # fmt: skip
        state.seen(window, options)
        assert state.reset == reset and state.seek == 150
    state.seen(Window(150, 200, "en", next=350, skipped="no speech", attempts=window.attempts), options)
    assert state.seek == 350 and len(state.tokens) == 8


def test_a_run_that_goes_on_gives_what_one_run_gives(model):
    audio, options = speech(9.5), Options(beam_size=2, best_of=2, word_timestamps=True, initial_prompt="so")
    whole = list(windows(model, Samples(audio), options))
    for known in (1, 3):
        state = State(tokens=Tokenizer.of(model).encode(" so"))
        for window in whole[:known]:
            state.seen(Window.from_json(window.to_json()), options)
        rest = list(windows(model, Samples(audio), options, state=state))
        assert [one.to_json() for one in rest] == [one.to_json() for one in whole[known:]]


def test_transcribe_is_a_generator_of_segments(model, recording):
    segments = model.transcribe(recording, language="en", beam_size=1, temperature=0.0)
    first = next(segments)
    assert first.text and 0 <= first.start < first.end
    samples = transcribe(model, speech(9.5), language="en", beam_size=1, temperature=0.0)
    assert abs(next(samples).start - first.start) < 0.5  # 16 bits are almost the same sound
    with pytest.raises(DataError, match="there is no such file"):
        model.transcribe("nowhere.wav")
    for wrong in ({"beam_size": 0}, {"temperature": ()}, {"hallucination_silence_threshold": 1.0}):
        with pytest.raises(ZooError, match="cannot"):
            model.transcribe(recording, **wrong)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 16000 * 2, 16000 * 2 + 1])
def test_recordings_of_any_length_end(model, samples):
    found = list(windows(model, Samples(speech(3)[:samples]), Options(language="en", beam_size=1, temperature=0.0)))
    assert bool(found) == (samples >= HOP)
    assert all(window.next > window.seek for window in found)
    silent = np.zeros(samples, np.float32)
    assert len(list(windows(model, Samples(silent), Options(language="en", beam_size=1, temperature=0.0)))) < 60


def test_memory_does_not_grow_with_the_recording(model):
    class Endless:
        """Two hours that are made when they are read."""

        duration = 7200.0

        def read(self, start, count):
            return np.full(max(min(count, 7200 * 16000 - start), 0), 0.01, np.float32)

    options = Options(language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False)
    peaks = []
    for clips in (((0.0, 4.0),), ((7000.0, 7004.0),), ((0.0, 24.0),)):
        tracemalloc.start()
        count = sum(1 for _ in windows(model, Endless(), Options(**{**vars(options), "clips": clips})))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count >= 2
    assert max(peaks) < 1.1 * min(peaks) + 300_000  # 24 s of samples alone are 1.5 MB


def test_what_may_be_speech_is_heard_alone(model):
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 1e-4, 16000 * 60).astype(np.float32)
    for second in (10, 13, 30, 31):
        sound[16000 * second : 16000 * second + 8000] += speech(0.5, seed=second)
    spans = clips_of(Samples(sound), Options(vad=True), 3000)
    assert len(spans) == 1 and 9 < spans[0][0] < 10 and 31 < spans[0][1] < 32.5
    spans = clips_of(Samples(sound), Options(vad=True), FRAMES)
    assert [round(start) for start, _ in spans] == [10, 13, 30] and clips_of(Samples(sound), Options(), 3000) == (
        (0.0, None),
    )
    spans = clips_of(Samples(sound), Options(vad=True, clips=((0.0, 12.0), (13.2, 30.2))), FRAMES)
    assert [(round(start, 1), round(end, 1)) for start, end in spans[1:]] == [
        (13.2, spans[1][1].__round__(1)),
        (spans[2][0].__round__(1), 30.2),
    ]
    options = Options(vad=True, language="en", beam_size=1, temperature=0.0)
    for found in (
        list(windows(model, Samples(sound), options)),
        list(batched.windows(model, Samples(sound), options, 4)),
    ):
        assert found and all(9 < window.start < 32.5 for window in found)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_windows_in_batches_are_as_each_alone(model):
    audio, options = speech(9.5), Options(language="ja", beam_size=2, best_of=2, word_timestamps=True)
    alone, together = (list(batched.windows(model, Samples(audio), options, count)) for count in (1, 3))
    assert [(one.seek, one.next) for one in alone] == [(one.seek, one.next) for one in together]
    for one, other in zip(alone, together, strict=True):
        assert [s.tokens for s in one.segments] == [s.tokens for s in other.segments]
        assert [[w.word for w in s.words] for s in one.segments] == [[w.word for w in s.words] for s in other.segments]
        assert [attempt.temperature for attempt in one.attempts] == [attempt.temperature for attempt in other.attempts]
    assert any(len(one.attempts) > 1 for one in alone) and any(one.segments for one in alone)
    state = State()
    state.seen(together[1], options)
    rest = list(batched.windows(model, Samples(audio), options, 3, state=state))
    assert [(one.seek, one.next) for one in rest] == [(one.seek, one.next) for one in together[2:]]


def test_windows_are_cut_where_it_is_quiet():
    sound = np.ones(16000 * 5, np.float32)
    sound[round(1.75 * 16000) : round(1.87 * 16000)] = 0.1
    found = list(batched.cuts(Samples(sound), ((0.0, None),), FRAMES))
    assert 175 <= found[0][1] <= 187
    assert found[0][0] == 0 and found[-1][1] == 500
    assert all(a[1] == b[0] and 160 <= a[1] - a[0] <= 200 for a, b in itertools.pairwise(found))
    spans = list(batched.cuts(Samples(sound), ((0.5, 1.0), (3.0, 10.0)), FRAMES, seek=70))
    assert spans[0] == (70, 100) and spans[1][0] == 300 and spans[-1][1] == 500


def test_what_batches_cannot_do(model):
    for options, batch in ((Options(), 0), (Options(carry_initial_prompt=True), 2)):
        with pytest.raises(ZooError):
            next(batched.windows(model, Samples(speech(1)), options, batch))
