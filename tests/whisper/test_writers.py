"""Transcripts as files, against openai-whisper's own writers where they are installed, and by hand."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.core.errors import WeightsError
from zoo.whisper.segment import Segment, Word
from zoo.whisper.writers import KINDS, clock, document, pieces, write

SEGMENTS = [
    Segment(0.0, 2.5, " And so, my fellow Americans,", [50364, 400, 50489], 0.0, -0.25, 1.5, 0.01),
    Segment(2.5, 3599.9996, " ask --> not\twhat", [50489, 1], 0.2, -1.5, 2.5, 0.5),
    Segment(3725.0, 3725.0415, " “naïve” 猫 ", [], 0.0, 0.0, 1.0, 0.0),
]


def with_words(segments: list[Segment]) -> list[Segment]:
    made = []
    for segment in segments:
        parts = segment.text.split(" ")[1:]
        step = (segment.end - segment.start) / max(len(parts), 1)
        words = [Word(" " + part, segment.start + i * step + 0.0104, segment.start + (i + 1) * step, 0.5)
                 for i, part in enumerate(parts)]  # fmt: skip
        made.append(Segment(**{**segment.__dict__, "words": words}))
    return made


EXPECTED = {
    "txt": "And so, my fellow Americans,\nask --> not\twhat\n“naïve” 猫\n",
    "srt": "1\n00:00:00,000 --> 00:00:02,500\nAnd so, my fellow Americans,\n\n"
    "2\n00:00:02,500 --> 01:00:00,000\nask -> not\twhat\n\n"
    "3\n01:02:05,000 --> 01:02:05,042\n“naïve” 猫\n\n",
    "vtt": "WEBVTT\n\n00:00.000 --> 00:02.500\nAnd so, my fellow Americans,\n\n"
    "00:02.500 --> 01:00:00.000\nask -> not\twhat\n\n01:02:05.000 --> 01:02:05.042\n“naïve” 猫\n\n",
    "tsv": "start\tend\ttext\n0\t2500\tAnd so, my fellow Americans,\n2500\t3600000\task --> not what\n"
    "3725000\t3725042\t“naïve” 猫\n",
}


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_by_hand(kind):
    assert "".join(pieces(kind, SEGMENTS)) == EXPECTED[kind]


def test_a_caption_lasts_from_its_first_word_to_its_last():
    found = "".join(pieces("srt", with_words(SEGMENTS[:1])))
    assert found == "1\n00:00:00,010 --> 00:00:02,500\nAnd so, my fellow Americans,\n\n"


def test_json():
    found = json.loads("".join(pieces("json", with_words(SEGMENTS), "en")))
    assert list(found) == ["text", "segments", "language"] and found["language"] == "en"
    assert found["text"] == "".join(s.text for s in SEGMENTS)
    assert list(found["segments"][1]) == [
        "id", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob",
        "words",
    ]  # fmt: skip
    assert found["segments"][1]["words"][0] == {
        "word": " ask", "start": SEGMENTS[1].start + 0.0104, "end": with_words(SEGMENTS)[1].words[0].end,
        "probability": 0.5,
    }  # fmt: skip
    assert "words" not in json.loads("".join(pieces("json", SEGMENTS)))["segments"][0]


def openais(kind: str, segments: list[Segment], language: str) -> str:
    found = importlib.util.find_spec("whisper")
    if found is None or not found.submodule_search_locations:
        pytest.skip("openai-whisper is not installed; it is the reference")
    name = "openai_whisper_utils"
    if name not in sys.modules:  # by itself: the package as a whole needs numba
        spec = importlib.util.spec_from_file_location(name, Path(found.submodule_search_locations[0]) / "utils.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    file = io.StringIO()
    sys.modules[name].get_writer(kind, ".").write_result(document(segments, language), file, {})
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_openais(kind):
    for segments in (SEGMENTS, with_words(SEGMENTS), [], SEGMENTS[:1]):
        assert "".join(pieces(kind, segments, "de")) == openais(kind, segments, "de")


TEXT = st.text(alphabet="ab \t-->é猫\u00a0.,", max_size=12)
SECONDS = st.floats(0, 9000).map(lambda seconds: round(seconds, 4))


@st.composite
def transcripts(draw):
    words = draw(st.booleans())
    made = []
    for _ in range(draw(st.integers(0, 4))):
        segment = Segment(draw(SECONDS), draw(SECONDS), draw(TEXT))
        if words:
            size = draw(st.sampled_from([0, 1, 2, 5, 300]))
            segment.words = [Word(draw(TEXT), draw(SECONDS), draw(SECONDS), 0.5) for _ in range(min(size, 5))]
            segment.words *= 60 if size == 300 else 1  # lines longer than 1000 characters
        made.append(segment)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_openais_whatever_was_said(kind):
    @given(transcripts())
    def same(segments):
        assert "".join(pieces(kind, segments, "en")) == openais(kind, segments, "en")

    same()


@pytest.mark.parametrize("kind", ["txt", "srt", "vtt", "tsv"])
def test_each_segment_comes_as_soon_as_it_is_there(kind):
    heard = []

    def segments():
        for segment in SEGMENTS:
            heard.append(segment)
            yield segment

    written = pieces(kind, segments())
    if kind in ("vtt", "tsv"):
        next(written)
    for number in range(1, 4):
        next(written)
        assert len(heard) == number


def test_files(tmp_path):
    transcript = SimpleNamespace(segments=SEGMENTS, language="en")
    for kind in KINDS:
        write(tmp_path / f"a.{kind}", kind, transcript)
        assert (tmp_path / f"a.{kind}").read_bytes().decode() == "".join(pieces(kind, SEGMENTS, "en"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a.{kind}" for kind in KINDS)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot write"):
        write(tmp_path / "file" / "a.txt", "txt", transcript)
    with pytest.raises(ValueError, match="none of txt"):
        write(tmp_path / "a.doc", "doc", transcript)
    assert not (tmp_path / "a.doc").exists()


def test_clock():
    assert [clock(0), clock(59.9996), clock(3600), clock(1.0005, ",", True)] == [
        "00:00.000", "01:00.000", "01:00:00.000", "00:00:01,000",
    ]  # fmt: skip
