"""The journal of a transcription: what has been heard so far, so that a run that was killed can go on.

A file of one JSON object a line: first what the run is made of (recording, model, options), then each window as soon as
it is known. Every line is on the disk before the next window is begun; one that a crash cut short does not count. When
the transcription is complete, the journal goes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import ZooError
from zoo.core.tensor import Tensor
from zoo.hub.files import sync_directory, writing
from zoo.whisper.cache import Cache
from zoo.whisper.model import Whisper
from zoo.whisper.window import Window

SUFFIX = ".resume.jsonl"
CLOSE = 1e-2
"""Of the largest: logits of the same weights differ less between devices; between two models, or dtypes, more."""


class Journal:
    """Of one recording. Nothing is written before the first window is heard, and an older journal stays until then."""

    def __init__(self, path: Path, made_of: Mapping[str, Any]):
        """made_of: what must be the same for two runs to be one: JSON values by name."""
        self.path, self.made_of = path, dict(made_of)
        self._begun = False

    def windows(self) -> list[Window]:
        """What an earlier run heard; nothing where there was none.

        Raises ZooError if that run was another: of another recording or model, or with other options.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        try:
            before = json.loads(lines[0]) if lines else {}
            whole = [line for line in lines[1:] if line.endswith(b"\n")]
            found = [Window.from_json(json.loads(line)) for line in whole]
            different = [name for name in self.made_of if not same(before.get(name), self.made_of[name])]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise self._error("it is damaged", "Delete it, and start anew.") from error
        if different:
            was = ", ".join(f"{name} {before.get(name)!r}" for name in different if name in ("task", "language"))
            why = f"that run had another {' and '.join(different)}" + (f" ({was})" if was else "")
            raise self._error(why, "Repeat its command with --resume, or start anew without.")
        with writing(self.path), self.path.open("rb+") as file:
            file.truncate(len(lines[0]) + sum(map(len, whole)))
        self._begun = True
        return found

    def add(self, window: Window) -> None:
        """Raises WeightsError where the disk is full or the directory may not be written."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path), self.path.open("ab" if self._begun else "wb") as file:
            if not self._begun:
                file.write(_line(self.made_of))
            file.write(_line(window.to_json()))
            file.flush()
            os.fsync(file.fileno())
        if not self._begun:
            sync_directory(self.path.parent)
        self._begun = True

    def done(self) -> None:
        self.path.unlink(missing_ok=True)

    def _error(self, why: str, fix: str) -> ZooError:
        return ZooError(f"cannot go on from {self.path}", why, fix)


def same(a: Any, b: Any) -> bool:
    """Equal; lists of fractions up to CLOSE."""
    if isinstance(a, list) and isinstance(b, list) and any(isinstance(x, float) for x in b):
        return len(a) == len(b) and float(np.abs(np.subtract(a, b)).max()) <= CLOSE * float(np.abs(b).max())
    return bool(a == b)


def fingerprint(model: Whisper) -> list[float]:
    """What a model answers to a fixed input: 16 logits, which depend on all of its layers, whatever file, adapter or
    dtype its weights come in."""
    config = model.config
    features = np.sin(np.arange(16 * config.num_mel_bins, dtype=np.float32)).reshape(1, 16, -1)
    encoded = model.encode(Tensor(model.device.from_host(features), model.device))
    ids = Tensor(model.device.from_host(np.array([[config.decoder_start_token_id]], np.int32)), model.device)
    logits = model.decode(ids, Cache(model, encoded)).numpy()[0, -1]
    return [float(f"{logit:.6g}") for logit in logits[:: max(len(logits) // 16, 1)][:16]]


def hash_of(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
