"""Transcripts as files: txt, srt, vtt, tsv and json, byte for byte as openai/whisper writes them (whisper/utils.py).

srt and vtt show a segment at a time. Where times of words are known, a caption lasts from its first word to its last.
Of json's fields, only `seek`, the window that a segment was found in, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from zoo.hub.files import atomic
from zoo.whisper.segment import Segment

KINDS = ("txt", "srt", "vtt", "tsv", "json")
WIDTH = 1000
"""Characters of a caption's line, at most."""


class Transcript(Protocol):
    segments: list[Segment]
    language: str


def write(path: Path, kind: str, transcript: Transcript) -> None:
    """Writes a transcript; the file is whole or not there. Raises WeightsError if it cannot be written."""
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces(kind, transcript.segments, transcript.language))


def pieces(kind: str, segments: Iterable[Segment], language: str = "") -> Iterator[str]:
    """The text of a file of this kind, each piece as soon as its segment is there; all of json at the end."""
    if kind == "txt":
        for segment in segments:
            yield f"{segment.text.strip()}\n"
    elif kind == "tsv":
        yield "start\tend\ttext\n"
        for segment in segments:
            text = segment.text.strip().replace("\t", " ")
            yield f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{text}\n"
    elif kind == "srt":
        for number, (start, end, text) in enumerate(captions(segments), 1):
            yield f"{number}\n{clock(start, ',', True)} --> {clock(end, ',', True)}\n{text}\n\n"
    elif kind == "vtt":
        yield "WEBVTT\n\n"
        for start, end, text in captions(segments):
            yield f"{clock(start)} --> {clock(end)}\n{text}\n\n"
    elif kind == "json":
        yield json.dumps(document(list(segments), language))
    else:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")


def document(segments: list[Segment], language: str) -> dict[str, Any]:
    """What json holds."""
    each = [{"id": number, **segment.to_json()} for number, segment in enumerate(segments)]
    return {"text": "".join(segment.text for segment in segments), "segments": each, "language": language}


def captions(segments: Iterable[Segment]) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of each."""
    for segment in segments:
        if segment.words is None:
            yield segment.start, segment.end, segment.text.strip().replace("-->", "->")
        elif segment.words:
            yield segment.words[0].start, segment.words[-1].end, _lines(word.word for word in segment.words)


def _lines(words: Iterable[str]) -> str:
    text, width = "", 0
    for word in words:
        if width and width + len(word) <= WIDTH:
            text, width = text + word, width + len(word)
        else:
            text += "\n" * bool(width) + word.strip()
            width = len(word.strip())
    return text


def clock(seconds: float, point: str = ".", hours: bool = False) -> str:
    """01:02.500; with hours where there are any, or they are asked for."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hour, minutes = divmod(minutes, 60)
    return (
        f"{hour:02d}:" * (hours or hour > 0)
        + f"{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
    )
