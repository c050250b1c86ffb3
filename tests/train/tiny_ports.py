"""For each port a tiny checkpoint of random weights and a little data: its own `finetune` trains on it in a moment."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.hub import save
from zoo.hub.files import write_json

Made = tuple[Path, dict[str, Any]]
"""Directory of the weights, options for `finetune`."""


def byte_tokenizer(directory: Path, *special: str) -> int:
    """tokenizer.json of the 256 bytes and these; -> how many tokens that are."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(list(special))
    core.save(str(directory / "tokenizer.json"))
    return int(core.get_vocab_size())


def llama(root: Path) -> Made:
    from zoo.llama.config import LlamaConfig
    from zoo.llama.model import Llama

    weights = root / "weights"
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(258, **shape, max_position_embeddings=64, bos_token_id=256, eos_token_id=257)
    save(Llama(config).init(3, "cpu"), weights, port="llama")
    byte_tokenizer(weights, "<s>", "</s>")
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (weights / "tokenizer_config.json").write_text(json.dumps(settings))
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat"], 140)
    (root / "text.txt").write_text(" ".join(words))
    return weights, {"data": root / "text.txt", "context": 32}


def whisper(root: Path) -> Made:
    soundfile = pytest.importorskip("soundfile")
    from zoo.whisper.config import WhisperConfig
    from zoo.whisper.model import Whisper

    weights = root / "weights"
    weights.mkdir()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
               "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
    size = byte_tokenizer(weights, *special, *(f"<|{i * 0.02:.2f}|>" for i in range(101)))
    config = WhisperConfig(
        vocab_size=size, num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, decoder_layers=1,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=16, max_source_positions=100,
        max_target_positions=48, decoder_start_token_id=257, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    save(Whisper(config).init(5, "cpu"), weights, port="whisper")
    languages = {"is_multilingual": True, "lang_to_id": {"<|en|>": 258, "<|de|>": 259}}
    (weights / "generation_config.json").write_text(json.dumps(languages))
    lines = []
    for i in range(20):
        t = np.arange(16000) / 16000
        soundfile.write(root / f"{i}.wav", (0.3 * np.sin(2 * np.pi * (200 + 60 * i) * t)).astype(np.float32), 16000)
        lines.append(json.dumps({"audio": f"{i}.wav", "text": "la " * (1 + i % 4)}))
    (root / "rows.jsonl").write_text("\n".join(lines))
    return weights, {"data": root / "rows.jsonl", "mask_time_prob": 0.2}


def pictures(directory: Path, count: int, classes: tuple[str, ...], side: int) -> Path:
    draw = np.random.default_rng(0)
    for name in classes:
        (directory / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw.integers(0, 255, (side, side, 3), np.uint8)).save(directory / name / f"{i}.png")
    return directory


def resnet(root: Path) -> Made:
    from zoo.resnet.config import ResNetConfig
    from zoo.resnet.model import ResNet
    from zoo.resnet.preprocess import Preprocessing

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=(16, 32), depths=(1, 1), layer_type="basic", num_labels=3, small_stem=True,
        downsample_in_first_stage=True, preprocessing=Preprocessing(16, 16, "bilinear"),
    )  # fmt: skip
    save(ResNet(config).init(0, "numpy"), root / "weights", port="resnet")
    return root / "weights", {"data": pictures(root / "data", 9, ("cat", "dog"), 20), "mixup": 0.2}


def mnist_cnn(root: Path) -> Made:
    from zoo.mnist_cnn.config import MnistConfig
    from zoo.mnist_cnn.model import MnistCNN

    config = MnistConfig(channels=(4, 8), kernel_size=5, hidden_size=16, pool_after_conv1=True)
    save(MnistCNN(config).init(0, "numpy"), root / "weights", port="mnist_cnn")
    digits = root / "data"
    digits.mkdir()
    draw = np.random.default_rng(0)
    for kind, array in (
        ("images-idx3", draw.integers(0, 255, (24, 28, 28))),
        ("labels-idx1", draw.integers(0, 10, 24)),
    ):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (digits / f"train-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    return root / "weights", {"data": digits}


def stable_diffusion(root: Path) -> Made:
    from zoo.stable_diffusion.reference import model_of
    from zoo.stable_diffusion.weights import documents

    weights = save(model_of("1", "cpu"), root / "weights", port="stable_diffusion")
    write_json(weights / "model_index.json", documents(model_of("1", "cpu").config)["model_index.json"])
    signs = "abcdefghijklmnopqrstuvwxyz0123456789,!.-:()"
    names = [*signs, *(f"{sign}</w>" for sign in signs)]
    names += [f"<|{i}|>" for i in range(97 - len(names))] + ["<|startoftext|>", "<|endoftext|>"]
    folder = weights / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"bos_token": names[-2], "eos_token": names[-1], "pad_token": names[-1], "unk_token": names[-1]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **settings})
    )
    data = pictures(root, 8, ("data",), 16) / "data"
    return weights, {"data": data, "prompt": "a red bike", "size": 16, "batch": 1, "drop": 0.3, "min_snr": 5.0}


PORTS: dict[str, Callable[[Path], Made]] = {
    made.__name__: made for made in (llama, whisper, resnet, mnist_cnn, stable_diffusion)
}
