"""Text to token ids and back, by the vocabulary that belongs to a checkpoint; what the special tokens mean.

    text    byte-pair encoding of UTF-8, cut into words first as GPT-2 does
    then    <|endoftext|> <|startoftranscript|> <|en|> ... <|translate|> <|transcribe|> <|startoflm|> <|startofprev|>
            <|nospeech|> <|notimestamps|>, and times within a window, <|0.00|> to <|30.00|> in steps of 0.02 s

Publishers ship it as tokenizer.json, as vocab.json with merges.txt (the special tokens in added_tokens.json), or, as
OpenAI, as a table of ranks for all models of many languages, and one for those of English. The `tokenizers` library
runs it, with nothing else that such a file may ask for: no dropout, no space before a text, no tokens around it; and
what looks like a special token in a text is text.  Source: openai/whisper tokenizer.py.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json
from zoo.whisper.config import MULTILINGUAL
from zoo.whisper.languages import LANGUAGES, WITHOUT_SPACES

SECONDS = 0.02
"""Between two timestamps."""
TIMES = 1501
"""Timestamps of the published models."""
LIMIT = 64 << 20
"""Bytes of a vocabulary's file; Whisper's take up to 4 MB."""
MANY_TABLE, ENGLISH_TABLE = "multilingual.tiktoken", "gpt2.tiktoken"
ENGLISH_END = 50256
"""<|endoftext|> of models of English alone, whose text is GPT-2's."""

NON_SPEECH = [
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"),
    *("♪♪", "♪♪♪"),
]
"""What is no speech, but who speaks and how, or music: suppressed where it is one token, with a space before or not."""
NOTES = "♩♪♫♬♭♮♯"
"""The same, by their first token: these share their first two bytes, and the other characters with them, U+2640 to
U+267F, are no speech either."""


class Tokenizer:
    """Of one checkpoint.

    sot, eot, sot_prev, sot_lm, transcribe, translate, no_timestamps: ids of special tokens
    no_speech: the same; None where a vocabulary has none
    timestamp_begin, timestamps: the id of 0.00 s, and how many times there are
    languages: code -> id
    multilingual: whether a transcription begins with the tokens of its language and task
    """

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, int],
        vocab_size: int, multilingual: bool | None = None,
    ):  # fmt: skip
        """vocabulary, merges: of the text, with bytes written as GPT-2 writes them; special: name -> id; vocab_size is
        the model's. Raises ValueError if they are no Whisper's."""
        import tokenizers

        self._core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(vocabulary), merges=list(merges)))
        self._core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._special = {id: name for name, id in special.items()}
        byte_of = {character: byte for byte, character in enumerate(shown_bytes())}
        try:
            text = ((id, bytes(byte_of[c] for c in token)) for token, id in vocabulary.items() if token not in special)
            self._bytes = dict(text)
        except KeyError as error:
            raise ValueError(f"it writes bytes in another way than Whisper's: {error}") from error
        if (most := max([*vocabulary.values(), *special.values()])) >= vocab_size:
            raise ValueError(f"it has {most + 1:,} tokens, the model has embeddings for {vocab_size:,}")

        def named(*names: str) -> int:
            found = next((special[name] for name in names if name in special), None)
            if found is None:
                raise ValueError(f"it has no {names[0]}: it is not Whisper's")
            return found

        self.eot, self.sot = named("<|endoftext|>"), named("<|startoftranscript|>")
        self.transcribe, self.translate = named("<|transcribe|>"), named("<|translate|>")
        self.sot_lm, self.sot_prev = named("<|startoflm|>"), named("<|startofprev|>")
        self.no_timestamps = named("<|notimestamps|>")
        self.no_speech: int | None = special.get("<|nospeech|>", special.get("<|nocaptions|>"))
        self.timestamp_begin = special.get("<|0.00|>", self.no_timestamps + 1)
        listed = sum(id >= self.timestamp_begin for id in special.values())
        self.timestamps = listed or min(TIMES, vocab_size - self.timestamp_begin)
        found = {code: special[name] for code in LANGUAGES if (name := f"<|{code}|>") in special}
        self.languages = dict(sorted(found.items(), key=lambda entry: entry[1]))
        self.multilingual = self.eot != ENGLISH_END if multilingual is None else multilingual

    @classmethod
    def of(cls, model: Any) -> Tokenizer:
        """That of a loaded model, kept on it. Raises WeightsError if there is none beside its weights, or another's."""
        found: Tokenizer | None = getattr(model, "_tokenizer", None)
        if found is None:
            found = model._tokenizer = cls.beside(model.source, model.config.vocab_size)
        return found

    @classmethod
    def beside(cls, source: Any, vocab_size: int) -> Tokenizer:
        """That of a Checkpoint (zoo/hub/refs.py), or None for none. Raises WeightsError as `of` does."""
        directory = None if source is None else source.directory
        around = directory or (source.file.parent if source is not None else None)
        table = MANY_TABLE if vocab_size >= MULTILINGUAL else ENGLISH_TABLE
        files = [] if directory is None else [directory / "tokenizer.json", directory / "vocab.json"]
        files += [] if around is None else [around / table]
        path = next((path for path in files if path.is_file()), None)
        if path is None:
            raise _missing(source, table)
        if path.stat().st_size > LIMIT:
            why = f"it has {path.stat().st_size:,} bytes: no Whisper's vocabulary is that large"
            raise WeightsError(f"cannot read {path}", why, "Fetch the file again.")
        multilingual = None
        if directory is not None and (generation := directory / "generation_config.json").is_file():
            said = read_json(generation).get("is_multilingual")
            multilingual = said if isinstance(said, bool) else None
        try:
            return cls(*READ[path.name](path, vocab_size), vocab_size, multilingual)
        except WeightsError:
            raise
        except Exception as error:  # the library raises Exception itself
            why = str(error)[:200] if not isinstance(error, KeyError) else f"it has no {error}"
            raise WeightsError(f"cannot use {path}", why, "Fetch the file that belongs to this checkpoint.") from error

    # --- text

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with nothing around it. A transcript's begins with a space, as words within it do."""
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens and timestamps left out; bytes that are no character become U+FFFD."""
        return b"".join(self._bytes.get(int(id), b"") for id in ids).decode("utf-8", "replace")

    def words(self, ids: Sequence[int], language: str | None = None) -> tuple[list[str], list[list[int]]]:
        """(words, ids of each): cut where a space begins a token, or, in languages written without, after every whole
        character. A special token is a word, and so is a mark of punctuation."""
        parts, part_ids = self._characters(ids)
        if language in WITHOUT_SPACES:
            return parts, part_ids
        words: list[str] = []
        word_ids: list[list[int]] = []
        for part, own in zip(parts, part_ids, strict=True):
            alone = own[0] >= self.eot or part.startswith(" ") or part.strip() in string.punctuation
            if alone or not words:
                words.append(part)
                word_ids.append(own)
            else:
                words[-1] += part
                word_ids[-1] += own
        return words, word_ids

    def _characters(self, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """Cut wherever what there is so far is whole characters; U+FFFD counts as one where it stays one to the end."""
        whole = self._annotated(ids)
        parts: list[str] = []
        part_ids: list[list[int]] = []
        since: list[int] = []
        length = 0
        for id in ids:
            since.append(int(id))
            text = self._annotated(since)
            torn = text.find("\ufffd")
            if torn < 0 or whole[length + torn : length + torn + 1] == "\ufffd":
                parts.append(text)
                part_ids.append(since)
                length, since = length + len(text), []
        if since:  # further bytes of a character that ends too early: one U+FFFD stands for all of them
            if not parts:
                parts, part_ids = [""], [[]]
            part_ids[-1] += since
        return parts, part_ids

    def _annotated(self, ids: Sequence[int]) -> str:
        """Text with the names of special tokens in it."""
        pieces = (self._special[id].encode() if id in self._special else self._bytes.get(id, b"") for id in ids)
        return b"".join(pieces).decode("utf-8", "replace")

    # --- special tokens

    def sot_sequence(self, language: str | None, task: str) -> list[int]:
        """What a transcription begins with. language: a code of `languages`; of no meaning to a model of English."""
        if not self.multilingual:
            return [self.sot]
        return [self.sot, self.languages[language or "en"], self.translate if task == "translate" else self.transcribe]

    def is_timestamp(self, id: int) -> bool:
        return 0 <= id - self.timestamp_begin < self.timestamps

    def seconds(self, id: int) -> float:
        """The time of a timestamp, from the beginning of the window."""
        return (id - self.timestamp_begin) * SECONDS

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Ids, sorted, of what nobody says: brackets, notes, marks of who speaks. Hyphens and apostrophes stand within
        words, and are left out only at their beginning."""
        found = {id for text in (" -", " '") for id in self.encode(text)[:1]}
        for symbol in [*NON_SPEECH, *NOTES]:
            for ids in (self.encode(symbol), self.encode(" " + symbol)):
                if len(ids) == 1 or (ids and symbol in NOTES):
                    found.add(ids[0])
        return tuple(sorted(found))


def _missing(source: Any, table: str) -> WeightsError:
    what = f"cannot read or write text for {source.shown if source is not None else 'this model'}"
    if source is not None and source.directory is None:
        why = f"a single file of weights holds no vocabulary, and there is no {table} beside {source.file.name}"
        fix = f"Put {table} of github.com/openai/whisper (whisper/assets) there, or use a transformers checkpoint."
        return WeightsError(what, why, fix)
    why = f"there is no tokenizer.json beside the weights, no vocab.json with merges.txt, and no {table}"
    return WeightsError(what, why, "Use the checkpoint's whole directory; `zoo pull OWNER/NAME` fetches all of it.")


# --- the ways in which it is published: each gives (vocabulary, merges, special tokens) -------------------------------

Parts = tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]


def _tokenizer_json(path: Path, vocab_size: int) -> Parts:
    fields = read_json(path)
    model, cutter = fields["model"], fields.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or cutter.get("type") != "ByteLevel":
        raise ValueError("it is no byte-pair encoding of bytes")
    vocabulary = {str(token): int(id) for token, id in model["vocab"].items()}
    merges = [_pair(*(pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]]
    added = {str(token["content"]): int(token["id"]) for token in fields.get("added_tokens") or ()}
    return vocabulary, merges, _special(vocabulary, added, vocab_size)


def _pair(first: str, second: str) -> tuple[str, str]:
    return first, second


def _vocab_json(path: Path, vocab_size: int) -> Parts:
    vocabulary = {str(token): int(id) for token, id in read_json(path).items()}
    beside = path.with_name("merges.txt")
    if not beside.is_file():
        raise ValueError("there is no merges.txt beside it")
    lines = beside.read_text(encoding="utf-8").splitlines()
    merges = [_pair(*line.split(" ")) for line in lines if line and not line.startswith("#version")]
    extra = path.with_name("added_tokens.json")
    return vocabulary, merges, _special(vocabulary, read_json(extra) if extra.is_file() else {}, vocab_size)


def _tiktoken(path: Path, vocab_size: int) -> Parts:
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        text, _, rank = line.partition(b" ")
        try:  # one of the multilingual tokens is of no bytes, written "="
            ranks[b"" if text == b"=" else base64.b64decode(text, validate=True)] = int(rank)
        except (binascii.Error, ValueError) as error:
            raise ValueError("it is no table of ranks") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError("its ranks have gaps, or a byte is missing")
    shown = shown_bytes()
    text_of = {piece: "".join(shown[byte] for byte in piece) for piece in ranks}
    pairs = (_halves(piece, ranks) for piece in sorted(ranks, key=ranks.__getitem__) if len(piece) > 1)
    merges = [(text_of[a], text_of[b]) for a, b in pairs]
    return {text_of[piece]: rank for piece, rank in ranks.items()}, merges, _published(len(ranks), vocab_size)


READ = {"tokenizer.json": _tokenizer_json, "vocab.json": _vocab_json, MANY_TABLE: _tiktoken, ENGLISH_TABLE: _tiktoken}


def _special(vocabulary: Mapping[str, int], added: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """The tokens that are written <|so|>. Where a file lists those of text alone, they are as published."""
    found = {name: int(id) for name, id in {**vocabulary, **added}.items() if re.fullmatch(r"<\|.*\|>", name)}
    return found if len(found) > 1 else _published(vocabulary.get("<|endoftext|>", len(vocabulary)), vocab_size)


def _published(first: int, vocab_size: int) -> dict[str, int]:
    """OpenAI's special tokens from the id `first` on; how many languages there are, the size of the model says."""
    languages = vocab_size - first - TIMES - 8
    if not 1 <= languages <= len(LANGUAGES):
        raise ValueError(
            f"it has {first:,} tokens of text, which the model's {vocab_size:,} embeddings are not made for"
        )
    names = ["endoftext", "startoftranscript", *list(LANGUAGES)[:languages], "translate", "transcribe", "startoflm",
             "startofprev", "nospeech", "notimestamps", *(f"{SECONDS * i:.2f}" for i in range(TIMES))]  # fmt: skip
    return {f"<|{name}|>": first + i for i, name in enumerate(names)}


def _halves(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens of which a token was made: what is left when only those with a lower rank are merged."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    own = ranks[piece]
    while len(parts) > 2:
        rank, at = min((ranks.get(parts[i] + parts[i + 1], own), i) for i in range(len(parts) - 1))
        if rank >= own:
            raise ValueError(f"token {own} is not made of two others")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def shown_bytes() -> list[str]:
    """The character by which GPT-2 writes each byte: itself where it is printable, else the next from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
