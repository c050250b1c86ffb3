"""A recording as windows of features, and what was heard in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from zoo.core.tensor import Tensor
from zoo.whisper.audio import HOP, SAMPLE_RATE, log_mel
from zoo.whisper.model import Whisper
from zoo.whisper.segment import Segment

RATE = SAMPLE_RATE // HOP
"""Frames of features in a second: 100."""


class Audio(Protocol):
    """Sound at 16 kHz, mono (zoo/whisper/recording.py)."""

    @property
    def duration(self) -> float | None: ...

    def read(self, start: int, count: int) -> np.ndarray: ...


class Ear:
    """Windows of a recording, read when they are asked for: memory does not grow with the recording."""

    def __init__(self, recording: Audio, frames: int, n_mels: int):
        self.recording, self.frames, self.n_mels = recording, frames, n_mels

    def hear(self, seek: int, most: int) -> tuple[int, np.ndarray]:
        """Frames from `seek` on that are there, at most so many, and the features of the window that begins with
        them (frames, n_mels), silence behind them. Normalised within the window, as in training; openai/whisper
        takes the loudest of the whole file, which a stream does not know."""
        samples = self.recording.read(seek * HOP, most * HOP)
        window = np.zeros(self.frames * HOP, np.float32)
        window[: len(samples)] = samples
        return len(samples) // HOP, log_mel(window, self.n_mels)


def encode(model: Whisper, features: Sequence[np.ndarray]) -> Tensor:
    """Windows of features -> (A, S, d_model)."""
    stacked = np.ascontiguousarray(np.stack(features), np.float32)
    return model.encode(Tensor(model.device.from_host(stacked), model.device))


@dataclass
class Attempt:
    """Decoding of a window at some temperature, and why it was not good enough; "" where it was, or was the last."""

    temperature: float
    why: str = ""


@dataclass
class Window:
    """What was heard in a window of a recording; positions in frames of 0.01 s."""

    seek: int
    size: int
    language: str
    next: int = 0
    """Where the next window begins."""
    segments: list[Segment] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    skipped: str = ""
    """Why it counts as silence."""
    last_speech: float = 0.0
    """Seconds at which the last word up to now ended, where words are timed."""

    @property
    def start(self) -> float:
        return self.seek / RATE

    @property
    def end(self) -> float:
        """Seconds up to which the recording is transcribed."""
        return self.next / RATE

    @property
    def temperature(self) -> float:
        return self.attempts[-1].temperature

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "segments": [segment.to_json() for segment in self.segments]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Window:
        segments = [Segment.from_json(one) for one in fields["segments"]]
        return cls(**{**fields, "segments": segments, "attempts": [Attempt(**one) for one in fields["attempts"]]})
