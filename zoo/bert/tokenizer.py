"""Texts to token ids, by the files beside the weights: tokenizer.json, or WordPiece from vocab.txt (Wu et al. 2016)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bert.config import BertConfig
from zoo.core.errors import WeightsError


class Tokenizer:
    """Batches of texts: ids and mask, both (B, L) int32, filled up to the longest."""

    def __init__(self, core: Any, longest: int, padding: int):
        self.core = core
        core.enable_truncation(longest)
        core.no_padding()
        self.longest, self.padding = longest, padding

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoded.ids for encoded in self.core.encode_batch(list(texts))]
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self.padding, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def length(self, text: str) -> int:
        """Tokens of a text, if nothing were cut off."""
        self.core.no_truncation()
        try:
            return len(self.core.encode(text).ids)
        finally:
            self.core.enable_truncation(self.longest)


def of(model: Any) -> Tokenizer:
    """That of a model, from its checkpoint's directory. Raises WeightsError if there is none, or it is damaged, or has
    more tokens than the model."""
    import tokenizers

    directory = None if model.source is None else model.source.directory
    if directory is None:
        why = "the model was not loaded from a directory"
        raise WeightsError("there is no tokenizer", why, "Load a directory that holds tokenizer.json or vocab.txt.")
    config: BertConfig = model.config
    try:
        if (directory / "tokenizer.json").is_file():
            core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.txt").is_file():
            core = _wordpiece(directory)
        else:
            names = "tokenizer.json or vocab.txt"
            raise WeightsError(f"there is no tokenizer in {directory}", f"{names} is needed", f"Put {names} there.")
    except WeightsError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise WeightsError(f"cannot read the tokenizer in {directory}", str(error), "Fetch it again.") from error
    if core.get_vocab_size() > config.vocab_size:
        why = f"it has {core.get_vocab_size():,} tokens, the model {config.vocab_size:,}"
        raise WeightsError(f"the tokenizer in {directory} is another model's", why, "Fetch both again.")
    return Tokenizer(core, config.longest, config.pad_token_id or 0)


def _wordpiece(directory: Path) -> Any:
    """BERT's own: lower case and no accents unless tokenizer_config.json says otherwise."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    said = directory / "tokenizer_config.json"
    settings = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}
    words = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )  # fmt: skip
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return core
