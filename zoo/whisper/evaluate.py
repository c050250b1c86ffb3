"""`zoo eval whisper`: word and character error rate on recordings whose text is known.

    word error rate = (substituted + left out + put in) / (words that were said)

the least such edits (Levenshtein distance), summed over all recordings before it is divided, so that long ones count
as much as they say. Both texts are normalised first, as published rates are: English by EnglishTextNormalizer, others
by BasicTextNormalizer. The character error rate is the same of characters, with spaces; for languages written without
spaces it is the one to look at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.core.errors import DataError
from zoo.whisper.model import Whisper
from zoo.whisper.normalize import BasicTextNormalizer, EnglishTextNormalizer
from zoo.whisper.recording import Recording
from zoo.whisper.run import language_code
from zoo.whisper.transcribe import Options, windows

WORST = 5
"""Recordings that are shown, of those with errors."""
SHOWN = 8
"""Bad rows that an error tells of."""
_FORM = 'A row is {"audio": FILE, "text": ...}, and may have a language.'


@dataclass(frozen=True)
class Row:
    audio: Path
    text: str
    language: str | None = None


@dataclass(frozen=True)
class Edits:
    """The fewest edits that make one sequence of another; of those, the ones that put in the fewest."""

    substituted: int
    left_out: int
    put_in: int

    @property
    def all(self) -> int:
        return self.substituted + self.left_out + self.put_in


@dataclass(frozen=True)
class Heard:
    """One recording, texts normalised."""

    audio: str
    wer: float
    said: str
    heard: str


@dataclass(frozen=True)
class Evaluated:
    data: Path
    wer: float
    cer: float
    substituted: int
    left_out: int
    put_in: int
    words: int
    recordings: int
    seconds: float
    """Of sound."""
    took: float
    each: list[Heard] = field(repr=False)
    """The worst first."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data": str(self.data)}

    def __str__(self) -> str:
        return f"word error rate {self.wer:.2%} · character error rate {self.cer:.2%}"

    def preview(self) -> str:
        wrong = [heard for heard in self.each[:WORST] if heard.wer]
        return "\n".join(f"  {h.wer:.0%}  {h.audio}\n    said   {h.said}\n    heard  {h.heard}" for h in wrong)

    def note(self) -> str:
        return (
            f"  {self.words:,} words in {self.recordings:,} recordings: {self.substituted:,} substituted, "
            f"{self.left_out:,} left out, {self.put_in:,} put in · {self.seconds / max(self.took, 1e-9):.1f}x real time"
        )


def evaluate(
    model: Whisper,
    *,
    data: Path,
    language: str | None = None,
    beam_size: int = 5,
    normalizer: Literal["auto", "english", "basic", "none"] = "auto",
    progress: Callable[..., None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Evaluated]:
    """Measure how well recordings are written down: word and character error rate.

    data: a manifest: a line of JSON for each recording, {"audio": FILE, "text": ...}, files beside it
    language: what is spoken: a code or a name; without it, what a row says, or what it sounds like
    beam_size: texts that are followed at once; 1 is fastest
    normalizer: how texts are made alike before they are compared; auto: english where English is spoken, else basic
    """
    rows = read(data)
    chosen = language_code(language)
    directory = getattr(model.source, "directory", None)
    english, basic = EnglishTextNormalizer.beside(directory), BasicTextNormalizer()
    each: list[Heard] = []
    total, characters, letters = np.zeros(3, np.int64), 0, 0
    sound, start = 0.0, time.perf_counter()
    for done, row in enumerate(rows):
        if progress is not None:
            progress(done, len(rows), "recordings", row.audio.name)
        spoken, heard, seconds = _heard(model, row, chosen or row.language, beam_size, say or (lambda text: None))
        sound += seconds
        normal: Callable[[str], str] = str
        if normalizer != "none":
            normal = english if normalizer == "english" or (normalizer == "auto" and spoken == "en") else basic
        said, found = (" ".join(normal(text).split()) for text in (row.text, heard))
        edits = distance(said.split(), found.split())
        total += (edits.substituted, edits.left_out, edits.put_in)
        letters += len(said)
        characters += distance(said, found).all
        each.append(Heard(str(row.audio), edits.all / max(len(said.split()), 1), said, found))
    took = time.perf_counter() - start
    words = sum(len(one.said.split()) for one in each)
    if not words:
        raise DataError(f"there is no error rate of {data}", "nothing is said in it", "Give texts with words in them.")
    each.sort(key=lambda one: -one.wer)
    substituted, left_out, put_in = map(int, total)
    rate = (substituted + left_out + put_in) / words
    yield Evaluated(
        data, rate, characters / letters, substituted, left_out, put_in, words, len(rows), sound, took, each
    )


def _heard(
    model: Whisper, row: Row, language: str | None, beam_size: int, say: Callable[[str], None]
) -> tuple[str, str, float]:
    """(language, text, seconds of sound)."""
    options = Options(language=language, beam_size=beam_size)
    with Recording(row.audio, say) as recording:
        found = list(windows(model, recording, options))
        text = "".join(segment.text for window in found for segment in window.segments)
        seconds = recording.duration or sum(window.size for window in found) / 100
    return (found[0].language if found else language or "en"), text, seconds


def read(path: Path) -> list[Row]:
    """Rows of a manifest, every file of which can be read. Raises DataError that names each row that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "Give a file of JSON lines in UTF-8.") from error
    rows, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_row(json.loads(line), path.parent))
            except DataError as error:
                wrong.append(f"line {number}: {error.what}: {error.why}")
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        more = f"\n... and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        what = f"cannot use {len(wrong)} of {len(wrong) + len(rows)} rows of {path}"
        raise DataError(what, "\n".join(wrong[:SHOWN]) + more, _FORM)
    if not rows:
        raise DataError(f"there is nothing in {path}", "it has no rows", _FORM)
    return rows


def _row(row: Any, folder: Path) -> Row:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    for name in ("audio", "text"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"it has no {name}")
    audio = folder / row["audio"]
    Recording(audio, lambda _: None).close()
    language = row.get("language")
    if language is not None and not isinstance(language, str):
        raise ValueError("its language is no text")
    return Row(audio, row["text"], language_code(language))


def distance(said: Sequence[Any], heard: Sequence[Any]) -> Edits:
    """The fewest edits from one sequence to another, a row of the table of prefixes at a time: O(n m) time, O(m) space.

    An edit costs `unit`, one that puts something in `unit + 1`, and no sequence is long enough for the ones to add up
    to a unit: the least cost tells both the edits and how many of them put in. The rest follows from the lengths.
    """
    number: dict[Any, int] = {}
    a, b = (np.array([number.setdefault(x, len(number)) for x in each], np.int64) for each in (said, heard))
    unit = len(b) + 1
    across = np.arange(len(b) + 1, dtype=np.int64) * (unit + 1)
    row = across.copy()
    for item in a:
        here = row + unit
        np.minimum(here[1:], row[:-1] + unit * (b != item), out=here[1:])
        row = np.minimum.accumulate(here - across) + across
    edits, put_in = divmod(int(row[-1]), unit)
    left_out = put_in + len(a) - len(b)
    return Edits(edits - put_in - left_out, left_out, put_in)
