"""Text for training: files become token ids, with a mark on those that are to be learned.

.txt     one text
.jsonl   a row each: {"text": ...} | {"prompt": ..., "completion": ...} | {"messages": [{"role": ..., "content": ...}]};
         prompts, and what others than the assistant say, are seen but not learned
a directory: train.txt or train.jsonl, and valid.txt or valid.jsonl where there is one
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import DataError, WeightsError
from zoo.llama.tokenizer import Tokenizer
from zoo.train.tokens import IGNORED


@dataclass(frozen=True)
class Example:
    ids: list[int]
    learned: list[bool]
    """Of each id, whether it is to be predicted."""


def files(path: Path) -> tuple[Path, Path | None]:
    """(training file, validation file or None). Raises DataError if there is nothing to train on."""
    if path.is_file():
        return path, None
    if not path.exists():
        raise DataError(f"there is no {path}", "it is no file and no directory", "Give a .txt or .jsonl file.")
    found = {name: path / f"{name}{end}" for name in ("valid", "train") for end in (".txt", ".jsonl")
             if (path / f"{name}{end}").is_file()}  # fmt: skip
    if "train" not in found:
        why = "it holds neither train.jsonl nor train.txt"
        raise DataError(f"there is nothing to train on in {path}", why, "Name the file itself, or name it so.")
    return found["train"], found.get("valid")


def text_of(path: Path) -> str:
    """Raises DataError if it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", str(error), "Give a text file in UTF-8.") from error


def read(path: Path, tokenizer: Tokenizer) -> list[Example]:
    """The examples of a file. Raises DataError that names the line of a row that cannot be used."""
    text = text_of(path)
    if path.suffix != ".jsonl":
        return [_whole(tokenizer, text)]
    examples = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                examples.append(_row(tokenizer, json.loads(line)))
            except (ValueError, WeightsError) as error:
                why = getattr(error, "why", None) or str(error)
                raise DataError(f"cannot use line {number} of {path}", why, _FORMS) from error
    if not examples:
        raise DataError(f"there is nothing in {path}", "it has no rows", _FORMS)
    return examples


_FORMS = 'A row is {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}.'


def _row(tokenizer: Tokenizer, row: Any) -> Example:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if "messages" in row:
        return _conversation(tokenizer, row["messages"])
    names = ("prompt", "completion") if "prompt" in row else ("text",)
    texts = [text for name in names if isinstance(text := row.get(name), str)]
    if len(texts) < len(names):
        raise ValueError(f"it has {', '.join(map(repr, row)) or 'nothing'}, and not the texts that are needed")
    if len(texts) == 1:
        return _whole(tokenizer, texts[0])
    prompt, both = tokenizer.encode(texts[0]), tokenizer.encode(texts[0] + texts[1])
    return _closed(tokenizer, both, _shared(prompt, both))


def _whole(tokenizer: Tokenizer, text: str) -> Example:
    return _closed(tokenizer, tokenizer.encode(text), 0)


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


def pack(examples: Sequence[Example], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of `length` tokens with several texts each: inputs, targets, and the number of the text that each token
    belongs to, (rows, length), int32. What is not learned is IGNORED, and so is what fills a row.

    A text that fits into a row is never cut, so that no answer is learned without its prompt; longer ones are cut
    into whole rows and a rest. Pieces go where they leave the least room, the longest first (best-fit decreasing: Ding
    et al. 2024). By the numbers, attention keeps to one text (`Llama`): packed or alone, a text is learned alike.
    Raises DataError if nothing is to be learned.
    """
    pieces = []
    for example in examples:
        ids = np.array(example.ids, np.int32)
        targets = np.where(np.array(example.learned[1:], bool), ids[1:], IGNORED)
        for start in range(0, len(targets), length):
            piece = ids[:-1][start : start + length], targets[start : start + length]
            if (piece[1] != IGNORED).any():
                pieces.append(piece)
    if not pieces:
        raise DataError("there is nothing to learn", "no row has an answer of one token or more", _FORMS)
    rows = _fitted([len(ids) for ids, _ in pieces], length)
    inputs, texts = np.zeros((2, len(rows), length), np.int32)
    packed = np.full((len(rows), length), IGNORED, np.int32)
    for row, members in enumerate(rows):
        at = 0
        for number, member in enumerate(members):
            ids, targets = pieces[member]
            end = at + len(ids)
            inputs[row, at:end], packed[row, at:end], texts[row, at:] = ids, targets, number  # what fills it comes last
            at = end
    return inputs, packed, texts


def _fitted(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which pieces share a row. Rows are in the order of their first piece, and pieces in theirs."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    for piece in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[piece]
        room = next((r for r in range(size, length + 1) if by_room[r]), None)
        if room is None:
            room, row = length, len(rows)
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(piece)
        by_room[room - size].append(row)
    return sorted(sorted(row) for row in rows)
