"""Meta's tokenizer.model, made into what the `tokenizers` library runs.

Up to Llama 2 it is SentencePiece's: a protobuf of pieces with scores (sentencepiece_model.proto), of which adjacent
ones are merged, best score first; what is in no piece becomes bytes. From Llama 3 on it is tiktoken's: lines of base64
and rank, of which adjacent ones are merged, lowest rank first. Both are byte-pair encodings: merges can be listed.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "tokenizer.model"
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BPE = 2
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Numbers of sentencepiece_model.proto: TrainerSpec.ModelType and SentencePiece.Type."""

SPLIT_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Llama 3 cuts text before it merges (llama/tokenizer.py of meta-llama/llama3)."""
SPECIAL_3 = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>",
             7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}  # fmt: skip
"""Llama 3.1's names of the tokens behind the ranks; in 3, three of them were reserved."""


def read(path: Path, vocab_size: int) -> Any:
    """A tokenizers.Tokenizer of Meta's file. `vocab_size` is the model's: Llama 3's special tokens are not listed.

    Raises ValueError if it is neither format, or damaged.
    """
    data = path.read_bytes()
    if data[:1] == b"\n":  # protobuf's mark of the first piece
        return _sentencepiece(data)
    return _tiktoken(data, vocab_size)


def _core(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], first: str, **settings: Any) -> Any:
    """A byte-pair encoding that begins every text with the token `first`."""
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(vocabulary), merges=merges, **settings))
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A {first}:1 $B:1", special_tokens=[(first, vocabulary[first])]
    )
    return core


def _merges(pieces: Mapping[Any, int], parts: Callable[[Any], Iterator[tuple[Any, Any]]]) -> Iterator[tuple[Any, Any]]:
    """Every pair of pieces that makes a piece, by the rank of what they make, then by their own."""
    for piece in sorted(pieces, key=pieces.__getitem__):
        pairs = [(a, b) for a, b in parts(piece) if a in pieces and b in pieces]
        yield from sorted(pairs, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))


def _halves(piece: Any) -> Iterator[tuple[Any, Any]]:
    return ((piece[:i], piece[i:]) for i in range(1, len(piece)))


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def _sentencepiece(data: bytes) -> Any:
    import tokenizers
    from tokenizers import decoders, normalizers

    pieces: list[tuple[str, float, int]] = []
    model_type, dummy_prefix, escape = 1, True, True
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece[1].decode("utf-8"), score, int(piece.get(3, 1))))
        elif number == 2:
            model_type = dict(_fields(value)).get(3, 1)
        elif number == 3:
            settings = dict(_fields(value))
            dummy_prefix, escape = bool(settings.get(3, 1)), bool(settings.get(5, 1))
            if settings.get(2) or settings.get(4, 1):  # precompiled_charsmap, remove_extra_whitespaces
                raise ValueError("it changes text before cutting it, which no LLaMA's does")
    if model_type != BPE or not escape:
        raise ValueError("it is no byte-pair encoding of SentencePiece")
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces) or "<s>" not in vocabulary:
        raise ValueError("a piece is there twice, or <s> is missing")
    unknown = next((text for text, _, kind in pieces if kind == UNKNOWN), None)
    order = {text: rank for rank, (text, _, kind) in enumerate(sorted(pieces, key=lambda p: -p[1])) if kind == 1}
    core = _core(vocabulary, list(_merges(order, _halves)), "<s>", unk_token=unknown, fuse_unk=True, byte_fallback=True)
    named = {kind: [text for text, _, k in pieces if k == kind] for kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    core.add_special_tokens(named[UNKNOWN] + named[CONTROL])
    core.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in named[USER_DEFINED]])
    prefix = [normalizers.Prepend(SPACE)] * dummy_prefix
    core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, *[decoders.Strip(" ", 1, 0)] * dummy_prefix])
    return core


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: numbers as int, everything else as bytes. Raises ValueError."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("it is damaged")
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or (varint() if key & 7 == 2 else 0)
        if at + size > len(data) or key & 7 not in (1, 2, 5):
            raise ValueError("it is damaged")
        at += size
        yield key >> 3, data[at - size : at]


# --- tiktoken ---------------------------------------------------------------------------------------------------------


def _tiktoken(data: bytes, vocab_size: int) -> Any:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        text, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(text, validate=True)] = int(rank)
        except (binascii.Error, ValueError) as error:
            raise ValueError("it is neither SentencePiece's nor tiktoken's") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError("its ranks have gaps, or a byte is missing")
    special = [SPECIAL_3.get(i, f"<|reserved_special_token_{i}|>") for i in range(max(vocab_size - len(ranks), 2))]
    shown = _shown_bytes()

    def text_of(piece: bytes) -> str:
        return "".join(shown[byte] for byte in piece)

    vocabulary = {text_of(piece): rank for piece, rank in ranks.items()}
    vocabulary |= {name: len(ranks) + i for i, name in enumerate(special)}
    merges = [(text_of(a), text_of(b)) for a, b in _merges(ranks, _halves)]
    core = _core(vocabulary, merges, special[0], ignore_merges=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return core


def _shown_bytes() -> list[str]:
    """The character by which byte-level encodings write each byte (bytes_to_unicode of GPT-2): itself where it is
    printable, else the next from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
