"""Speech for scripts/train_whisper_digits.py: espeak-ng reads digits and numbers aloud in many voices, and of what it
said whole recordings are put together: pauses, rooms, noise. Every word's place is known, so every timestamp is too.

espeak-ng (github.com/espeak-ng/espeak-ng, version 1.51) is used as a library: it tells at which sample a word begins.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import ZooError
from zoo.whisper.audio import log_mel

RATE = 16_000
ACCENTS = ("en-us", "en-us-nyc", "en", "en-gb-x-rp")
# Voices are accent + variant. Variants that are one voice in several states (Steph, Steph2) stay on one side.
TRAINED = [
    "m1", "m3", "m4", "m6", "m8", "f1", "f2", "f5", "Alex", "Alicia", "Andy", "AnxiousAndy", "Annie", "Denis",
    "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "adam", "anika",
    "belinda", "benjamin", "boris", "caleb", "ed", "edward", "edward2", "gustave", "iven", "iven2", "iven3", "john",
    "kaukovalta", "klatt", "klatt2", "klatt4", "linda", "marcelo", "max", "miguel", "norbert", "paul", "pedro",
    "quincy", "robert", "sandro", "steph", "steph2", "steph3", "travis", "zac",
]  # fmt: skip
VALIDATION = ["m5", "f4", "david", "Nguyen", "klatt5", "shelby"]
"""Of the run: by these its settings were chosen."""
HELD_OUT = ["m2", "m7", "f3", "Andrea", "antonio", "aunty", "Michael", "rob", "victor", "pablo"]
"""Heard by nobody before the end."""
GROUPS = {"train": TRAINED, "validation": VALIDATION, "held_out": HELD_OUT}

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = (*ONES, "oh", *TEENS, *TENS, "hundred", "thousand", "and", "point")


# what is said


def below_hundred(n: int) -> list[str]:
    if n < 20:
        return [(ONES + TEENS)[n]]
    return [TENS[n // 10 - 2]] + ([ONES[n % 10]] if n % 10 else [])


def cardinal(n: int) -> list[str]:
    """0 to 9,999 in words, as in Britain: "four hundred and twelve"."""
    if n < 100:
        return below_hundred(n)
    if n < 1000:
        return [ONES[n // 100], "hundred"] + (["and", *below_hundred(n % 100)] if n % 100 else [])
    rest = n % 1000
    tail = [] if not rest else cardinal(rest) if rest >= 100 else ["and", *below_hundred(rest)]
    return [*cardinal(n // 1000), "thousand", *tail]


def year(n: int) -> list[str]:
    """1100 to 1999, in one of the two ways by its own number: "nineteen hundred and five", "nineteen eighty four"."""
    first, rest = below_hundred(n // 100), n % 100
    if rest == 0:
        return [*first, "hundred"]
    if rest < 10:
        return [*first, "hundred", "and", ONES[rest]] if n % 2 else [*first, "oh", ONES[rest]]
    return first + below_hundred(rest)


def sentence(rng: np.random.Generator) -> list[str]:
    kind = rng.choice(6, p=[0.38, 0.14, 0.16, 0.1, 0.1, 0.12])
    if kind == 0:
        words = [ONES[d] for d in rng.integers(0, 10, rng.integers(1, 9))]
        return ["oh" if w == "zero" and rng.random() < 0.5 else w for w in words]
    if kind == 1:
        return below_hundred(int(rng.integers(10, 100)))
    if kind == 2:
        return [word for n in rng.integers(10, 100, rng.integers(2, 5)) for word in below_hundred(int(n))]
    if kind == 3:
        return cardinal(int(rng.integers(100, 10_000)))
    if kind == 4:
        return year(int(rng.integers(1100, 2000)))
    return [*cardinal(int(rng.integers(0, 130))), "point", *(ONES[d] for d in rng.integers(0, 10, rng.integers(1, 4)))]


# who says it


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    )  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_WORD, _SYNCHRONOUS, _CHARACTERS, _UTF8 = 1, 2, 1, 1
_SPEED, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7


class Espeak:
    """One speaker per process."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libespeak-ng.so.1")
        except OSError as error:
            fix = "Install it: `apt-get install espeak-ng`. Only the making of the training speech needs it."
            raise ZooError("espeak-ng is not installed", str(error), fix) from error
        self._rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        self._heard: list[np.ndarray] = []
        self._begins: list[int] = []
        self._callback = _CALLBACK(self._hear)  # kept alive
        self._lib.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if count > 0 and samples:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == _WORD:
                self._begins.append(events[i].sample)
            i += 1
        return 0

    def say(self, words: list[str], voice: str, speed: int, pitch: int, pitch_range: int, gap: int) -> tuple[Any, Any]:
        """-> (samples (n,) float32 at 16 kHz without silence around them, where each word begins). gap: between
        words, in 10 ms. Words without a place of their own give no speech: espeak-ng joined them."""
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ZooError(f"espeak-ng has no voice {voice}", "", "Install espeak-ng-data of version 1.51.")
        for number, value in ((_SPEED, speed), (_PITCH, pitch), (_RANGE, pitch_range), (_WORD_GAP, gap)):
            self._lib.espeak_SetParameter(number, value, 0)
        text = " ".join(words).encode()
        self._heard.clear(), self._begins.clear()
        self._lib.espeak_Synth(text, len(text) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        heard = np.concatenate(self._heard).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(heard) > 0.01 * np.abs(heard).max())
        first, last = int(loud[0]), int(loud[-1]) + 1
        begins = [round(max(b - first, 0) * RATE / self._rate) for b in self._begins]
        return resampled(heard[first:last], self._rate), begins if len(begins) == len(words) else None


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """From `rate` to 16 kHz by cutting the spectrum (rates above 16 kHz, and a silent end so that nothing wraps)."""
    step = rate // np.gcd(rate, RATE)
    padded = np.pad(samples, (0, -len(samples) % step + step))
    count = len(padded) * RATE // rate
    spectrum = np.fft.rfft(padded)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count)[: -(-len(samples) * RATE // rate)].astype(np.float32) * (count / len(padded))


@dataclass(frozen=True)
class Speech:
    """Utterances in one long array: what was said where. `words[i]` are the words of utterance i, and
    `begins[i]` the sample of utterance i where each of them begins."""

    samples: np.ndarray
    starts: np.ndarray
    words: list[list[str]]
    begins: list[list[int]]
    voices: list[str]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768


def _spoken(task: tuple[str, int, int]) -> list[tuple[np.ndarray, list[str], list[int], str]]:
    """All utterances of one voice."""
    voice, count, seed = task
    os.nice(10)
    speaker, found = Espeak(), []
    rng = np.random.default_rng([seed, *voice.encode()])
    while len(found) < count:
        words = sentence(rng)
        speed, pitch, pitch_range = int(rng.integers(110, 230)), int(rng.integers(25, 76)), int(rng.integers(25, 76))
        gap = int(rng.choice([0, 0, 0, 2, 5, 9]))
        samples, begins = speaker.say(words, voice, speed, pitch, pitch_range, gap)
        if begins is not None and len(samples) < 5 * RATE:
            found.append((np.round(samples / np.abs(samples).max() * 20_000).astype(np.int16), words, begins, voice))
    return found


def speech(directory: Path, group: str, each: int, seed: int) -> Speech:
    """`each` utterances of every voice of a group, from the cache in `directory` or made now with two processes."""
    stem = directory / f"{group}-{each}-{seed}"
    facts_file, samples_file = stem.with_suffix(".json"), stem.with_suffix(".npy")
    if not facts_file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        tasks = [(f"{accent}+{variant}", each, seed) for variant in GROUPS[group] for accent in ACCENTS]
        with get_context("spawn").Pool(2) as pool:
            rows = [row for voice in pool.imap(_spoken, tasks) for row in voice]
        np.save(samples_file, np.concatenate([row[0] for row in rows]))
        lengths = [len(row[0]) for row in rows]
        facts = {"lengths": lengths, "rows": [row[1:] for row in rows]}
        facts_file.write_text(json.dumps(facts))
    facts = json.loads(facts_file.read_text())
    words, begins, voices = (list(part) for part in zip(*facts["rows"], strict=True))
    starts = np.concatenate([[0], np.cumsum(facts["lengths"])])
    return Speech(np.load(samples_file, mmap_mode="r"), starts, words, begins, voices)


# what is recorded


@dataclass
class Window:
    """A stretch of a recording: samples (n,) float32, and its words as (word, start, end) in seconds, by utterance.
    An utterance that begins or ends outside has only the words that are whole; `cut`: where the next one begins."""

    samples: np.ndarray
    utterances: list[list[tuple[str, float, float]]]
    cut: float | None


EDGE = 0.2
"""Seconds before the end of a window within which a word may not end to be taken for whole: "seventeen", cut there,
is no "seven"."""


def window(source: Speech, seconds: float, rng: np.random.Generator) -> Window:
    """A recording of `seconds` as the model may meet it: from the start of an utterance, after one, or from a word
    within one, where a window before ended; one time in sixteen without speech."""
    total = round(seconds * RATE)
    clean = np.zeros(total, np.float32)
    spoken: list[list[tuple[str, float, float]]] = []
    cut = None
    if rng.random() >= 1 / 16:
        at = 0 if rng.random() < 0.3 else int(rng.uniform(0, 1.0 if rng.random() < 0.85 else 3.0) * RATE)
        number, first = int(rng.integers(len(source))), 0
        if rng.random() < 0.25 and len(source.words[number]) > 1:
            at, first = 0, int(rng.integers(1, len(source.words[number])))
        loudness = 1.0
        while at < total and cut is None:
            samples, begins = source[number], source.begins[number]
            change = float(rng.uniform(0.92, 1.09)) if not spoken else change  # noqa: F821 - one speaker, one change
            samples = faster(samples, change)
            begins = [round(b / change) for b in begins]
            skip = max(begins[first] - int(rng.uniform(0, 0.03) * RATE), 0) if first else 0
            part = samples[skip : skip + total - at]
            clean[at : at + len(part)] += part * loudness
            ends = [*begins[1:], len(samples)]
            whole = []
            for word, begin, end in list(zip(source.words[number], begins, ends, strict=True))[first:]:
                begin, end = at + begin - skip, at + end - skip
                if end > total - EDGE * RATE:
                    cut = min(begin, total) / RATE
                    break
                whole.append((word, max(begin, 0) / RATE, end / RATE))
            if whole:
                spoken.append(whole)
            at += len(samples) - skip + int(np.exp(rng.uniform(np.log(0.35), np.log(2.5))) * RATE)
            same = rng.random() < 0.7
            number = neighbour(source, number, rng) if same else int(rng.integers(len(source)))
            loudness, first = loudness * float(np.exp(rng.uniform(-0.3, 0.3))), 0
            if rng.random() < 0.12:
                break
    if cut is not None and cut >= seconds - 0.02:
        cut = None  # it begins after all that is heard
    return Window(recorded(clean, source, rng), spoken, cut)


def recording(source: Speech, numbers: Sequence[int], rng: np.random.Generator, *, plain: bool = False) -> np.ndarray:
    """These utterances one after the other, whole, with pauses, as a microphone gives them; plain: without noise."""

    def pause(seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * RATE), np.float32)

    parts = [pause(rng.uniform(0.2, 0.8))]
    for number in numbers:
        parts += [source[number], pause(np.exp(rng.uniform(np.log(0.5), np.log(2))))]
    clean = np.concatenate(parts)
    return clean if plain else recorded(clean, source, rng)


def neighbour(source: Speech, number: int, rng: np.random.Generator) -> int:
    """Another utterance of the same voice: they lie side by side."""
    found = min(max(number + int(rng.integers(-8, 9)), 0), len(source) - 1)
    return found if source.voices[found] == source.voices[number] else number


def faster(samples: np.ndarray, by: float) -> np.ndarray:
    """As a tape that runs faster: higher, and with a shorter throat: another speaker."""
    return np.interp(np.arange(0, len(samples) - 1, by), np.arange(len(samples)), samples).astype(np.float32)


def recorded(clean: np.ndarray, source: Speech, rng: np.random.Generator) -> np.ndarray:
    """Speech as a microphone gives it: in a room, with noise, at some loudness, as 16-bit numbers."""
    n = len(clean)
    y = clean
    if rng.random() < 0.2:  # a room: decaying noise, 60 dB down after 0.1 to 0.4 s, beside the direct sound
        decay = rng.uniform(0.1, 0.4)
        t = np.arange(int(decay * RATE)) / RATE
        room = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay) * rng.uniform(0.01, 0.03)
        room[0] = 1
        y = convolved(y, room)
    if rng.random() < 0.3:  # a microphone that is dull, or thin
        tilt = rng.uniform(-0.5, 0.7)
        y = y - tilt * np.concatenate([[0], y[:-1]])
    level = float(np.sqrt(np.mean(np.square(clean)) + 1e-12)) if clean.any() else 0.05
    if rng.random() < 0.5:
        y = y + noise(n, source, rng) * (level * 10 ** (-rng.uniform(15, 40) / 20))
    y = y / max(float(np.abs(y).max()), 1e-6) * 10 ** (-rng.uniform(0.5, 30) / 20)
    return (np.round(y * 32767) / 32768).astype(np.float32)


def noise(n: int, source: Speech, rng: np.random.Generator) -> np.ndarray:
    """White, pink or brown, a hum with its harmonics, or voices far away; root mean square 1."""
    kind = rng.integers(5)
    if kind < 3:
        spectrum = np.fft.rfft(rng.standard_normal(n).astype(np.float32))
        y = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 20) ** (0.5 * kind), n)
    elif kind == 3:
        t = np.arange(n) * (2 * np.pi * rng.choice([50, 60]) / RATE)
        y = sum(rng.random() / k * np.sin(k * t + rng.uniform(0, 6.28)) for k in range(1, 8))
        y = y + 0.1 * rng.standard_normal(n)
    else:
        y = np.zeros(n)
        for _ in range(int(rng.integers(6, 12))):
            y = y + np.roll(np.resize(source[int(rng.integers(len(source)))], n), int(rng.integers(n)))
        y = convolved(y, rng.standard_normal(2000) * np.exp(-np.arange(2000) / 500))
    return y / np.sqrt(np.mean(np.square(y)) + 1e-12)


def convolved(y: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    size = 1 << (len(y) + len(kernel) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(y, size) * np.fft.rfft(kernel, size), size)[: len(y)]


# what is kept


@dataclass(frozen=True)
class Windows:
    """Recordings as a model takes them: log-mel features (n, frames, 80) float16, and of each what is said in it."""

    features: np.ndarray
    utterances: list[list[list[tuple[str, float, float]]]]
    cuts: list[float | None]

    def __len__(self) -> int:
        return len(self.cuts)


BLOCK = 64
"""Windows that a process makes at a time, from a random stream of their own."""


_source: list[Speech] = []


def _begin(source: Speech) -> None:
    os.nice(10)
    _source[:] = [source]


def _recorded_block(task: tuple[float, int, int]) -> tuple[np.ndarray, list[Any], list[float | None]]:
    seconds, seed, block = task
    rng = np.random.default_rng([seed, block])
    found = [window(_source[0], seconds, rng) for _ in range(BLOCK)]
    features = np.stack([log_mel(w.samples, 80) for w in found]).astype(np.float16)
    return features, [w.utterances for w in found], [w.cut for w in found]


def windows(directory: Path, group: str, source: Speech, seconds: float, count: int, seed: int) -> Windows:
    """`count` recordings (a multiple of 64) of a group's voices, from the cache in `directory` or made now with two
    processes: putting one together takes as long as learning from it."""
    stem = directory / f"{group}-{seconds:g}s-{count}-{seed}"
    facts_file, features_file = stem.with_suffix(".json"), stem.with_suffix(".npy")
    if not facts_file.exists():
        shape = (count, round(seconds * 100), 80)
        features = np.lib.format.open_memmap(features_file, "w+", np.float16, shape)
        utterances, cuts = [], []
        with get_context("fork").Pool(2, _begin, (source,)) as pool:  # forked: the speech is not copied
            tasks = ((seconds, seed, block) for block in range(count // BLOCK))
            for block, (part, said, cut) in enumerate(pool.imap(_recorded_block, tasks)):
                features[block * BLOCK : (block + 1) * BLOCK] = part
                utterances += said
                cuts += cut
        features.flush()
        facts_file.write_text(json.dumps({"utterances": utterances, "cuts": cuts}))
    facts = json.loads(facts_file.read_text())
    return Windows(np.load(features_file, mmap_mode="r"), facts["utterances"], facts["cuts"])
