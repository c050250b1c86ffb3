"""Recordings with their texts, for training: a manifest in JSON lines becomes batches of features and tokens.

    {"audio": "talk.flac", "text": "And so, my fellow Americans", "language": "en", "start": 3.2, "end": 9.0}

audio     a file in the data's folder (also called file_name, file or path); no more sound than the model hears at once
text      what is said. With timestamps, "<|0.00|> And so<|1.20|>", where they are in it, is learned with them; else
          the model is told that there are none
language  a code as in "en"; that of the option where it is absent
start end which seconds of the file; from its beginning and to its end where they are absent
prompt    what was said before: seen, not learned
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError
from zoo.core.random import Generator
from zoo.data import rows as tables
from zoo.data.bad import BadRow, Skipped
from zoo.data.files import find, media
from zoo.data.loader import Loader, stream
from zoo.data.rows import Row
from zoo.train.tokens import IGNORED
from zoo.whisper.audio import HOP, SAMPLE_RATE, log_mel
from zoo.whisper.augment import SpecAugment
from zoo.whisper.config import WhisperConfig
from zoo.whisper.recording import Recording
from zoo.whisper.tokenizer import Tokenizer

SPREAD = 16
"""Batches among which rows are sorted by length."""
_TIMESTAMP = re.compile(r"<\|(\d+\.\d\d)\|>")
_FORM = 'A row is {"audio": FILE, "text": ...}, and may have language, start, end and prompt.'


@dataclass(frozen=True)
class Clip:
    """A stretch of a recording and its tokens: `ids` from the prompt to the end, of which all after `given` are
    learned."""

    path: Path
    start: float
    seconds: float
    ids: tuple[int, ...]
    given: int
    place: str = ""
    """Where its row is: FILE:LINE."""

    def samples(self) -> np.ndarray:
        """At 16 kHz. Raises DataError if they cannot be decoded: what is damaged is silence to who listens, and a
        wrong lesson to who learns."""
        damage: list[str] = []
        with Recording(self.path, damage.append) as recording:
            samples = recording.read(round(self.start * SAMPLE_RATE), round(self.seconds * SAMPLE_RATE))
        if damage:
            raise DataError(f"cannot learn from {self.path}", damage[0])
        return samples


# rows


def files(path: Path) -> tuple[Path, Path | None]:
    """(training manifest, validation manifest or None) of a file of rows, or of a directory (`zoo.data.files`).
    Raises DataError if there is nothing to train on."""
    found = find(path)
    for part in (found.train, found.valid):
        if part is not None and part.is_dir():
            why = f"{part} holds neither train.jsonl nor metadata.jsonl"
            raise DataError(f"there is nothing to train on in {path}", why, _FORM)
    return found.train, found.valid


def read(
    path: Path, tokenizer: Tokenizer, config: WhisperConfig, *, language: str, task: str, root: Path | None = None,
    skipped: Skipped | None = None,
) -> list[Clip]:  # fmt: skip
    """The clips of a manifest, whose files lie in `root` (without it, in the manifest's folder). Raises DataError that
    names every row that cannot be used, by its line; with `skipped`, those are left out."""
    folder = path.parent if root is None else root

    def clip(row: Row) -> Clip:
        row.text("text")
        return _clip(row, media(row, path, folder, "audio"), tokenizer, config, language, task)

    return list(tables.read(path, clip, form=_FORM, skipped=skipped))


def _clip(row: Row, path: Path, tokenizer: Tokenizer, config: WhisperConfig, language: str, task: str) -> Clip:
    start, seconds = _span(row.values, path, config.frames * HOP / SAMPLE_RATE)
    before = _before(row.values, tokenizer, config)
    sot = tokenizer.sot_sequence(_language(row.values, tokenizer, language), task)
    text = _tokens(row.text("text"), tokenizer, seconds)
    ids = (*before, *sot, *text, tokenizer.eot)
    if len(ids) - 1 > config.max_target_positions:
        raise ValueError(f"its text is {len(ids) - 1} tokens; the model writes {config.max_target_positions} at once")
    return Clip(path, start, seconds, ids, len(before), row.place)


def _span(row: dict[str, Any], path: Path, window: float) -> tuple[float, float]:
    """(start, length) in seconds."""
    damage: list[str] = []
    with Recording(path, damage.append) as recording:
        whole = recording.duration
        if whole is None:  # a stream that does not say: read it once
            recording.read(1 << 60, 1)
            whole = recording.duration or 0.0
    if damage:
        raise ValueError(damage[0])
    start, end = (_number(row.get(name, without)) for name, without in (("start", 0.0), ("end", whole)))
    if not 0 <= start < end:
        raise ValueError(f"it is from {start} to {end} seconds" if whole else f"{path} holds no sound")
    if end > whole + 0.05:
        raise ValueError(f"it ends at {end:g} s; {path} has {whole:.2f} s")
    seconds = min(end, whole) - start
    if seconds > window + 1e-3:
        raise ValueError(f"it is {seconds:.2f} s long; the model hears {window:g} s at once: cut it with start and end")
    return float(start), float(seconds)


def _number(value: Any) -> float:
    """Seconds; a CSV has them as text. Raises ValueError if it is none."""
    if not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)


def _language(row: dict[str, Any], tokenizer: Tokenizer, language: str) -> str:
    found = row.get("language", language)
    if tokenizer.multilingual and found not in tokenizer.languages:
        raise ValueError(f"the model does not know the language {found!r}")
    if not tokenizer.multilingual and found != "en":
        raise ValueError(f"the language is {found!r}; this model knows English only")
    return str(found)


def _before(row: dict[str, Any], tokenizer: Tokenizer, config: WhisperConfig) -> list[int]:
    """The prompt's last tokens, as many as a decoder keeps (openai/whisper decoding.py)."""
    prompt = row.get("prompt") or ""
    if not isinstance(prompt, str):
        raise ValueError("prompt is no text")
    ids = tokenizer.encode(" " + prompt.strip())[-(config.max_target_positions // 2 - 1) :] if prompt.strip() else []
    return [tokenizer.sot_prev, *ids] if ids else []


def _tokens(text: str, tokenizer: Tokenizer, seconds: float) -> list[int]:
    """With a space before, as Whisper writes. Timestamps in the text become their tokens."""
    parts = _TIMESTAMP.split(text)  # text, seconds, text, seconds, ...
    if not any(part.strip() for part in parts[::2]):
        raise ValueError("its text is empty")
    if len(parts) == 1:
        return [tokenizer.no_timestamps, *tokenizer.encode(" " + text.strip())]
    ids, last = [], 0.0
    for i, part in enumerate(parts):
        if i % 2:
            time = float(part)
            if not last <= time <= seconds + 0.02:
                raise ValueError(f"its timestamp <|{part}|> is after the end, {seconds:.2f} s, or before the last one")
            ids.append(tokenizer.timestamp_begin + round(time / 0.02))
            last = time
        elif part.strip():
            ids += tokenizer.encode(" " + part.strip())
    return ids


# batches


class Clips:
    """Rows for a Loader: features, and tokens in and out, worked out when they are asked for."""

    def __init__(self, clips: Sequence[Clip], config: WhisperConfig, filler: int):
        self.clips, self.config, self.filler = clips, config, filler

    def __len__(self) -> int:
        return len(self.clips)

    def place(self, row: int) -> str:
        clip = self.clips[row]
        return f"{clip.place}, {clip.path}" if clip.place else str(clip.path)

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """features (B, T, n_mels), input ids (B, L), targets (B, L), frames of sound (B,). Windows are filled with
        silence, as the model was trained; L is that of the longest text."""
        chosen = [self.clips[int(row)] for row in rows]
        window = self.config.frames * HOP
        features = np.empty((len(chosen), self.config.frames, self.config.num_mel_bins), np.float32)
        frames = np.empty(len(chosen), np.int32)
        longest = max(len(clip.ids) for clip in chosen) - 1
        inputs = np.full((len(chosen), longest), self.filler, np.int32)
        targets = np.full((len(chosen), longest), IGNORED, np.int32)
        for i, clip in enumerate(chosen):
            try:
                samples = clip.samples()[:window]
            except DataError as error:
                raise BadRow(int(rows[i]), self.place(int(rows[i])), f"{error.what}: {error.why}") from error
            features[i] = log_mel(np.pad(samples, (0, window - len(samples))), self.config.num_mel_bins)
            frames[i] = min(-(-len(samples) // HOP), self.config.frames)
            inputs[i, : len(clip.ids) - 1] = clip.ids[:-1]
            targets[i, clip.given : len(clip.ids) - 1] = clip.ids[clip.given + 1 :]
        return features, inputs, targets, frames


class ByLength(Loader):
    """Batches of texts about as long as each other, so that little is filler. Who is with whom, and the order of the
    batches, is a function of the seed and the epoch."""

    def __init__(self, data: Clips, batch: int, *, seed: int, **options: Any):
        super().__init__(data, batch, seed=seed, **options)

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        order = stream(self.seed, "order", epoch).permutation(self.rows)
        lengths = np.array([len(clip.ids) for clip in self.data.clips])[order]
        step = self.batch * SPREAD
        nearby = [at + np.argsort(lengths[at : at + step], kind="stable") for at in range(0, self.rows, step)]
        order = order[np.concatenate(nearby)]
        groups = [order[at : at + self.batch] for at in range(0, self.rows, self.batch)]
        return [groups[i] for i in stream(self.seed, "batches", epoch).permutation(len(groups))]


@dataclass(frozen=True)
class Masking:
    """What a Loader does to a batch of `Clips`."""

    augment: SpecAugment

    def __call__(self, batch: tuple[np.ndarray, ...], rng: Generator) -> tuple[np.ndarray, ...]:
        draws = np.random.default_rng(rng.seed)
        for features, frames in zip(batch[0], batch[3], strict=True):
            self.augment(features, int(frames), draws)
        return batch
