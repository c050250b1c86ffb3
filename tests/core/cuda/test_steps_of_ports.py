"""The steps that models repeat, captured on the cuda device: LLaMA's and Whisper's decoding, and a step of the U-Net. A
replay gives the bits of the step as it is, and those are the cpu device's but for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from zoo.core.capture import Capture
from zoo.core.stats import stats
from zoo.core.tensor import Tensor
from zoo.core.testing.emulator import emulated
from zoo.llama import cache as llama_cache
from zoo.llama.config import LlamaConfig
from zoo.llama.generate import forward, generate
from zoo.llama.model import Llama
from zoo.nn import quantize
from zoo.stable_diffusion.config import UNetConfig
from zoo.stable_diffusion.unet import UNet
from zoo.whisper.cache import Cache as WhisperCache
from zoo.whisper.config import WhisperConfig
from zoo.whisper.decoding import forward as whisper_forward
from zoo.whisper.model import Whisper

CUDA = emulated()


def llama(device: Any, format: str) -> Llama:
    config = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
    model = Llama(config).init(0, device).eval()
    if format == "bf16":
        model = model.astype("bfloat16")
    return (quantize(model, format) if format == "int8" else model).prepare()


def logits(model: Llama, dtype: str) -> list[np.ndarray]:
    """Behind a prompt, then one by one, then a few at a time, then from an earlier place."""
    cache = llama_cache.Cache(model.config, capacity=32, dtype=llama_cache.DTYPES[dtype], device=model.device)
    found = [forward(model, list(range(5)), cache, 3)]
    found += [forward(model, [i % 96], cache) for i in range(6)]
    found += [forward(model, [i, 7, 9], cache, 3) for i in range(2)]
    cache.truncate(9)
    return found + [forward(model, [i % 96], cache) for i in range(3)]


@pytest.mark.parametrize("format, dtype", [("f32", "f32"), ("bf16", "bf16"), ("int8", "f32"), ("f32", "int8")])
def test_llama(format: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(CUDA, format)
    with monkeypatch.context() as patch:
        patch.setattr(CUDA, "off", {"capture"})
        plain = logits(model, dtype)
    stats(reset=True)
    for got, wanted in zip(logits(model, dtype), plain, strict=True):
        assert got.tobytes() == wanted.tobytes()
    counted = stats()
    assert counted["capture.replayed"] >= 8 and counted["capture.recorded"] <= 4 and "capture.eager" not in counted


def test_llama_writes_the_same_tokens_as_on_numpy() -> None:
    texts = []
    for device in (CUDA, zoo.device("numpy")):
        model = llama(device, "f32")
        texts.append([int(t) for t in generate(model, [1, 2, 3, 4], max_tokens=12)])
    assert texts[0] == texts[1] and len(texts[0]) == 12


def whisper_logits(model: Whisper) -> list[np.ndarray]:
    """Two windows: a prompt, some tokens, three hypotheses each mixed between tokens."""
    features = np.random.default_rng(0).normal(size=(2, 40, 80)).astype(np.float32)
    cache = WhisperCache(model, model.encode(Tensor(CUDA.from_host(features), CUDA)), capacity=24)
    found = [whisper_forward(model, np.array([[1, 2, 3], [4, 5, 6]]), cache).copy()]
    found += [whisper_forward(model, np.array([[i], [i + 9]]), cache).copy() for i in range(3)]
    cache.reorder([0, 0, 0, 1, 1, 1])
    for i in range(4):
        found.append(whisper_forward(model, np.arange(6)[:, None] + i, cache).copy())
        cache.reorder([1, 0, 0, 4, 5, 3])
    return found


def test_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WhisperConfig(
        vocab_size=80, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=20,
        max_target_positions=48,
    )  # fmt: skip
    model = Whisper(config).init(0, CUDA).eval().prepare()
    with monkeypatch.context() as patch:
        patch.setattr(CUDA, "off", {"capture"})
        plain = whisper_logits(model)
    stats(reset=True)
    for got, wanted in zip(whisper_logits(model), plain, strict=True):
        assert got.tobytes() == wanted.tobytes()
    assert stats()["capture.replayed"] >= 5 and "capture.eager" not in stats()


def test_unet() -> None:
    """Other latents at other times, beside the same text."""
    config = UNetConfig(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
                        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    unet = UNet(config).init(0, CUDA).eval().prepare()
    rng = np.random.default_rng(0)

    def placed(x: Any) -> Tensor:
        return Tensor(CUDA.from_host(np.asarray(x, np.float32)), CUDA)

    text = unet.keys_values(placed(rng.normal(size=(1, 5, 16))))
    captured = Capture(lambda latents, time: unet(latents, time, text), CUDA)
    for time in (900, 500, 20):
        latents, at = rng.normal(size=(1, 8, 8, 4)).astype(np.float32), np.array([time], np.float32)
        wanted = unet(placed(latents), placed(at), text).numpy()
        assert captured(latents, at).numpy().tobytes() == wanted.tobytes()
