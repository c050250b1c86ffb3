"""`zoo run whisper`: recordings in, text out, as it is found."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from zoo.core.errors import DataError, ZooError
from zoo.whisper import batched, languages, writers
from zoo.whisper.model import Whisper
from zoo.whisper.recording import STDIN, Recording
from zoo.whisper.resume import SUFFIX, Journal, fingerprint, hash_of
from zoo.whisper.segment import Segment
from zoo.whisper.tokenizer import Tokenizer
from zoo.whisper.transcribe import TEMPERATURES, Options, State, clips_of, windows
from zoo.whisper.window import Window
from zoo.whisper.writers import clock

CLIPS = ("*.flac", "*.wav", "*.ogg", "*.mp3")


@dataclass
class Transcript:
    """What was said in a recording."""

    file: str
    language: str = ""
    segments: list[Segment] = field(default_factory=list)
    seconds: float = 0.0
    """Of the recording."""
    took: float = 0.0
    windows: int = 0
    retried: int = 0
    skipped: int = 0
    written: list[Path] = field(default_factory=list)
    streamed: bool = True
    """Its text was shown as it came (zoo/cli/console.py)."""

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()

    def to_json(self) -> dict[str, Any]:
        segments = [segment.to_json() for segment in self.segments]
        return {"file": self.file, "language": self.language, "text": self.text, "segments": segments}

    def note(self) -> str:
        rate = f", {self.seconds / self.took:.1f}x real time" if self.took and self.seconds else ""
        parts = [f"{clock(self.seconds)} of audio in {self.took:.1f} s{rate}"]
        parts += [f"{self.retried} of {self.windows} windows tried again"] if self.retried else []
        parts += [f"{self.skipped} of {self.windows} without speech"] if self.skipped else []
        parts += [f"no speech in {self.file}"] if not self.segments else []
        parts += [f"wrote {', '.join(map(str, self.written))}"] if self.written else []
        return "  " + " · ".join(parts)


def run(
    model: Whisper,
    files: list[str] | None = None,
    *,
    language: str | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    word_timestamps: bool = False,
    output: list[str] | None = None,
    output_dir: Path = Path("."),
    resume: bool = False,
    temperature: float = 0.0,
    no_fallback: bool = False,
    beam_size: int = 5,
    best_of: int = 5,
    patience: float = 1.0,
    length_penalty: float | None = None,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    no_condition_on_previous_text: bool = False,
    compression_ratio_threshold: float = 2.4,
    logprob_threshold: float = -1.0,
    no_speech_threshold: float = 0.6,
    hallucination_silence_threshold: float | None = None,
    clip_timestamps: str = "0",
    vad: bool = False,
    batch: int = 0,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Any]:
    """Write down what is said in recordings.

    files: recordings of any length, - for standard input; without any, those that come with the weights
    language: what is spoken: a code or a name, de or german; without it, what the first window sounds like
    task: transcribe, or translate into English
    word_timestamps: times of each word too
    output: txt, srt, vtt, tsv or json: write a file of this kind for each recording; may be given several times
    output_dir: where to
    resume: go on from the last window of a run that wrote files and was interrupted
    temperature: 0 takes the likeliest text; where a text is not good enough, higher ones are tried
    no_fallback: do not try higher temperatures
    beam_size: texts that are followed at once; 1 is fastest
    best_of: texts that are drawn where the temperature is above 0; the best is kept
    patience: a beam ends with patience x beam-size texts
    length_penalty: texts are compared by log probability / ((5 + length) / 6)^this; without it, by that of a token
    initial_prompt: what could have been said before: names, spelling, style
    carry_initial_prompt: say it before every window, not the first alone
    no_condition_on_previous_text: each window knows nothing of the text before it: less consistent, fewer loops
    compression_ratio_threshold: a text that zlib makes smaller by more repeats itself, and is tried again
    logprob_threshold: a text whose tokens are less likely on the average is tried again
    no_speech_threshold: above this probability, an unlikely text is silence
    hallucination_silence_threshold: skip silence of more seconds around words that are hardly there; needs
        --word-timestamps
    clip_timestamps: START,END,START,END,... in seconds: transcribe these spans only; the last END may be left out
    vad: hear only what stands out from the background: saves time where much is silence
    batch: so many windows at once, each by itself; 0: one after the other
    """
    options = Options(
        language=language_code(language),
        task=task,
        temperature=temperature if no_fallback else tuple(t for t in TEMPERATURES if t > temperature - 1e-6),
        beam_size=beam_size,
        best_of=best_of,
        patience=patience,
        length_penalty=length_penalty,
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
        condition_on_previous_text=not no_condition_on_previous_text,
        initial_prompt=initial_prompt,
        carry_initial_prompt=carry_initial_prompt,
        word_timestamps=word_timestamps,
        clips=spans(clip_timestamps),
        vad=vad,
        hallucination_silence_threshold=hallucination_silence_threshold,
        seed=seed,
    )
    options.decoding()
    names = files or shipped(model)
    say = say or (lambda text: None)
    targets = outputs(names, output or [], output_dir)
    for name in names:  # what cannot be read is said before hours are spent on what can
        if name != STDIN:
            Recording(name, lambda text: None).close()
    for name in names:
        if len(names) > 1:
            yield f"{name}\n"
        journal = None
        if output or resume:
            if name == STDIN:
                if resume:
                    raise ZooError("cannot go on with standard input", "it cannot be heard again", "Name a file.")
            else:
                made_of = identity(model, Path(name), options, batch)
                journal = Journal(output_dir / (Path(name).stem + SUFFIX), made_of)
        with closing(Recording(name, say)) as recording:
            transcript = Transcript("-" if name == STDIN else name)
            yield from _transcribe(model, recording, options, batch, transcript, journal, resume, say, progress)
        for kind, path in targets.get(name, {}).items():
            writers.write(path, kind, transcript)
            transcript.written.append(path)
        if journal is not None:
            journal.done()
        yield transcript


def _transcribe(
    model: Whisper, recording: Recording, options: Options, batch: int, transcript: Transcript,
    journal: Journal | None, resume: bool, say: Callable[[str], None], progress: Callable[..., None] | None,
) -> Iterator[str]:  # fmt: skip
    """Lines of text as they come; fills in the transcript."""
    state, known = State(), list[Window]()
    if journal is not None and resume:
        known = journal.windows()
    tokenizer = Tokenizer.of(model)
    if options.vad:
        options = replace(options, vad=False, clips=clips_of(recording, options, model.config.frames))
        some = sum(end - start for start, end in options.clips if end is not None)
        say(f"  {clock(some)} of {clock(recording.duration or 0.0)} may be speech")
    if options.initial_prompt and known:
        state.tokens = tokenizer.encode(" " + options.initial_prompt.strip())
    for window in known:
        state.seen(window, options)
        yield from _shown(window, transcript, options, say)
    if known:
        say(f"  goes on from {clock(state.seek / 100)}, where an earlier run stopped")
    arguments: dict[str, Any] = {"tokenizer": tokenizer, "state": state}
    heard = batched.windows(model, recording, options, batch, **arguments) if batch else windows(
        model, recording, options, **arguments
    )  # fmt: skip
    start, before = time.perf_counter(), state.seek
    try:
        for window in heard:
            if journal is not None:
                journal.add(window)
            if not transcript.language and options.language is None and tokenizer.multilingual:
                say(f"  language: {languages.LANGUAGES.get(window.language, window.language)}")
            yield from _shown(window, transcript, options, say)
            took = time.perf_counter() - start
            if progress is not None:
                total = recording.duration
                at = window.end if total is None else min(window.end, total)
                of = "" if total is None else f" of {clock(total)}"
                progress(at, total, recording.name, f"{clock(at)}{of}, {(at - before / 100) / took:.1f}x real time")
    except KeyboardInterrupt:
        where = clock(state.seek / 100)
        raise KeyboardInterrupt(
            f"{recording.name}: heard up to {where}; the same command with --resume goes on from there"
            if journal is not None and state.seek
            else f"{recording.name}: heard up to {where}"
        ) from None
    transcript.took = time.perf_counter() - start
    transcript.seconds = (recording.duration or state.seek / 100) - before / 100
    transcript.language = transcript.language or state.language or ""


def _shown(window: Window, transcript: Transcript, options: Options, say: Callable[[str], None]) -> Iterator[str]:
    """The lines of a window; why it was tried again or skipped goes to who watches."""
    for attempt, following in pairwise(window.attempts):
        say(f"  {clock(window.start)}: {attempt.why}: tries temperature {following.temperature:.1f}")
    if window.attempts and window.attempts[-1].why:
        say(f"  {clock(window.start)}: {window.attempts[-1].why}, and no other temperature is left")
    if window.skipped:
        say(f"  {clock(window.start)}: skipped: {window.skipped}")
    transcript.language = window.language
    transcript.segments += window.segments
    transcript.windows += 1
    transcript.retried += len(window.attempts) > 1
    transcript.skipped += bool(window.skipped)
    for segment in window.segments:
        yield f"[{clock(segment.start)} --> {clock(segment.end)}] {' '.join(segment.text.split())}\n"
        for word in segment.words or ():
            yield f"  [{clock(word.start)} --> {clock(word.end)}] {' '.join(word.word.split())}\n"


def language_code(language: str | None) -> str | None:
    """Raises ZooError for a language that nobody knows; whether the model does, it says itself."""
    code = None if language is None else languages.code_of(language)
    if language is not None and code is None:
        known = [*languages.LANGUAGES, *languages.LANGUAGES.values()]
        close = difflib.get_close_matches(language.lower(), known, n=1)
        fix = f"Did you mean {close[0]}?" if close else "Leave --language out, and it is detected."
        raise ZooError(f"unknown language {language!r}", "it is a code or an English name: de, or german", fix)
    return code


def spans(text: str) -> tuple[tuple[float, float | None], ...]:
    """ "0,30,60" -> (0, 30), (60, to the end)."""
    try:
        times = [float(part) for part in text.split(",")] if text else [0.0]
        if any(a > b for a, b in pairwise(times)) or not all(0 <= t < 1e8 for t in times):
            raise ValueError
    except ValueError:
        why = f"--clip-timestamps is {text!r}; it is START,END,START,END,... in seconds, rising"
        raise ZooError("cannot tell the spans", why, "Give 0,30,60,90, say.") from None
    ends: Sequence[float | None] = [*times[1::2], *([None] if len(times) % 2 else [])]
    return tuple(zip(times[::2], ends, strict=True))


def shipped(model: Whisper) -> list[str]:
    """The recordings beside the weights. Raises ZooError if there are none."""
    directory = getattr(model.source, "directory", None)
    found = sorted(path for kind in CLIPS for path in (directory / "clips").glob(kind)) if directory else []
    if not found:
        why = "no recording comes with these weights"
        raise ZooError("there is nothing to transcribe", why, "Name one: zoo run whisper talk.flac")
    cwd = Path.cwd()
    return [str(path.relative_to(cwd) if path.is_relative_to(cwd) else path) for path in found]


def outputs(names: Sequence[str], kinds: Sequence[str], directory: Path) -> dict[str, dict[str, Path]]:
    """Which files are written for each recording. Raises ZooError if two would be one."""
    if wrong := [kind for kind in kinds if kind not in writers.KINDS]:
        why, known = f"--output {wrong[0]} is none of the kinds of files", ", ".join(writers.KINDS)
        raise ZooError("cannot write that", why, f"Choose among {known}; --output may be given several times.")
    found: dict[str, dict[str, Path]] = {}
    owner: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        stem = "stdin" if name == STDIN else Path(name).stem
        found[name] = {kind: directory / f"{stem}.{kind}" for kind in kinds}
        for path in found[name].values():
            if path in owner:
                why = f"{owner[path]} and {name} would both be written to {path}"
                raise ZooError("two recordings of one name", why, "Transcribe them one by one, with --output-dir.")
            owner[path] = name
            if path.resolve() == Path(name).resolve():
                raise DataError(f"{name} would be overwritten", "it is where its own transcript goes",
                                "Choose another --output-dir.")  # fmt: skip
    return found


def identity(model: Whisper, path: Path, options: Options, batch: int) -> dict[str, Any]:
    """What must be the same for a transcription to go on."""
    settings = {**asdict(options), "temperature": list(options.temperatures)}
    settings["clips"] = [list(clip) for clip in options.clips]
    dtypes = sorted({meta.dtype.name for meta in model.spec().values()})
    return {"recording": hash_of(path), "model": fingerprint(model), "dtype": " ".join(dtypes), "batch": batch,
            **settings}  # fmt: skip
