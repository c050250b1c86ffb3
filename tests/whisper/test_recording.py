"""Sound files as people have them: every format and width, cut short, damaged, empty, no sound at all, and pipes."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from zoo.core.errors import DataError
from zoo.whisper import recording
from zoo.whisper.recording import Recording, Samples, load

DATA = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
JFK = DATA / "whisper-assets"
FORMATS = soundfile.available_formats()


def speechlike(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Harmonics of 120 Hz up to 2400 Hz whose loudness comes and goes: (n,) or (n, channels)."""
    t = np.arange(round(seconds * rate)) / rate
    x = sum(np.sin(2 * np.pi * 120 * k * t + k) / k for k in range(1, 21))
    x = 0.2 * x * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t))
    return x if channels == 1 else np.stack([x * (c + 1) / channels for c in range(channels)], axis=1)


def write(path: Path, x: np.ndarray, rate: int, **settings: str) -> Path:
    soundfile.write(path, x, rate, **settings)
    return path


def no_warning(message: str) -> None:
    raise AssertionError(message)


KINDS = [
    ("wav", "PCM_U8", 8e-3), ("wav", "PCM_16", 4e-5), ("wav", "PCM_24", 1e-6), ("wav", "PCM_32", 1e-6),
    ("wav", "FLOAT", 1e-6), ("wav", "DOUBLE", 1e-6), ("wav", "ULAW", 2e-2), ("flac", "PCM_16", 4e-5),
    ("flac", "PCM_24", 1e-6), ("ogg", "VORBIS", 0.05), ("ogg", "OPUS", 0.08), ("mp3", "MPEG_LAYER_III", 0.05),
    ("aiff", "PCM_16", 4e-5), ("au", "PCM_16", 4e-5), ("caf", "PCM_16", 4e-5), ("w64", "PCM_16", 4e-5),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype", "tolerance"), KINDS)
def test_every_format_and_width(tmp_path, kind, subtype, tolerance):
    """A step of the width's integers; what lossy codecs of such a tone lose, by ear nothing."""
    if kind.upper() not in FORMATS:
        pytest.skip(f"this libsndfile has no {kind}")
    x = speechlike(1.5, 16000)
    found = load(write(tmp_path / f"a.{kind}", x, 16000, subtype=subtype), no_warning)
    assert found.dtype == np.float32 and abs(len(found) - 24000) <= 0
    assert np.abs(found - x)[200:-200].max() < tolerance


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels(tmp_path, rate, channels):
    path = write(tmp_path / "a.wav", speechlike(1.2, rate, channels), rate, subtype="FLOAT")
    with Recording(path, no_warning) as opened:
        assert opened.duration == pytest.approx(1.2) and f"{rate:,} Hz, {channels} channel" in opened.about
        found = opened.read(0, 10**9)
    expected = speechlike(1.2, 16000) * (channels + 1) / 2 / channels
    assert len(found) == 19200
    assert np.abs(found - expected)[300:-300].max() < 1e-4


@pytest.mark.parametrize(
    ("rate", "kind"), [(16000, "wav"), (44100, "flac"), (8000, "wav"), (48000, "ogg"), (22050, "mp3")]
)
def test_the_same_samples_however_they_are_asked_for(tmp_path, monkeypatch, rate, kind):
    """In any pieces, backwards and far apart, the last blocks forgotten or not: the same bits."""
    if kind.upper() not in FORMATS:
        pytest.skip(f"this libsndfile has no {kind}")
    path = write(tmp_path / f"a.{kind}", speechlike(7.3, rate, 2), rate)
    whole = load(path, no_warning)
    rng = np.random.default_rng(1)
    for kept in (recording.KEPT, 2):
        monkeypatch.setattr(recording, "KEPT", kept)
        with Recording(path, no_warning) as opened:
            at = 0
            while at < len(whole):
                count = int(rng.integers(1, 30_000))
                np.testing.assert_array_equal(opened.read(at, count), whole[at : at + count])
                at += count
            for at in (0, 100_000, 50_000, 116_000, 3, 90_001, 31_999):
                np.testing.assert_array_equal(opened.read(at, 1000), whole[at : at + 1000])
            assert len(opened.read(len(whole), 10)) == 0 and len(opened.read(len(whole) - 3, 10)) == 3


def test_real_speech_at_two_rates():
    """jfk.flac (44.1 kHz, stereo, 24 bits) becomes what jfk.wav is, which ffmpeg made of it."""
    if not JFK.is_dir():
        pytest.skip(f"no {JFK} (ZOO_TEST_DATA)")
    ours, theirs = load(JFK / "jfk.flac", no_warning), load(JFK / "jfk.wav", no_warning)
    assert len(ours) == len(theirs) == 176_000
    error = ours - theirs  # of rounding to 16 bits, and of another filter
    assert 10 * np.log10((error**2).mean() / (theirs**2).mean()) < -35


def test_memory_does_not_grow_with_the_recording(tmp_path):
    """Two minutes and eight of 44.1 kHz stereo, of which a minute is kept (3.8 MB)."""
    peaks = []
    for minutes in (2, 8):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 44100, 2, subtype="PCM_16") as file:
            for _ in range(minutes):
                file.write(np.zeros((60 * 44100, 2), np.int16))
        tracemalloc.start()
        with Recording(path, no_warning) as opened:
            total = sum(len(opened.read(at, 480_000)) for at in range(0, minutes * 960_000, 480_000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == minutes * 960_000
    assert peaks[1] < peaks[0] * 1.02 and peaks[1] < 16e6


# --- what is wrong with files -----------------------------------------------------------------------------------------


def warned(path: Path) -> tuple[np.ndarray, list[str]]:
    said: list[str] = []
    return load(path, said.append), said


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff", "au", "rf64", "w64"])
def test_cut_short(tmp_path, kind):
    """It is read as far as it goes, and said how far that is."""
    if kind.upper() not in FORMATS:
        pytest.skip(f"this libsndfile has no {kind}")
    x = speechlike(10, 16000) + 0.01 * np.random.default_rng(0).standard_normal(160_000)
    whole = write(tmp_path / f"a.{kind}", x, 16000, format=kind.upper())
    complete = load(whole, no_warning)
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    found, said = warned(cut)
    assert 4 * 16000 < len(found) < 8 * 16000
    assert len(said) == 1 and "cut short" in said[0] and "up to 0:00:0" in said[0], said
    if kind != "ogg":
        assert "of 0:00:10.00" in said[0], said
    np.testing.assert_array_equal(found[:-2000], complete[: len(found) - 2000])


def test_a_damaged_flac_goes_on_behind_the_damage(tmp_path):
    """3,000 bytes in the middle are lost: silence up to the next of the places that are jumped to."""
    x = speechlike(20, 16000) + 0.01 * np.random.default_rng(0).standard_normal(320_000)
    path = write(tmp_path / "a.flac", x, 16000)
    complete = load(path, no_warning)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    found, said = warned(path)
    assert len(found) == len(complete) and len(said) == 1
    assert "damaged" in said[0] and "to 0:00:12.29 count as silence" in said[0] and "lost sync" in said[0]
    wrong = np.flatnonzero(found != complete)
    assert 9 * 16000 < wrong[0] < 11 * 16000 and wrong[-1] < 3 * recording.PAGE
    assert not found[wrong[0] : 3 * recording.PAGE].any()


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_file_that_went_through_a_pipe_is_whole(tmp_path, size):
    """Programs that write into a pipe cannot know the size: they claim the largest there is."""
    path = write(tmp_path / "a.wav", speechlike(1, 16000), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", size)
    assert data[36:40] == b"data"
    path.write_bytes(data)
    assert len(load(path, no_warning)) == 16000


def test_no_samples(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(0), 44100)
    found, said = warned(path)
    assert len(found) == 0 and found.dtype == np.float32 and said == [f"{path}: it holds no samples"]
    with Recording(path, lambda _: None) as opened:
        assert opened.duration == 0 and len(opened.read(5, 100)) == 0


def test_samples_that_are_no_numbers(tmp_path):
    x = speechlike(1, 16000, 2).astype(np.float32)
    x[4000:4010, 0], x[9000, 1] = np.nan, np.inf
    found, said = warned(write(tmp_path / "a.wav", x, 16000, subtype="FLOAT"))
    assert np.isfinite(found).all() and len(said) == 1 and "no numbers" in said[0] and "0:00:00.25" in said[0]
    np.testing.assert_array_equal(found[4000:4010], x[4000:4010, 1] / 2)


def test_warnings_are_pythons_where_nobody_asks_for_them(tmp_path):
    with pytest.warns(UserWarning, match="no samples"):
        load(write(tmp_path / "a.wav", np.zeros(0), 44100))


NOT_SOUND = [
    (b"", "the file is empty", "recording"),
    (b"hello, this is text" * 9, "not sound", "WAV, FLAC, OGG"),
    (b"\0\0\0\x1cftypM4A " + bytes(500), "MP4 or M4A", "ffmpeg -i"),
    (b"\x1aE\xdf\xa3" + bytes(500), "Matroska or WebM", "ffmpeg -i"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG", "ffmpeg -i"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "damaged", "WAV, FLAC"),
    (b"fLaC" + bytes(40), "damaged", "WAV, FLAC"),
    (b"ID3" + bytes(60), "damaged", "WAV, FLAC"),
]


@pytest.mark.parametrize(("data", "why", "fix"), NOT_SOUND)
@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.raw"])
def test_no_sound(tmp_path, data, why, fix, name):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        Recording(path)
    assert str(path) in caught.value.what and why in caught.value.why and fix in caught.value.fix


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Recording(tmp_path / "none.wav")
    with pytest.raises(DataError, match="directory"):
        Recording(tmp_path)


@pytest.mark.parametrize("rate", [1, 999, 400_001, 2**31 - 1])
def test_a_rate_that_cannot_be(tmp_path, rate):
    path = write(tmp_path / "a.wav", np.zeros(100), 16000)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{rate:,} samples a second"):
        Recording(path)


# --- standard input ---------------------------------------------------------------------------------------------------

CODE = """
import sys
from zoo.whisper.recording import Recording
with Recording("-") as opened:
    print(opened.name, opened.duration, len(opened.read(0, 10**9)), sep="|")
"""


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_piped(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", speechlike(1, 44100), 44100)
    for command in (f"cat {path} | {sys.executable} -c '{CODE}'", f"{sys.executable} -c '{CODE}' < {path}"):
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("standard input|1.0|16000\n", "")


def test_a_named_pipe(tmp_path):
    """As bash makes one of `<(program)`."""
    path, pipe = write(tmp_path / "a.wav", speechlike(1, 16000), 16000), tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(f"cat {path} > {pipe}", shell=True):
        assert len(load(pipe, no_warning)) == 16000


def test_a_pipe_has_a_limit(monkeypatch):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe(bytes(3 << 20))
    monkeypatch.setattr(recording, "SPOOL", 2 << 20)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe, isatty=lambda: False))
    with pytest.raises(DataError, match="GB came in"):
        Recording("-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(b""), isatty=lambda: False))
    with pytest.raises(DataError, match="empty"):
        Recording("-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe, isatty=lambda: True))
    with pytest.raises(DataError, match="nobody writes"):
        Recording("-")


def test_an_interruption_while_the_decoder_reads_is_not_lost(tmp_path, monkeypatch):
    """At any of the calls by which libsndfile asks Python for bytes, where what is raised comes to nothing."""
    path = write(tmp_path / "talk.wav", speechlike(12, 16000), 16000)
    whole, handler = load(path), signal.getsignal(signal.SIGINT)
    calls, at = 0, 0

    class Interrupted(io.FileIO):
        def readinto(self, buffer):
            nonlocal calls
            calls += 1
            if calls == at:
                signal.raise_signal(signal.SIGINT)
            return super().readinto(buffer)

    monkeypatch.setattr(Recording, "_open", lambda self, path: Interrupted(path, "rb"))
    np.testing.assert_array_equal(load(path), whole)
    for at in range(1, calls + 1):  # noqa: B007 (Interrupted reads it)
        calls, sound = 0, None
        with pytest.raises(KeyboardInterrupt):
            sound = Recording(path)
            sound.read(0, len(whole))
        assert signal.getsignal(signal.SIGINT) is handler
        if sound is not None:
            np.testing.assert_array_equal(sound.read(0, len(whole) + 1), whole)
    assert at > 5


def test_samples_in_memory():
    opened = Samples(np.arange(32000))
    assert opened.duration == 2.0 and opened.read(31_990, 100).tolist() == list(range(31_990, 32_000))
    assert len(opened.read(40_000, 5)) == 0
    with pytest.raises(ValueError, match="one channel"):
        Samples(np.zeros((2, 5)))
