"""What a transcription is made of: segments of text with times, and words within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Word:
    """A word as it is written, with the space before it; times in seconds from the beginning of the recording."""

    word: str
    start: float
    end: float
    probability: float


@dataclass
class Segment:
    """A stretch of speech. Names are those of openai/whisper's JSON.

    start, end: seconds from the beginning of the recording
    tokens: those of the text, with the timestamps around it
    temperature, avg_logprob, compression_ratio, no_speech_prob: of the whole window that it was found in
    words: None where word times were not asked for
    """

    start: float
    end: float
    text: str
    tokens: list[int] = field(default_factory=list)
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: list[Word] | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields; `words` only where there are such."""
        fields = asdict(self)
        if self.words is None:
            del fields["words"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Segment:
        """The same segment again."""
        words = fields.get("words")
        return cls(**{**fields, "words": None if words is None else [Word(**word) for word in words]})


@dataclass(frozen=True)
class Piece:
    """Tokens of a window between two timestamps; seconds from the beginning of the window."""

    start: float
    end: float
    tokens: list[int]


STEP = 0.02
"""Seconds from one timestamp token to the next: two frames of features, one position of the encoder."""
FRAMES = 2
"""Frames of features from one timestamp token to the next; a frame is 0.01 s."""


def split(
    tokens: Sequence[int], timestamp_begin: int, size: int, *, whole: bool = False
) -> tuple[list[Piece], int, bool]:
    """The pieces of a window of `size` frames, the frames by which to go on, and whether the text ended in the window
    (openai/whisper: transcribe.py).

    Two timestamps beside each other end a piece and begin the next. What comes behind the last pair is unfinished: the
    next window begins where it does and hears it whole; unless a single timestamp ends it, behind which nothing is
    said. whole: no other window will hear the unfinished piece, so it is a piece.
    """
    tokens = list(tokens)
    stamp = [token >= timestamp_begin for token in tokens]
    ended = stamp[-2:] == [False, True]
    cuts = [i + 1 for i in range(len(tokens) - 1) if stamp[i] and stamp[i + 1]]
    if not cuts:
        last = next((token - timestamp_begin for token in reversed(tokens) if token >= timestamp_begin), 0)
        return [Piece(0.0, last * STEP if last else size / 100, tokens)], size, ended
    complete = cuts[-1]
    if ended:
        cuts.append(len(tokens))
    pieces = [
        Piece((tokens[a] - timestamp_begin) * STEP, (tokens[b - 1] - timestamp_begin) * STEP, tokens[a:b])
        for a, b in zip([0, *cuts], cuts, strict=False)
    ]
    if ended:
        return pieces, size, ended
    if whole and any(not mark for mark in stamp[complete:]):
        begin = (tokens[complete] - timestamp_begin) * STEP
        pieces.append(Piece(begin, max(size / 100, begin), tokens[complete:]))
    return pieces, (tokens[complete - 1] - timestamp_begin) * FRAMES, ended
