"""Error rates: the distance against one that tries everything, and the whole against texts whose errors are known."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from zoo.cli.main import main
from zoo.core.errors import DataError, ZooError
from zoo.hub import load
from zoo.whisper.evaluate import Edits, Evaluated, distance, evaluate
from zoo.whisper.transcribe import transcribe


def tried(a: tuple, b: tuple) -> tuple[int, int]:
    """(edits, put in) by trying every way."""

    @cache
    def best(i: int, j: int) -> tuple[int, int]:
        if i == len(a) and j == len(b):
            return 0, 0
        ways = []
        if i < len(a) and j < len(b):
            edits, put_in = best(i + 1, j + 1)
            ways.append((edits + (a[i] != b[j]), put_in))
        if i < len(a):
            edits, put_in = best(i + 1, j)
            ways.append((edits + 1, put_in))
        if j < len(b):
            edits, put_in = best(i, j + 1)
            ways.append((edits + 1, put_in + 1))
        return min(ways)

    return best(0, 0)


SHORT = st.lists(st.sampled_from("abc"), max_size=8)


@given(SHORT, SHORT)
def test_the_distance_is_the_least(a, b):
    edits, put_in = tried(tuple(a), tuple(b))
    found = distance(a, b)
    assert (found.all, found.put_in) == (edits, put_in)
    assert min(found.substituted, found.left_out, found.put_in) >= 0
    assert len(a) - found.left_out + found.put_in == len(b)
    assert distance(b, a).all == edits


KNOWN = [
    ("", "", Edits(0, 0, 0)), ("a b c", "", Edits(0, 3, 0)), ("", "a b", Edits(0, 0, 2)),
    ("kitten", "sitting", None), ("the cat sat", "the cat sat", Edits(0, 0, 0)),
    ("the cat sat on the mat", "the cat sat the mat", Edits(0, 1, 0)),
    ("the cat sat", "the big cat sat", Edits(0, 0, 1)), ("the cat sat", "the dog sat", Edits(1, 0, 0)),
    ("a b c d e", "b c d e f", Edits(0, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("said", "heard", "expected"), KNOWN)
def test_known_distances(said, heard, expected):
    if expected is None:
        assert distance(said, heard).all == 3
    else:
        assert distance(said.split(), heard.split()) == expected


def test_long_texts():
    """4,000 words, of which every tenth is another, with one put in before: aligned as a whole."""
    words = [str(i % 97) for i in range(4000)]
    heard = ["x", *("y" if i % 10 == 3 else word for i, word in enumerate(words))]
    assert distance(words, heard) == Edits(400, 0, 1)


# --- the whole --------------------------------------------------------------------------------------------------------


def manifest(directory: Path, rows: list[dict]) -> Path:
    path = directory / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def heard(tiny, recording, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """A model, a recording of 4 s, and the words that the model hears in it."""
    path = tmp_path_factory.mktemp("heard") / "talk.wav"
    soundfile.write(path, soundfile.read(recording, dtype="int16")[0][:64000], 16000)
    text = "".join(segment.text for segment in transcribe(load(tiny, device="cpu"), path, language="en"))
    words = text.split()
    assert len(words) > 1
    return tiny, path, words


def measured(model: Path, data: Path, **options) -> Evaluated:
    (found,) = evaluate(load(model, device="cpu"), data=data, **{"language": "en", "normalizer": "none", **options})
    return found


def test_known_errors(heard, tmp_path):
    model, recording, words = heard
    texts = [" ".join(words), " ".join(words[1:]), " ".join([*words, "missing", "words"]), ""]
    texts.append(" ".join(["another", *words[1:]]))
    data = manifest(tmp_path, [{"audio": str(recording), "text": text, "language": "en"} for text in texts])
    steps: list[tuple] = []
    found = measured(model, data, progress=lambda *step: steps.append(step))
    n = len(words)
    assert (found.substituted, found.left_out, found.put_in) == (1, 2, 1 + n)
    assert found.words == 4 * n + 1 and found.wer == pytest.approx((4 + n) / (4 * n + 1))
    letters = [distance(text, texts[0]).all for text in texts]
    assert found.cer == pytest.approx(sum(letters) / sum(map(len, texts)))
    assert found.recordings == 5 and found.seconds == pytest.approx(5 * 4) and len(steps) == 5
    assert [one.wer for one in found.each] == sorted((one.wer for one in found.each), reverse=True)
    assert found.each[0].said == "" and found.each[-1].wer == 0 and found.preview().count("said") == 4


def test_texts_are_normalised_by_language(heard, tmp_path, monkeypatch):
    """In English, numbers and contractions are alike; in German, punctuation and case alone."""
    model, recording, _ = heard
    rows = [("en", "I can't pay five dollars!", "i cannot PAY $5"), ("de", "Fünf, Äpfel.", "fünf äpfel")]
    for language, said, found in rows:
        data = manifest(tmp_path, [{"audio": str(recording), "text": said, "language": language}])
        monkeypatch.setattr(
            sys.modules[evaluate.__module__], "_heard", lambda m, row, code, *rest, found=found: (code, found, 1.0)
        )
        auto = measured(model, data, language=None, normalizer="auto")
        assert auto.wer == (0 if language == "de" else pytest.approx(2 / 5))  # "can not" and "cannot"
        assert measured(model, data, normalizer="none", language=None).wer == 1
        assert measured(model, data, normalizer="basic", language=None).wer == (
            0 if language == "de" else pytest.approx(4 / 6)
        )


def test_from_the_command_line(heard, tmp_path, capsys):
    model, recording, words = heard
    data = manifest(tmp_path, [{"audio": str(recording), "text": " ".join(words), "language": "en"}])
    arguments = ["eval", "whisper", "--data", str(data), "--weights", str(model), "--device", "cpu"]
    assert main([*arguments, "--normalizer", "none"]) == 0
    out, err = capsys.readouterr()
    assert out == "word error rate 0.00% · character error rate 0.00%\n" and "1 recordings" in err
    assert main([*arguments, "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)["results"][0]
    assert document["wer"] == 0 and document["each"][0]["audio"] == str(recording) and document["recordings"] == 1


def test_files_lie_beside_the_manifest(heard, tmp_path):
    model, recording, words = heard
    (tmp_path / "a.wav").write_bytes(recording.read_bytes())
    data = manifest(tmp_path, [{"audio": "a.wav", "text": " ".join(words)}, {}][:1])
    assert measured(model, data).wer == 0


def test_silence_with_a_text_is_left_out_and_without_one_is_right(heard, tmp_path):
    model = heard[0]
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    rows = [{"audio": "none.wav", "text": "two words"}, {"audio": "none.wav", "text": ""}]
    said: list[str] = []
    found = measured(model, manifest(tmp_path, rows), say=said.append)
    assert len(said) == 2 and "no samples" in said[0]
    assert (found.wer, found.left_out, found.cer) == (1.0, 2, 1.0)


BAD = [
    ("not json\n", "line 1: "),
    ('{"audio": "none.wav", "text": "x"}\n', "line 1: cannot read .*none.wav: there is no such file"),
    ('{"text": "x"}\n{"audio": 3, "text": "x"}\n', "line 2: it has no audio"),
    ('{"audio": "a.wav"}\n', "it has no text"),
    ("[]\n", "no JSON object"),
    ("\n", "nothing in"),
]


@pytest.mark.parametrize(("text", "why"), BAD)
def test_manifests_that_cannot_be_used(heard, tmp_path, text, why):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(DataError, match=why):
        measured(heard[0], tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        measured(heard[0], tmp_path / "absent.jsonl")


def test_nothing_said_has_no_rate(heard, tmp_path):
    data = manifest(tmp_path, [{"audio": str(heard[1]), "text": " ?! "}])
    with pytest.raises(DataError, match="nothing is said"):
        measured(heard[0], data, normalizer="basic")
    with pytest.raises(ZooError, match="unknown language"):
        measured(heard[0], data, language="klingon")
