"""Text for training: files become token ids, with a mark on those that are to be learned.

.txt                                  one text, of any length
.jsonl  .jsonl.gz  .csv  .parquet     a row each: {"text": ...} | {"prompt": ..., "completion": ...} |
                                      {"messages": [{"role": ..., "content": ...}]}; prompts, and what others than the
                                      assistant say, are seen but not learned
a directory (`zoo.data.files`): train.* and valid.*, or folders of that name with such files, or such files alone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.core.errors import DataError
from zoo.data import rows as tables
from zoo.data.bad import Skipped
from zoo.data.files import find
from zoo.data.rows import Row
from zoo.llama.long_text import WINDOW
from zoo.llama.tokenizer import Tokenizer

_FORM = 'A row is {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}.'


@dataclass(frozen=True)
class Example:
    ids: list[int]
    learned: list[bool]
    """Of each id, whether it is to be predicted."""


def files(path: Path) -> tuple[Path, Path | None]:
    """(what to train on, what is held out or None): files, or folders of them. Raises DataError if there is nothing to
    train on."""
    found = find(path, (".txt", *tables.SUFFIXES))
    if not parts_of(found.train):
        why = f"{found.train} holds neither train.jsonl nor train.txt, nor other texts"
        raise DataError(f"there is nothing to train on in {path}", why, "Name the file itself, or name it so.")
    return found.train, found.valid


def parts_of(path: Path) -> list[Path]:
    """A file itself; of a folder, the texts and files of rows in it, in the order of their names."""
    if path.is_file():
        return [path]
    found = (file for file in path.iterdir() if tables.suffix(file) in (".txt", *tables.SUFFIXES))
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def text_of(path: Path) -> str:
    """Raises DataError if it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "Give a text file in UTF-8.") from error


def texts(
    path: Path, tokenizer: Tokenizer, skipped: Skipped | None = None
) -> Iterator[Iterable[tuple[Any, list[bool] | None]]]:
    """The texts of a file or folder, each in parts (ids, which are learned; None: all of them), as `Packing` takes it.
    Memory does not grow with files nor texts. Raises DataError that names the rows that cannot be used."""
    for file in parts_of(path):
        if tables.suffix(file) in tables.SUFFIXES:
            for example in read(file, tokenizer, skipped):
                yield [(example.ids, None if all(example.learned) else example.learned)]
        else:
            yield _parts(file, tokenizer)


def _parts(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[Any, None]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((ids, None) for ids in tokenizer.encode_long(file.read))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "Give a text file in UTF-8.") from error
    yield sorted(tokenizer.stops)[:1], None


def read(path: Path, tokenizer: Tokenizer, skipped: Skipped | None = None) -> Iterator[Example]:
    """The examples of a file of rows. Raises DataError that names the rows that cannot be used, unless those are to be
    skipped."""
    return tables.read(path, lambda row: _example(tokenizer, row), form=_FORM, skipped=skipped)


def _example(tokenizer: Tokenizer, row: Row) -> Example:
    if "messages" in row.values:
        return _conversation(tokenizer, row.values["messages"])
    prompt = row.text("prompt") if "prompt" in row.values else ""
    text = row.text("completion" if "prompt" in row.values else "text")
    if not text.strip():
        raise ValueError("there is nothing to learn in it: its text is empty")
    if not prompt:
        return _closed(tokenizer, _ids(tokenizer, text), 0)
    before, both = _ids(tokenizer, prompt), _ids(tokenizer, prompt + text)
    return _closed(tokenizer, both, _shared(before, both))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    if len(text) <= WINDOW:
        return tokenizer.encode(text)
    places = iter(range(0, len(text), WINDOW))
    pieces = tokenizer.encode_long(lambda n: text[at : at + n] if (at := next(places, None)) is not None else "")
    return [int(i) for piece in pieces for i in piece]


def _closed(tokenizer: Tokenizer, ids: list[int], given: int) -> Example:
    """With the token that ends a text; the first `given` ids are not learned."""
    ids = [*ids, *sorted(tokenizer.stops)[:1]]
    return Example(ids, [i >= given for i in range(len(ids))])


def _conversation(tokenizer: Tokenizer, messages: Any) -> Example:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("messages is not a list of objects")
    ids: list[int] = []
    learned: list[bool] = []
    for i, message in enumerate(messages):
        if message.get("role") == "assistant":
            before, after = tokenizer.chat(messages[:i]), tokenizer.chat(messages[: i + 1], answering=False)
            start = _shared(before, after)
            learned += [False] * (start - len(ids)) + [True] * (len(after) - start)
            ids = after
    if not ids:
        raise ValueError("nobody answers: there is no message of the assistant")
    return Example(ids, learned[: len(ids)])


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with: where a prompt's last piece joins with the answer's first, it is learned too."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
