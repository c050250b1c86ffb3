"""A data set of text as packed rows: small ones in memory, larger ones in files that are kept for the next run.

Tokens of a gigabyte take minutes to make and seconds to find again, so they lie in this user's cache directory by the
hash of everything that they follow from: the files' bytes, the tokenizer, the rows' length.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.data.bad import Skipped
from zoo.hub.files import writing
from zoo.hub.refs import cache_dir
from zoo.llama.data import files, parts_of, texts
from zoo.llama.packing import Column, Packed, Packing
from zoo.llama.tokenizer import Tokenizer

VERSION = 1
"""Of the files; older ones are made anew."""
IN_MEMORY = 64 << 20
"""Bytes of text that are kept in memory."""
KEPT = 4
"""Data sets whose tokens stay in the cache directory, the last ones that were used."""
FACTS = "facts.json"


def corpus(
    data: Path, tokenizer: Tokenizer, vocab_size: int, length: int, skipped: Skipped | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Packed, Packed]:  # fmt: skip
    """(to train on, held out), as rows of `length` tokens. Raises DataError if there is nothing to train on, or a row
    cannot be used and is not to be skipped."""
    train, valid = files(data)
    every = [*parts_of(train), *(parts_of(valid) if valid is not None else [])]
    size = sum(path.stat().st_size for path in every)
    if size <= IN_MEMORY:
        return _made(train, valid, tokenizer, vocab_size, length, skipped, None)
    base = cache_dir("tokens")
    folder = base / _key(every, train, tokenizer, vocab_size, length, skipped is not None)
    if not (folder / FACTS).is_file():
        if say is not None:
            say(f"making tokens of {size / 1e9:.1f} GB, which are kept in {folder}")
        part = base / f".{folder.name}.{secrets.token_hex(4)}"
        with writing(folder):
            try:
                for name in ("train", "valid"):
                    (part / name).mkdir(parents=True)
                told = Skipped() if skipped is not None else None
                rows = _made(train, valid, tokenizer, vocab_size, length, told, part)
                facts = {"parts": [_facts(packed, part) for packed in rows], "length": length,
                         "skipped": {} if told is None else told.rows}  # fmt: skip
                (part / FACTS).write_text(json.dumps(facts))
                for packed in rows:
                    for column in (packed.tokens, packed.plan, packed.rows):
                        column.close()
                if not (folder / FACTS).is_file():  # else another process was faster
                    shutil.rmtree(folder, ignore_errors=True)
                    part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        _forget(base, folder)
    os.utime(folder)
    facts = json.loads((folder / FACTS).read_text())
    if skipped is not None:
        for place, why in facts["skipped"].items():
            skipped.add(place, why)
    found = [_opened(part, folder, facts["length"]) for part in facts["parts"]]
    return found[0], found[1]


def _made(
    train: Path, valid: Path | None, tokenizer: Tokenizer, vocab_size: int, length: int, skipped: Skipped | None,
    folder: Path | None,
) -> tuple[Packed, Packed]:  # fmt: skip
    packings = []
    for name, path in (("train", train), ("valid", valid)):
        if path is not None:
            packings.append(Packing(length, vocab_size, folder / name if folder is not None else None))
            for text in texts(path, tokenizer, skipped):
                packings[-1].add(text)
    return packings[0].parts() if len(packings) == 1 else (packings[0].rows(), packings[1].rows())


def _facts(packed: Packed, folder: Path) -> dict[str, Any]:
    columns = {}
    for name, column in (("tokens", packed.tokens), ("plan", packed.plan), ("rows", packed.rows)):
        assert column.path is not None
        path = column.path.relative_to(folder).as_posix()
        columns[name] = {"path": path, "dtype": column.dtype.str, "width": column.width, "count": len(column)}
    return {**columns, "learned": packed.learned}


def _opened(facts: dict[str, Any], folder: Path, length: int) -> Packed:
    tokens, plan, rows = (
        Column(of["dtype"], of["width"], folder / of["path"], of["count"])
        for of in (facts[name] for name in ("tokens", "plan", "rows"))
    )
    return Packed(tokens, plan, rows, length, facts["learned"])


def _key(every: list[Path], train: Path, tokenizer: Tokenizer, vocab_size: int, length: int, lenient: bool) -> str:
    shape = [VERSION, tokenizer.fingerprint(), vocab_size, length, lenient, len(parts_of(train))]
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    for path in every:
        digest.update(repr((path.suffix, path.stat().st_size)).encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _forget(base: Path, folder: Path) -> None:
    """Removes what was used longest ago."""
    others = [path for path in base.iterdir() if (path / FACTS).is_file() and path != folder]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
