"""From a recording to segments: window after window, each beginning where the last text ended
(openai/whisper: whisper/transcribe.py).

A generator: segments come when they are found, whoever asks may stop, and memory does not grow with the recording.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.whisper import vad
from zoo.whisper.cache import Cache
from zoo.whisper.decoding import DecodingOptions, Result, decode, detect_language, sot_sequence
from zoo.whisper.hallucination import without_hallucinations
from zoo.whisper.model import Whisper
from zoo.whisper.recording import Recording, Samples
from zoo.whisper.segment import Segment, split
from zoo.whisper.timing import add_word_timestamps, end_of
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.window import RATE, Attempt, Audio, Ear, Window, encode

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RESET = 0.5
"""Temperature above which a window's text is too uncertain to be the next one's context."""


@dataclass(frozen=True)
class Options:
    """How a recording is transcribed; names and defaults are those of openai/whisper's command."""

    language: str | None = None
    """Code; None: the likeliest for the first window."""
    task: str = "transcribe"
    temperature: float | Sequence[float] = TEMPERATURES
    """Tried one after the other until a text is good enough."""
    beam_size: int = 5
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float | None = None
    compression_ratio_threshold: float | None = 2.4
    """Above it a text repeats itself, and the next temperature is tried."""
    logprob_threshold: float | None = -1.0
    """Below it (mean of tokens) a text is too unsure, and the next temperature is tried."""
    no_speech_threshold: float | None = 0.6
    """Above it, where the text is unsure too, a window is silence."""
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    """What could have been said before: names, spelling, style."""
    carry_initial_prompt: bool = False
    """It is said before every window, not the first alone."""
    word_timestamps: bool = False
    clips: Sequence[tuple[float, float | None]] = ((0.0, None),)
    """Spans to transcribe, in seconds; None: to the end."""
    vad: bool = False
    """Only what stands out from the background is heard (zoo/whisper/vad.py)."""
    hallucination_silence_threshold: float | None = None
    """Silence of more seconds around words that are hardly there is skipped; needs word_timestamps."""
    without_timestamps: bool = False
    suppress_tokens: Sequence[int] | None = None
    max_tokens: int | None = None
    """Of a window."""
    seed: int = 0

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (self.temperature,) if isinstance(self.temperature, (int, float)) else tuple(self.temperature)

    def decoding(self) -> DecodingOptions:
        """The part that concerns one window. Raises ZooError for values that make no sense."""
        names = ("language", "task", "beam_size", "best_of", "patience", "length_penalty", "without_timestamps",
                 "suppress_tokens", "max_tokens", "seed")  # fmt: skip
        if not self.temperatures:
            raise ZooError("cannot decode like that", "there is no temperature", "Give at least one, 0.0 say.")
        if self.hallucination_silence_threshold is not None and not self.word_timestamps:
            why = "only with the times of words can it be told where nobody speaks"
            raise ZooError("cannot skip silence around hallucinations", why, "Ask for word timestamps too.")
        return DecodingOptions(**{name: getattr(self, name) for name in names})

    def reasons(self, result: Result) -> list[str]:
        """Why a text is not good enough; nothing where it is, or where nobody speaks."""
        found = []
        most, least = self.compression_ratio_threshold, self.logprob_threshold
        if most is not None and result.compression_ratio > most:
            found.append(f"compression {result.compression_ratio:.2f} > {most:.2f}")
        if least is not None and result.avg_logprob < least:
            if self.no_speech_threshold is not None and result.no_speech_prob > self.no_speech_threshold:
                return []
            found.append(f"log probability {result.avg_logprob:.2f} < {least:.2f}")
        return found

    def silence(self, result: Result) -> str:
        """Why a window counts as silence, or nothing."""
        if self.no_speech_threshold is None or result.no_speech_prob <= self.no_speech_threshold:
            return ""
        if self.logprob_threshold is not None and result.avg_logprob > self.logprob_threshold:
            return ""
        return f"no speech {result.no_speech_prob:.2f} > {self.no_speech_threshold:.2f}"


@dataclass
class State:
    """What one window hands to the next. `seen` brings it on, so windows of an earlier run can too."""

    seek: int = 0
    language: str | None = None
    tokens: list[int] = field(default_factory=list)
    """Of all text up to now."""
    reset: int = 0
    """Those before it are no context any more."""
    last_speech: float = 0.0

    def seen(self, window: Window, options: Options) -> None:
        self.seek, self.language, self.last_speech = window.next, window.language, window.last_speech
        if window.skipped:
            return
        self.tokens += [token for segment in window.segments for token in segment.tokens]
        if not options.condition_on_previous_text or window.temperature > RESET:
            self.reset = len(self.tokens)


def transcribe(
    model: Whisper, audio: str | os.PathLike[str] | np.ndarray | Audio, options: Options | None = None, **settings: Any
) -> Iterator[Segment]:
    """Segments of a recording, as they are found.

    audio: a file, "-" for standard input, samples (n,) float32 at 16 kHz, or an open recording
    options, or its fields by name: `transcribe(model, "talk.flac", language="en", word_timestamps=True)`
    Raises DataError for what is no recording, ZooError for options that make no sense or that the model cannot follow.
    """
    options = replace(options or Options(), **settings)
    options.decoding()  # what is wrong with them is said now, not when the first segment is asked for
    recording = opened(audio)
    return (segment for window in windows(model, recording, options) for segment in window.segments)


def opened(audio: str | os.PathLike[str] | np.ndarray | Audio) -> Audio:
    if isinstance(audio, np.ndarray):
        return Samples(audio)
    return Recording(audio) if isinstance(audio, (str, os.PathLike)) else audio


def windows(
    model: Whisper,
    recording: Audio,
    options: Options,
    *,
    tokenizer: Tokenizer | None = None,
    state: State | None = None,
    ear: Ear | None = None,
) -> Iterator[Window]:
    """The same, window by window: with what was tried, what was skipped, and how far the recording is heard.

    state: what windows of an earlier run left (`State.seen`): this goes on behind them
    """
    config = model.config
    tokenizer = tokenizer or Tokenizer.of(model)
    ear = ear or Ear(recording, config.frames, config.num_mel_bins)
    state = state or State()
    initial = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
    state.tokens = state.tokens or list(initial)
    if state.language is None:
        state.language = options.language or (None if tokenizer.multilingual else "en")
    if state.language is not None:
        sot_sequence(tokenizer, state.language, options.task)
    for start, end in clips_of(recording, options, config.frames):
        stop = sys.maxsize if end is None else round(end * RATE)
        state.seek = max(state.seek, round(start * RATE))
        while state.seek < stop:
            size, features = ear.hear(state.seek, min(config.frames, stop - state.seek))
            if not size:
                break
            encoded = encode(model, [features])
            cache = Cache(model, encoded, capacity=config.max_target_positions)
            if state.language is None:
                shares = detect_language(model, cache, tokenizer)[0]
                state.language = max(shares, key=shares.__getitem__)
            window = Window(state.seek, size, state.language)
            context = _context(state, options, initial, config.max_target_positions // 2 - 1)
            _decode(model, tokenizer, encoded, cache, window, state, options, context, recording.duration)
            state.seen(window, options)
            yield window


def clips_of(recording: Audio, options: Options, frames: int) -> Sequence[tuple[float, float | None]]:
    """The spans to transcribe. With `vad`, what may be speech in them: spans beside each other that fit into one
    window of `frames` frames become one, since a window takes its time however much of it is silence."""
    if not options.vad:
        return options.clips
    found: list[tuple[float, float | None]] = []
    for first, last in options.clips:
        fresh = True
        for start, stop in vad.spans(recording):
            begin, end = max(start, first), stop if last is None else min(stop, last)
            if begin >= end:
                continue
            if not fresh and end - found[-1][0] <= frames / RATE:
                begin = found.pop()[0]
            found.append((begin, end))
            fresh = False
    return found


def _context(state: State, options: Options, initial: Sequence[int], room: int) -> list[int]:
    if options.carry_initial_prompt:
        said = state.tokens[max(len(initial), state.reset) :]
        return [*initial, *said[-(room - len(initial)) :]] if len(initial) < room else list(initial)
    return state.tokens[state.reset :]


def _decode(
    model: Whisper, tokenizer: Tokenizer, encoded: Tensor, cache: Cache, window: Window, state: State,
    options: Options, context: Sequence[int], duration: float | None,
) -> None:  # fmt: skip
    """Fills in what is heard in a window."""
    result = _with_fallback(model, tokenizer, encoded, cache, window, options, context)
    window.next = window.seek + window.size
    window.last_speech = state.last_speech
    window.skipped = options.silence(result)
    if window.skipped:
        return
    pieces, advance, ended = split(result.tokens, tokenizer.timestamp_begin, window.size)
    window.next = window.seek + advance
    window.segments = [segment_of(tokenizer, window, piece.start, piece.end, piece.tokens, result) for piece in pieces]
    if options.word_timestamps:
        add_word_timestamps(
            window.segments, model, tokenizer, encoded, window, language=window.language, task=options.task
        )
        end = end_of(window.segments)
        if not ended and end is not None and end > window.start:
            window.next = round(end * RATE)
        if options.hallucination_silence_threshold is not None:
            threshold = options.hallucination_silence_threshold
            without_hallucinations(window, threshold, state.last_speech, ended, model.config.frames, duration)
        end = end_of(window.segments)
        window.last_speech = state.last_speech if end is None else end
    window.segments = [one for one in window.segments if one.start != one.end and one.text.strip()]


def _with_fallback(
    model: Whisper, tokenizer: Tokenizer, encoded: Tensor, cache: Cache, window: Window, options: Options,
    context: Sequence[int],
) -> Result:  # fmt: skip
    base = replace(options.decoding(), language=window.language, prompt=context)
    for temperature in options.temperatures:
        result = decode(model, encoded, replace(base, temperature=float(temperature)), tokenizer=tokenizer,
                        cache=cache, places=[window.seek])[0]  # fmt: skip
        why = " and ".join(options.reasons(result))
        window.attempts.append(Attempt(float(temperature), why))
        if not why:
            break
    return result


def segment_of(
    tokenizer: Tokenizer, window: Window, start: float, end: float, tokens: Sequence[int], result: Result
) -> Segment:
    """A piece of a window; start and end in seconds from its beginning."""
    return Segment(
        round(window.start + start, 2),
        round(window.start + end, 2),
        tokenizer.decode([token for token in tokens if token < tokenizer.eot]),
        list(tokens),
        result.temperature,
        result.avg_logprob,
        result.compression_ratio,
        result.no_speech_prob,
    )
