"""Recordings as files or standard input: any length, rate and number of channels become 16 kHz mono, piece by piece.

libsndfile (by soundfile) decodes; no other program is started. Reading goes forward, in blocks of about a second, of
which the last minute is kept: memory does not grow with the recording, and samples are the same bits however they are
asked for. A file that ends early is read as far as it goes, with a warning that says how far that is.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from zoo.core.errors import DataError
from zoo.whisper.audio import SAMPLE_RATE
from zoo.whisper.resample import Resampler, length

STDIN = "-"
SPOOL = 4 << 30
"""Bytes of a pipe, which decoders cannot go back in, that are put into a temporary file: what a WAV file may have."""
RATES = (1000, 400_000)
"""Hz. What claims another rate is damaged; the highest in use are 384,000."""
KEPT = 64
"""Blocks: more than the 30 s that a model hears at once, which are asked for again where a window moves on by less."""
PAGE = 1 << 16
"""Frames that are decoded at once."""
UNKNOWN = (1 << 63) - 1
"""libsndfile's number of frames of a file whose length is not written in it."""
STREAMED = 0x7FFF0000
"""A size of a WAV file from here on is what programs write into a pipe, since they cannot know."""
EXACT = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
"""Formats in which one can jump; the others' samples depend on those before (libsndfile 1.2 jumps in Vorbis to other
samples than it reads there)."""

KINDS = ((4, b"ftyp", "MP4 or M4A"), (0, b"\x1aE\xdf\xa3", "Matroska or WebM"), (0, b"0&\xb2u", "WMA"),
         (0, b"\xff\xf1", "AAC"), (0, b"\xff\xf9", "AAC"), (0, b"#!AMR", "AMR"), (0, b"PK\x03\x04", "a ZIP archive"),
         (0, b"%PDF", "PDF"), (0, b"\x89PNG", "PNG"), (0, b"\xff\xd8\xff", "JPEG"))  # fmt: skip
"""(place, bytes, name) of files that people try, and that libsndfile does not read."""


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C is heard at the end. libsndfile reads by a callback, and what is raised within that is lost: the sound
    would seem to end there, and nobody would have pressed anything."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[Any] = []
    signal.signal(signal.SIGINT, lambda *call: heard.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])


class Recording:
    """A file, or standard input ("-"), as samples at 16 kHz.

    name: as a user would write it
    about: what it is, as in "FLAC, 44,100 Hz, 2 channels"
    """

    def __init__(self, path: str | os.PathLike[str], warn: Callable[[str], None] = _warn):
        """`warn` is called with a sentence when the recording turns out to be cut short, empty, or to hold samples that
        are not numbers (which count as silence).

        Raises DataError if there is no such file, or it is not sound that can be read.
        """
        self._stdin = os.fspath(path) == STDIN
        self.name = "standard input" if self._stdin else os.fspath(path)
        self._warn = warn
        self._file = self._open(os.fspath(path))
        try:
            with _undisturbed():
                self._sound = self._decoder()
            self.rate: int = self._sound.samplerate
            if not RATES[0] <= self.rate <= RATES[1]:
                why = f"it claims {self.rate:,} samples a second: it is damaged, or no recording"
                raise self._error(why, f"Rates from {RATES[0]:,} to {RATES[1]:,} are read.")
        except BaseException:
            self._release()
            raise
        channels = f"{self._sound.channels} channel{'s' * (self._sound.channels != 1)}"
        self.about = f"{self._sound.format}, {self.rate:,} Hz, {channels}"
        self._resampler = Resampler(self.rate) if self.rate != SAMPLE_RATE else None
        self._step, self._reach = (self._resampler.step, self._resampler.reach) if self._resampler else (SAMPLE_RATE, 0)
        self._block_size = self._resampler.block if self._resampler else SAMPLE_RATE
        self._frames: int | None = self._sound.frames if self._sound.frames < UNKNOWN else None
        self._certain = False  # that it has so many frames
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._pages: OrderedDict[int, np.ndarray] = OrderedDict()
        self._next = 0  # page that the decoder gives next
        self._numbers = True  # no sample yet that is none
        self._say_if_short()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._sound.close()
        self._release()

    def _release(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    @property
    def duration(self) -> float | None:
        """Seconds; None while nobody can know, which reading to the end changes."""
        return None if self._frames is None else self._frames / self.rate

    def read(self, start: int, count: int) -> np.ndarray:
        """Samples start to start + count at 16 kHz, float32; fewer (or none) where the recording ends before."""
        if start < 0 or count < 0:
            raise ValueError(f"there is no sample {start}, or no {count} samples")
        pieces, at = [], start
        while at < (end := min(start + count, self._length)):
            number, offset = divmod(at, self._block_size)
            block = self._block(number)
            pieces.append(block[offset : offset + max(0, min(end, self._length) - at)])  # the end may be known only now
            at += self._block_size - offset
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)

    # --- blocks

    @property
    def _length(self) -> int:
        return sys.maxsize if self._frames is None else length(self._frames, self.rate)

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            frames = self._span(number * self._step - self._reach, self._step + 2 * self._reach)
            self._blocks[number] = self._resampler(frames) if self._resampler else frames
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _span(self, first: int, count: int) -> np.ndarray:
        """Frames first to first + count as mono; 0 where there are none."""
        out = np.zeros(count, np.float32)
        at = max(first, 0)
        while at < first + count and (self._frames is None or at < self._frames):
            piece = self._page(at // PAGE)[at % PAGE :][: first + count - at]
            if not len(piece):
                break
            out[at - first : at - first + len(piece)] = piece
            at += len(piece)
        return out

    # --- pages of frames: decoders are always asked for the same ones, since mp3's last bits depend on how many

    def _page(self, number: int) -> np.ndarray:
        """Frames number * PAGE and on, the mean of the channels: (PAGE,), or fewer at the end."""
        if number not in self._pages:
            with _undisturbed():
                if number != self._next:
                    self._go(number)
            while self._next <= number:
                with _undisturbed():
                    self._pages[self._next] = self._decode()
                    self._next += 1
                if len(self._pages) > 2 + (self._step + 2 * self._reach) // PAGE:  # what a block reads
                    self._pages.popitem(last=False)
        return self._pages[number]

    def _go(self, number: int) -> None:
        """Makes the decoder give this page next, or one before it."""
        import soundfile

        if self._sound.format in EXACT:
            with contextlib.suppress(soundfile.LibsndfileError):  # damaged: by reading, as far as that goes
                self._sound.seek(number * PAGE)
                self._next = number
                return
        if number < self._next:
            self._reopen()
            self._next = 0

    def _reopen(self) -> None:
        import soundfile

        self._file.seek(0)
        self._sound = soundfile.SoundFile(self._file)

    def _decode(self) -> np.ndarray:
        import soundfile

        frames = np.zeros((PAGE, self._sound.channels), np.float32)
        start, why = self._next * PAGE, "it ends there"
        try:
            got = len(self._sound.read(out=frames))
        except soundfile.LibsndfileError as error:  # what was decoded before it is in `frames`
            got = min(max(self._sound.tell() - start, 0), PAGE)
            why = f"{error}".rpartition(" : ")[2].strip(" .")
            frames[got:] = 0
            got = self._past_damage(start, got, why)
        if got < PAGE and not self._certain:
            claimed, self._frames, self._certain = self._frames, start + got, True
            if claimed is not None and start + got < claimed:
                self._short(start + got, claimed, why)
        frames = frames[:got]
        if not np.isfinite(frames).all():
            if self._numbers:
                place = clock(start + int(np.argmin(np.isfinite(frames).all(axis=1))), self.rate)
                self._warn(f"{self.name}: samples that are no numbers count as silence, the first at {place}")
            self._numbers = False
            frames = np.where(np.isfinite(frames), frames, np.float32(0))
        mono = frames[:, 0].copy()
        for channel in range(1, frames.shape[1]):
            mono += frames[:, channel]
        mono /= frames.shape[1]
        return mono

    def _past_damage(self, start: int, got: int, why: str) -> int:
        """Goes on behind a damaged place, where the format can jump; what is lost counts as silence. Gives the frames
        of the page that there are then."""
        import soundfile

        if self._sound.format not in EXACT or not got:  # a second page with nothing in it: there is no more
            return got
        try:
            self._reopen()  # this decoder has given up
            self._sound.seek(start + PAGE)
        except soundfile.LibsndfileError:
            return got
        lost = f"{clock(start + got, self.rate)} to {clock(start + PAGE, self.rate)}"
        self._warn(f"{self.name}: it is damaged: {lost} count as silence ({why})")
        return PAGE

    # --- opening

    def _error(self, why: str, fix: str) -> DataError:
        return DataError(f"cannot read {self.name}", why, fix)

    def _open(self, path: str) -> BinaryIO:
        """The bytes, in which one can go back."""
        try:
            file: BinaryIO = sys.stdin.buffer if self._stdin else open(path, "rb")  # noqa: SIM115
            if self._stdin and sys.stdin.isatty():
                raise self._error("nobody writes into it", "Pipe sound into it, as in `zoo run whisper - < talk.wav`.")
            if not file.seekable():
                file = self._spooled(file)
        except FileNotFoundError:
            raise self._error("there is no such file", "Check the path.") from None
        except IsADirectoryError:
            raise self._error("it is a directory", "Name the files, as in DIR/*.wav.") from None
        except PermissionError:
            raise self._error("this user may not read the file", "Check its rights.") from None
        except OSError as error:
            raise self._error(error.strerror or str(error), "Check the path.") from error
        return file

    def _spooled(self, pipe: BinaryIO) -> BinaryIO:
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        size = 0
        with contextlib.nullcontext() if self._stdin else pipe:
            while piece := pipe.read(1 << 20):
                size += len(piece)
                if size > SPOOL:
                    file.close()
                    why = f"more than {SPOOL >> 30} GB came in, and they are kept until they are read"
                    raise self._error(why, "Write it to a file first.")
                file.write(piece)
        file.seek(0)
        return file

    def _decoder(self) -> Any:
        try:
            import soundfile
        except (ImportError, OSError) as error:  # OSError: the package is there, the library is not
            fix = "`pip install soundfile`, or your system's libsndfile, bring it."
            raise self._error(f"soundfile cannot be used ({error})", fix) from error
        head = self._file.read(16)
        self._file.seek(0)
        if not head:
            raise self._error("the file is empty", "Give a recording.")
        try:
            return soundfile.SoundFile(self._file)
        except (soundfile.LibsndfileError, TypeError, ValueError):  # TypeError: its name says that it has no header
            kind = next((name for at, mark, name in KINDS if head[at:].startswith(mark)), None)
            known = ["WAV", "FLAC", "OGG (Vorbis, Opus)", "MP3", "AIFF", "AU", "CAF"]
            here = [name for name in known if name.split()[0] in soundfile.available_formats()]
            why = f"it is {kind}" if kind else "it is not sound, of a format that is not read here, or damaged"
            fix = f"{', '.join(here)} are read; `ffmpeg -i FILE talk.wav` makes one of most others."
            raise self._error(why, fix) from None

    def _say_if_short(self) -> None:
        """Warns of what the file's beginning and end tell of it: libsndfile takes less than is claimed in silence."""
        if self._frames == 0:
            self._warn(f"{self.name}: it holds no samples")
        elif self._sound.format == "OGG":
            if not _has_end(self._file):
                self._warn(f"{self.name}: it is cut short: it can be read up to {clock(self._frames, self.rate)}")
        elif self._frames is not None:
            log = self._sound.extra_info
            sizes = [(int(a), int(b)) for a, b in re.findall(r": (\d+) \(should be (\d+)\)", log)]
            claimed = [int(n) for n in re.findall(r"'ds64' chunk of (\d+)", log)]
            claimed += [self._frames * a // b for a, b in sizes[-1:] if b < a < STREAMED]
            if claimed and claimed[0] > self._frames:
                self._short(self._frames, claimed[0], "it ends there")

    def _short(self, frames: int, claimed: int, why: str) -> None:
        upto, of = clock(frames, self.rate), clock(claimed, self.rate)
        self._warn(f"{self.name}: it is cut short: it can be read up to {upto} of {of} ({why})")


class Samples:
    """Sound that is in memory, (n,) float32 at 16 kHz, as a recording."""

    def __init__(self, samples: np.ndarray, name: str = "samples"):
        self.samples = np.asarray(samples, np.float32)
        self.name = name
        if self.samples.ndim != 1:
            raise ValueError(f"samples are one channel, (n,), not {self.samples.shape}")

    @property
    def duration(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    def read(self, start: int, count: int) -> np.ndarray:
        return self.samples[start : start + count]


def load(path: str | os.PathLike[str], warn: Callable[[str], None] = _warn) -> np.ndarray:
    """A whole recording: (n,) float32 at 16 kHz. Raises DataError as `Recording` does."""
    with Recording(path, warn) as recording:
        return recording.read(0, sys.maxsize)


def clock(frames: int | None, rate: int) -> str:
    """0:01:02.50, of so many frames."""
    hundredths = round((frames or 0) * 100 / rate)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _has_end(file: BinaryIO) -> bool:
    """Whether the last page of an Ogg file says that it is (RFC 3533, 6: bit 4 of the flags)."""
    place = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65307))  # the longest page
        tail = file.read()
    finally:
        file.seek(place)
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)
