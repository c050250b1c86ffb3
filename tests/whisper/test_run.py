"""`zoo run whisper` as a user meets it: what goes to stdout, to stderr and into files, and what interruptions leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoo as package

ROOT = Path(package.__file__).resolve().parents[1]
LINE = re.compile(r"\[\d\d:\d\d\.\d\d\d --> \d\d:\d\d\.\d\d\d\] .*")


def command(*arguments):
    return [sys.executable, "-m", "zoo", "run", "whisper", *map(str, arguments), "--device", "numpy"]


def zoo(*arguments, stdin=None, cwd=None):
    done = subprocess.run(
        command(*arguments), stdin=stdin, cwd=cwd, capture_output=True, text=True, timeout=120, errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_segments_are_lines_and_the_rest_is_for_who_watches(tiny, recording, tmp_path):
    code, out, err = zoo(recording, "--weights", tiny, "--beam-size", 1, cwd=tmp_path)
    lines = out.splitlines()
    assert code == 0 and len(lines) > 3 and all(LINE.fullmatch(line) for line in lines)
    assert "language: " in err and "x real time" in err and "00:09.500 of audio in " in err
    assert re.search(r"00:0\d\.\d+: log probability -\d\.\d\d < -1\.00: tries temperature 0\.2", err)
    assert not list(tmp_path.iterdir())


def test_json_is_one_document(tiny, recording):
    code, out, err = zoo(recording, recording, "--weights", tiny, "--json", "-q", "--beam-size", 1, "--no-fallback")
    document = json.loads(out)
    assert code == 0 and err == "" and [document[key] for key in ("model", "device")] == ["whisper", "numpy"]
    first, second = document["results"]
    assert first == second and first["file"] == str(recording)
    assert first["text"] == "".join(segment["text"] for segment in first["segments"]).strip()
    assert all({"start", "end", "text"} <= segment.keys() for segment in first["segments"])


def test_files_are_written_where_they_are_asked_for(tiny, recording, tmp_path):
    kinds = [word for kind in ("txt", "srt", "vtt", "tsv", "json") for word in ("--output", kind)]
    arguments = (recording, "--weights", tiny, "--beam-size", 1, "--no-fallback", "--word-timestamps", *kinds)
    code, out, err = zoo(*arguments, "--output-dir", tmp_path / "new")
    assert code == 0 and "wrote " in err
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"talk.txt", "talk.srt", "talk.vtt", "talk.tsv", "talk.json"}
    segments = json.loads((tmp_path / "new" / "talk.json").read_text())["segments"]
    assert len(segments) == sum(line.startswith("[") for line in out.splitlines())
    assert sum(len(segment["words"]) for segment in segments) == sum(
        line.startswith("  [") for line in out.splitlines()
    )


def test_standard_input_and_spans(tiny, recording):
    whole = zoo(recording, "--weights", tiny, "-q", "--beam-size", 1, "--no-fallback")
    with recording.open("rb") as file:
        assert zoo("-", "--weights", tiny, "-q", "--beam-size", 1, "--no-fallback", stdin=file) == whole
    code, out, _ = zoo(
        recording, "--weights", tiny, "-q", "--beam-size", 1, "--no-fallback", "--clip-timestamps", "4,6"
    )
    assert code == 0 and out and min(line[1:9] for line in out.splitlines()) >= "00:03.00"


@pytest.mark.parametrize(
    ("arguments", "first", "last"),
    [
        (["--language", "germam"], "unknown language 'germam'", "Did you mean german?"),
        (["--language", "fr"], "unknown language 'fr'", "Choose one of these."),
        (["--clip-timestamps", "3,2"], "cannot tell the spans", "Give 0,30,60,90, say."),
        (["--beam-size", "0"], "cannot decode like that", "It must be at least 1."),
        (["--hallucination-silence-threshold", "2"], "cannot skip silence around hallucinations",
         "Ask for word timestamps too."),
        (["--output", "doc"], "cannot write that",
         "Choose among txt, srt, vtt, tsv, json; --output may be given several times."),
        (["nowhere.wav"], "cannot read nowhere.wav", "Check the path."),
    ],
)  # fmt: skip
def test_errors_are_three_lines_before_anything_is_heard(tiny, recording, arguments, first, last):
    code, out, err = zoo(recording, "--weights", tiny, "-q", *arguments)
    lines = err.splitlines()
    assert code == 1 and out == "" and len(lines) == 3
    assert lines[0] == f"zoo: {first}" and lines[2].strip() == last


def test_nothing_to_transcribe(tiny):
    code, _, err = zoo("--weights", tiny, "-q")
    assert code == 1 and err.splitlines()[0] == "zoo: there is nothing to transcribe"


# --- interruptions ----------------------------------------------------------------------------------------------------


def interrupted(how, tmp_path, recording, tiny, *options):
    """Starts a transcription, and ends it by a signal when the second window is in the journal."""
    arguments = (recording, "--weights", tiny, "--output", "json", "--output-dir", tmp_path, *options)
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    journal, end = tmp_path / "talk.resume.jsonl", time.monotonic() + 60
    while time.monotonic() < end and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return process.returncode, err, arguments, journal


def test_a_killed_transcription_goes_on_from_its_last_window(tiny, recording, tmp_path):
    code, _, arguments, journal = interrupted(signal.SIGKILL, tmp_path, recording, tiny)
    assert code == -signal.SIGKILL and journal.exists() and not (tmp_path / "talk.json").exists()
    with journal.open("ab") as file:
        file.write(b'{"seek": 400, "si')  # what a crash may leave
    known = journal.read_bytes().count(b"\n") - 1
    code, out, err = zoo(*arguments, "--resume")
    assert code == 0 and "where an earlier run stopped" in err and not journal.exists()
    resumed = (tmp_path / "talk.json").read_text()
    assert 2 <= known < err.count("of 00:09.500") + known
    assert zoo(*arguments)[:2] == (0, out) and (tmp_path / "talk.json").read_text() == resumed


def test_ctrl_c_says_how_to_go_on_and_other_options_do_not_go_on(tiny, recording, tmp_path):
    code, err, arguments, journal = interrupted(signal.SIGINT, tmp_path, recording, tiny)
    assert code == 130 and "the same command with --resume goes on from there" in err
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    code, _, err = zoo(*arguments, "--resume", "--task", "translate")
    assert code == 1 and "that run had another task (task 'transcribe')" in err and journal.exists()
    journal.write_bytes(b"{}\nnothing\n")
    code, _, err = zoo(*arguments, "--resume")
    assert code == 1 and "it is damaged" in err
