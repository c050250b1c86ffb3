"""Lessons for scripts/train_whisper_digits.py: the vocabulary, and of a recording what a decoder reads and says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speak_digits import WORDS, Windows, sentence

from zoo.core.random import Generator

SECONDS = 8
"""Of a window."""
MOST = 128
"""Tokens of a window, at most, in training."""
IGNORED = -100
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
           "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")  # fmt: skip
"""As in OpenAI's vocabularies of English alone, in their order."""
TIMESTAMPS = [f"<|{i * 0.02:.2f}|>" for i in range(SECONDS * 50 + 1)]


# the tokenizer and what goes with it


def write_tokenizer(directory: Path) -> None:
    """tokenizer.json and the files that HF's Whispers have beside it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # every word a piece, with the space before it and without
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*WORDS, *(" " + word for word in WORDS)], trainer)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in TIMESTAMPS])
    ends = [(name, made.token_to_id(name)) for name in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")]
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftranscript|> <|notimestamps|> $A <|endoftext|>", special_tokens=ends
    )
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    eot, sot = made.token_to_id("<|endoftext|>"), made.token_to_id("<|startoftranscript|>")
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    names |= {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor"}
    write_json(directory / "tokenizer_config.json", {**names, "add_prefix_space": False})
    suppressed = [made.token_to_id(name) for name in SPECIAL[1:-1]]
    generation = {
        "begin_suppress_tokens": [made.token_to_id("Ġ"), eot],
        "bos_token_id": eot,
        "decoder_start_token_id": sot,
        "eos_token_id": eot,
        "is_multilingual": False,
        "max_initial_timestamp_index": SECONDS * 50,
        "max_length": MOST,
        "no_timestamps_token_id": made.token_to_id("<|notimestamps|>"),
        "pad_token_id": eot,
        "prev_sot_token_id": made.token_to_id("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": suppressed,
    }
    write_json(directory / "generation_config.json", generation)
    heard = {"chunk_length": SECONDS, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80,
             "hop_length": 160, "n_fft": 400, "n_samples": SECONDS * 16_000, "nb_max_frames": SECONDS * 100,
             "padding_side": "right", "padding_value": 0.0, "processor_class": "WhisperProcessor",
             "return_attention_mask": False, "sampling_rate": 16_000}  # fmt: skip
    write_json(directory / "preprocessor_config.json", heard)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


# lessons: a window becomes what the decoder reads and what it should say


@dataclass
class Text:
    """What the decoder reads, what it should say at each of these, and by place the positions of the encoder at which
    that lies."""

    read: list[int]
    said: list[int]
    spans: dict[int, tuple[int, int]]


class Lessons:
    """Windows for a Loader. With `teach` for its transform: features, tokens read, tokens to say at each of these, the
    word at each position of the encoder, and where in the audio what is read and what is said lies, (B, L, S)."""

    def __init__(self, windows: Windows, tokenizer: Path):
        from tokenizers import Tokenizer

        self.windows = windows
        words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        ids = {name: words.token_to_id(name) for name in SPECIAL}
        self.eot, self.sot, self.prev = ids["<|endoftext|>"], ids["<|startoftranscript|>"], ids["<|startofprev|>"]
        self.nospeech, self.plain = ids["<|nospeech|>"], ids["<|notimestamps|>"]
        self.zero = words.token_to_id(TIMESTAMPS[0])
        self.pieces = {word: words.encode(" " + word, add_special_tokens=False).ids for word in WORDS}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.windows.features[rows].astype(np.float32), rows

    def teach(self, batch: tuple[np.ndarray, np.ndarray], rng: Generator) -> tuple[np.ndarray, ...]:
        draws = np.random.default_rng(rng.seed)
        features = np.stack([masked(one, draws) for one in batch[0]])
        texts = [self.tokens(int(row), draws) for row in batch[1]]
        longest = -(-max(len(text.read) for text in texts) // 8) * 8
        read = np.full((len(texts), longest), self.eot, np.int32)
        said = np.full((len(texts), longest), IGNORED, np.int32)
        there = np.zeros((2, len(texts), longest + 1, features.shape[1] // 2), np.float32)
        for i, text in enumerate(texts):
            read[i, : len(text.read)], said[i, : len(text.said)] = text.read, text.said
            for at, (start, end) in text.spans.items():
                there[0, i, at + 1, max(start, 0) : end] = 1
                there[1, i, at, max(start, 0) : end] = 1
        words = np.stack([self.places(int(row)) for row in batch[1]])
        return features, read, said, words, there[0, :, :-1].copy(), there[1, :, :-1].copy()

    def tokens(self, row: int, rng: np.random.Generator) -> Text:
        """Timestamps in most rows, an earlier text before some. Of a word that the window cuts only the beginning is
        told, from where the next window goes on."""
        utterances, cut = self.windows.utterances[row], self.windows.cuts[row]
        if not utterances and cut is None:
            forced = int(rng.choice([self.nospeech, self.zero, self.plain]))
            return Text([self.sot, forced], [self.nospeech, self.eot], {})
        timed = rng.random() < 0.85
        before = self.earlier(rng) if rng.random() < 0.25 else []
        body: list[int] = [] if timed else [self.plain]
        spans: dict[int, tuple[int, int]] = {}

        def say(pieces: Sequence[int], start: float, end: float, margin: int = 0) -> None:
            for piece in pieces:
                spans[len(before) + len(body)] = round(start * 50) - margin, round(end * 50) + margin
                body.append(piece)

        for utterance in utterances:
            start, end = utterance[0][1], utterance[-1][2]
            if timed:
                say([self.at(start)], start, start, 3)
            for word, begin, until in utterance:
                say(self.pieces[word], begin, until)
            if timed:
                say([self.at(end)], end, end, 3)
        if timed and cut is not None:
            say([self.at(cut)], cut, cut, 3)
        read = [*before, self.sot, *body]
        if timed and read[len(before) + 1] - self.zero > 50 and rng.random() < 0.5:
            read[len(before) + 1] = self.zero + 50  # decoders let a first timestamp be 1.00 at most
        return Text(read, [IGNORED] * len(before) + [*body, self.eot], spans)

    def at(self, seconds: float) -> int:
        return self.zero + round(seconds * 50)

    def earlier(self, rng: np.random.Generator) -> list[int]:
        """An earlier text with its timestamps or without, of which the beginning may be lost."""
        ids: list[int] = []
        time, timed = 0.0, rng.random() < 0.6
        for _ in range(int(rng.integers(1, 6))):
            text = [piece for word in sentence(rng) for piece in self.pieces[word]]
            end = min(time + 0.35 * len(text), SECONDS)
            ids += [self.at(time), *text, self.at(end)] if timed else text
            time = float(end + rng.uniform(0, 1)) % (SECONDS - 1)
        return [self.prev, *ids[-int(rng.integers(1, MOST // 2)) :]]

    def places(self, row: int) -> np.ndarray:
        """The number of the word at each position of the encoder, 0 for none."""
        found = np.zeros(self.windows.features.shape[1] // 2, np.int32)
        for word, start, end in (word for utterance in self.windows.utterances[row] for word in utterance):
            found[round(start * 50) : round(end * 50)] = 1 + WORDS.index(word)
        if (cut := self.windows.cuts[row]) is not None:
            found[round(cut * 50) :] = IGNORED
        return found


def masked(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two bands and two moments less, at the mean (SpecAugment: Park et al. 2019), in half of the rows."""
    if rng.random() < 0.5:
        mean = features.mean()
        for axis, most in ((1, 12), (1, 12), (0, 10), (0, 10)):
            width = int(rng.integers(0, most + 1))
            start = int(rng.integers(0, features.shape[axis] - width))
            features[(slice(None),) * axis + (slice(start, start + width),)] = mean
    return features
