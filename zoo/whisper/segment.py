"""What a transcription is made of: segments of text with times, and words within them."""

from __future__ import annotations

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
