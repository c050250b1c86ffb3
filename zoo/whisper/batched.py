"""Several windows at once: the decoder's weights are read once for all of them.

Windows must then be known before they are heard: they are cut where it is quietest, or where nobody speaks, and none
sees the text of the one before it. What was unfinished at the end of a window stays as it is
(faster-whisper: BatchedInferencePipeline).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from zoo.core import ops
from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.whisper.audio import HOP
from zoo.whisper.cache import Cache
from zoo.whisper.decoding import Result, decode, detect_language, sot_sequence
from zoo.whisper.model import Whisper
from zoo.whisper.segment import split
from zoo.whisper.timing import add_word_timestamps, end_of
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.transcribe import Options, State, clips_of, segment_of
from zoo.whisper.window import RATE, Attempt, Audio, Ear, Window, encode

SEARCHED = 5
"""The last fifth of a window is searched for a quiet place."""
QUIET = 30
"""Frames over which loudness is measured: 0.3 s, a pause between words."""


def windows(
    model: Whisper, recording: Audio, options: Options, batch: int, *, tokenizer: Tokenizer | None = None,
    state: State | None = None,
) -> Iterator[Window]:  # fmt: skip
    """As `transcribe.windows`, `batch` windows at a time."""
    if batch < 1:
        raise ZooError(f"cannot hear {batch} windows at once", "--batch counts them", "Give 8, say.")
    if options.hallucination_silence_threshold is not None or options.carry_initial_prompt:
        why = "windows that are heard at once know nothing of each other"
        raise ZooError("cannot do that in batches", why, "Leave --batch out.")
    config = model.config
    tokenizer, state = tokenizer or Tokenizer.of(model), state or State()
    ear = Ear(recording, config.frames, config.num_mel_bins)
    prompt = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
    state.language = state.language or options.language or (None if tokenizer.multilingual else "en")
    if state.language is not None:
        sot_sequence(tokenizer, state.language, options.task)
    options = replace(options, condition_on_previous_text=False)
    spans = cuts(recording, clips_of(recording, options, config.frames), config.frames, state.seek)
    while group := list(islice(spans, batch)):
        encoded = encode(model, [ear.hear(start, end - start)[1] for start, end in group])
        if state.language is None:
            shares = detect_language(model, _row(encoded, 0), tokenizer)[0]
            state.language = max(shares, key=shares.__getitem__)
        found = [Window(start, end - start, state.language, next=end) for start, end in group]
        results = _with_fallback(model, tokenizer, encoded, found, options, prompt)
        for i, (window, result) in enumerate(zip(found, results, strict=True)):
            _fill(model, tokenizer, _row(encoded, i), window, result, state, options)
            state.seen(window, options)
            yield window


def cuts(
    recording: Audio, clips: Iterable[tuple[float, float | None]], frames: int, seek: int = 0
) -> Iterator[tuple[int, int]]:
    """(start, end) of windows of at most `frames` frames, cut where it is quietest, from frame `seek` on."""
    for start, end in clips:
        at = max(seek, round(start * RATE))
        while end is None or at < round(end * RATE):
            samples = recording.read(at * HOP, frames * HOP)
            size = len(samples) // HOP
            if end is not None:
                size = min(size, round(end * RATE) - at)
            if size < 1:
                break
            length = size if size < frames else quietest(samples, frames)
            yield at, at + length
            at += length


def quietest(samples: np.ndarray, frames: int) -> int:
    """The frame at which a full window is cut: the middle of the quietest QUIET frames in its last part."""
    first = frames - frames // SEARCHED
    power = np.square(samples[first * HOP : frames * HOP], dtype=np.float64).reshape(-1, HOP).mean(axis=1)
    total = np.cumsum([0.0, *power])
    width = min(QUIET, len(power))
    sums = total[width:] - total[:-width]
    return first + int(sums.argmin()) + width // 2


def _with_fallback(
    model: Whisper, tokenizer: Tokenizer, encoded: Tensor, found: Sequence[Window], options: Options,
    prompt: Sequence[int],
) -> list[Result]:  # fmt: skip
    """Each temperature is tried on those windows only whose text was not good enough at the one before."""
    base = replace(options.decoding(), language=found[0].language, prompt=prompt)
    results: dict[int, Result] = {}
    left = list(range(len(found)))
    for temperature in options.temperatures:
        heard = encoded if len(left) == len(found) else _rows(encoded, left)
        places = [found[i].seek for i in left]
        settings = replace(base, temperature=float(temperature))
        cache = Cache(model, heard, capacity=model.config.max_target_positions)
        some = decode(model, heard, settings, tokenizer=tokenizer, cache=cache, places=places)
        results.update(zip(left, some, strict=True))
        why = {i: " and ".join(options.reasons(results[i])) for i in left}
        for i in left:
            found[i].attempts.append(Attempt(float(temperature), why[i]))
        left = [i for i in left if why[i]]
        if not left:
            break
    return [results[i] for i in range(len(found))]


def _fill(
    model: Whisper, tokenizer: Tokenizer, encoded: Tensor, window: Window, result: Result, state: State,
    options: Options,
) -> None:  # fmt: skip
    window.last_speech = state.last_speech
    window.skipped = options.silence(result)
    if window.skipped:
        return
    pieces, _, _ = split(result.tokens, tokenizer.timestamp_begin, window.size, whole=True)
    window.segments = [segment_of(tokenizer, window, piece.start, piece.end, piece.tokens, result) for piece in pieces]
    if options.word_timestamps:
        add_word_timestamps(
            window.segments, model, tokenizer, encoded, window, language=window.language, task=options.task
        )
        end = end_of(window.segments)
        window.last_speech = window.last_speech if end is None else end
    window.segments = [one for one in window.segments if one.start != one.end and one.text.strip()]


def _row(encoded: Tensor, i: int) -> Tensor:
    return encoded[i : i + 1]


def _rows(encoded: Tensor, indices: Sequence[int]) -> Tensor:
    device = encoded.device
    return ops.take(encoded, Tensor(device.from_host(np.asarray(indices, np.int32)), device))
