"""Words that nobody said: in silence Whisper writes what often stands in subtitles. They are given away by their times
(openai/whisper: transcribe.py, hallucination_silence_threshold)."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.whisper.audio import HOP, SAMPLE_RATE
from zoo.whisper.segment import Segment, Word
from zoo.whisper.timing import AFTER, BEFORE, end_of
from zoo.whisper.window import RATE, Window


def strangeness(word: Word) -> float:
    """High for words that are improbable, very short, or very long."""
    length = word.end - word.start
    return float(word.probability < 0.15) + 15 * max(0.133 - length, 0.0) + max(length - 2.0, 0.0)


def strange(segment: Segment | None) -> bool:
    """Whether the words that a segment begins with are hardly there."""
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word.word not in BEFORE + AFTER][:8]
    total = sum(map(strangeness, words))
    return total >= 3 or total + 0.01 >= len(words)


def without_hallucinations(
    window: Window, threshold: float, last_speech: float, ended: bool, frames: int, duration: float | None
) -> None:
    """Drops segments of strange words with silence of more than `threshold` seconds around them, and moves the next
    window behind that silence.

    ended: the text of the window ended in it; frames: of a whole window; duration: of the recording, if known
    """
    segments, window_end = window.segments, window.start + frames / RATE
    last = end_of(segments)
    if not ended and last is not None and last > window.start:
        # what follows the last word is silence, or is heard again
        window.next = round(last * RATE) if window_end - last > threshold else window.seek + window.size
    first = _first_with_words(segments)
    if first is not None and strange(first) and first.start - window.start > threshold:
        window.next, window.segments = window.seek + round((first.start - window.start) * RATE), []
        window.skipped = f"words that are hardly there, after {first.start - window.start:.1f} s of silence"
        return
    before = last_speech
    for i, segment in enumerate(segments):
        if not segment.words:
            continue
        if strange(segment):
            behind = _first_with_words(segments[i + 1 :])
            begin = behind.words[0].start if behind and behind.words else window.start + window.size / RATE
            quiet_before = (
                segment.start - before > threshold
                or segment.start < threshold
                or segment.start - window.start < 2.0
            )  # fmt: skip
            quiet_behind = begin - segment.end > threshold or strange(behind) or window_end - segment.end < 2.0
            if quiet_before and quiet_behind:
                window.next = round(max(window.start + 1, segment.start) * RATE)
                if duration is not None and _whole(duration) / RATE - segment.end < threshold:
                    window.next = _whole(duration)
                window.segments = segments[:i]
                return
        before = segment.end


def _first_with_words(segments: Sequence[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment.words), None)


def _whole(duration: float) -> int:
    """Frames that are whole in so many seconds."""
    return round(duration * SAMPLE_RATE) // HOP
