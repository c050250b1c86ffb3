"""CLIP's byte-pair encoding (Radford et al. 2021), from the files of a checkpoint's tokenizer folder.

A text becomes lower case, words and signs, bytes, and merged pairs; `</w>` ends a word. The U-Net was trained on 77
tokens: the beginning, the text, the end, and filling up to there: with the end token (SD 1.x) or "!" (SD 2.x and
SDXL's second tokenizer), as tokenizer_config.json or special_tokens_map.json say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.core.errors import WeightsError
from zoo.hub.files import read_json

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP's own code
)
LIMIT = 64 << 20
"""Bytes of a file; CLIP's vocabulary takes 1 MB."""


class Tokenizer:
    """Of one text encoder, which sees `length` tokens at once, begin and end included."""

    def __init__(self, directory: Path, length: int = 77, vocab_size: int | None = None):
        """directory holds tokenizer.json, or vocab.json and merges.txt. Raises WeightsError if it does not, they cannot
        be read, or they have more tokens than the encoder."""
        self.length = length
        self._core = _read(directory)
        ids = {name: self._core.token_to_id(name) for name in (BEGIN, END, _padding(directory))}
        if None in ids.values() or self._core.get_vocab_size() > (vocab_size or self._core.get_vocab_size()):
            missing = [name for name, found in ids.items() if found is None]
            why = (
                f"it has no token {missing[0]!r}"
                if missing
                else f"it has {self._core.get_vocab_size():,} tokens, the text encoder {vocab_size:,}"
            )
            raise WeightsError(
                f"cannot use the tokenizer in {directory}", why, "Use the one that belongs to this checkpoint."
            )
        self.begin, self.end, self.pad = (ids[name] for name in (BEGIN, END, _padding(directory)))

    @classmethod
    def of(cls, model: Any) -> list[Tokenizer]:
        """Those of a loaded Stable Diffusion, one for each text encoder."""
        found = model.source
        source = None if found is None else found.directory or found.file.parent
        if source is None or not (source / "tokenizer").is_dir():
            why = "there is no folder `tokenizer` with vocab.json and merges.txt beside the weights"
            fix = "Put that of any Stable Diffusion of this version there: they are all alike."
            raise WeightsError("there is no tokenizer", why, fix)
        config = model.config
        pairs = [("tokenizer", config.text_encoder), ("tokenizer_2", config.text_encoder_2)]
        return [cls(source / name, c.max_position_embeddings, c.vocab_size) for name, c in pairs if c is not None]

    @property
    def room(self) -> int:
        """Tokens of text that fit between begin and end."""
        return self.length - 2

    def tokens(self, text: str) -> list[int]:
        """Ids of a text alone, however many."""
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def row(self, tokens: Sequence[int]) -> list[int]:
        """At most `room` ids as the encoder sees them: begin, these, end, filling."""
        return [self.begin, *tokens, self.end, *[self.pad] * (self.room - len(tokens))]

    def encode(self, text: str) -> list[int]:
        """`length` ids; what does not fit is cut off."""
        return self.row(self.tokens(text)[: self.room])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, in lower case, words and signs apart."""
        names = (self._core.id_to_token(token) for token in tokens if token not in (self.begin, self.end))
        return _text("".join(name for name in names if name)).strip()


def _text(pieces: str) -> str:
    table = {character: byte for byte, character in _byte_characters().items()}
    raw = bytearray()
    for part in pieces.split("</w>"):
        raw += bytes(table[character] for character in part if character in table) + b" "
    return raw.decode("utf-8", errors="replace")


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte, as GPT-2's tokenizer has them."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def _read(directory: Path) -> Any:
    """The tokenizer of the `tokenizers` library."""
    import tokenizers

    what = f"cannot use the tokenizer in {directory}"
    whole, vocabulary, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        why = "it needs tokenizer.json, or vocab.json and merges.txt"
        raise WeightsError(what, why, "Fetch the checkpoint's tokenizer folder too.")
    if any(file.is_file() and file.stat().st_size > LIMIT for file in (whole, vocabulary, merges)):
        raise WeightsError(what, f"a file is larger than {LIMIT >> 20} MB", "Fetch the checkpoint again.")
    try:
        if whole.is_file():
            core = tokenizers.Tokenizer.from_file(str(whole))
            core.no_truncation()
            core.no_padding()
            return core
        return _assembled(vocabulary, merges)
    except Exception as error:  # the library raises plain Exceptions
        raise WeightsError(what, str(error) or type(error).__name__, "Fetch the checkpoint again.") from error


def _assembled(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    core = Tokenizer(
        models.BPE.from_file(
            str(vocabulary), str(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.add_special_tokens([name for name in (BEGIN, END) if core.token_to_id(name) is not None])
    return core


def _padding(directory: Path) -> str:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            given: Any = read_json(directory / name).get("pad_token")
            found = given.get("content") if isinstance(given, Mapping) else given
            if isinstance(found, str):
                return found
    return END
