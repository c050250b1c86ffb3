"""Bugs that ports have, put into a port on purpose: `compare` must name the module and the cause.

The reference is the same model without the bug, so that no torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zoo.compare import Comparison, compare_traces, record
from zoo.core import ops
from zoo.llama import config as llama_config
from zoo.llama import model as llama
from zoo.llama.example import example as text
from zoo.llama.rope import Rope
from zoo.nn import LayerNorm
from zoo.resnet import config as resnet_config
from zoo.resnet import model as resnet
from zoo.resnet.example import example as picture
from zoo.whisper import config as whisper_config
from zoo.whisper import model as whisper
from zoo.whisper.example import example as speech

LLAMA = llama_config.LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
RESNET = resnet_config.ResNetConfig(embedding_size=8, hidden_sizes=(16, 24), depths=(1, 2), num_labels=3)
WHISPER = whisper_config.WhisperConfig(
    vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=56, decoder_ffn_dim=56, max_source_positions=20, max_target_positions=32, num_mel_bins=16,
)  # fmt: skip
MODELS: dict[str, tuple[Any, Any, Any]] = {
    "llama": (llama.Llama, LLAMA, text),
    "resnet": (resnet.ResNet, RESNET, picture),
    "whisper": (whisper.Whisper, WHISPER, speech),
}


def made(name: str) -> Any:
    """The model with weights of a size at which nothing drowns: norms' weights differ from 1, too."""
    kind, config, _ = MODELS[name]
    model = kind(config).init(3, "numpy").eval()
    rng = np.random.default_rng(4)
    for path, tensor in model.state().items():
        if tensor.shape and tensor.dtype.kind == "f":
            fan = tensor.size // tensor.shape[0] if len(tensor.shape) > 1 else 1
            values = rng.standard_normal(tensor.shape) * (2 / fan) ** 0.5
            if len(tensor.shape) == 1:
                values = 1 + 0.3 * values if path.endswith("weight") else np.abs(values) * 0.5
            model.set(path, type(tensor)(model.device.from_host(values.astype(np.float32)), model.device))
    return model


def compared(name: str, spoil: Callable[[Any], None]) -> Comparison:
    right, wrong = made(name), made(name)
    inputs = MODELS[name][2](right.config)
    theirs = record(right, inputs, "without the bug")
    spoil(wrong)
    names = {path: path for path, _ in wrong.named_modules()}
    return compare_traces(wrong, record(wrong, inputs), theirs, names, 1e-4)


def set_(model: Any, path: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = model.state()[path]
    array = np.ascontiguousarray(change(tensor.numpy()))
    model.set(path, type(tensor)(model.device.from_host(array), model.device))


def in_pairs(w: np.ndarray) -> np.ndarray:
    """The rows of each head as Meta's files have them: the two that turn together are neighbours."""
    return w.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)


def no_residual(self: Any, x: Any, rope: Any, cache: Any, bias: Any) -> Any:
    x = self.self_attn(self.input_layernorm(x), rope, cache, bias)
    return x + self.mlp(self.post_attention_layernorm(x))


def centred(model: Any) -> None:
    class Centred(LayerNorm):
        def __init__(self, like: Any):
            self.weight, self.bias, self.eps = like.weight, None, like.eps

    model.model.norm = Centred(model.model.norm)


def pad(model: Any) -> None:
    model.resnet.encoder.stages[1].layers[0].layer[1].convolution.padding = 0


def test_without_a_bug_everything_agrees() -> None:
    for name in MODELS:
        found = compared(name, lambda model: None)
        assert found.agrees and found.finding is None
        assert str(found).splitlines()[-1].startswith("all ")


LEAVES = [
    ("llama", "transposed weight", "model.layers.1.self_attn.q_proj",
     lambda m: set_(m, "model.layers.1.self_attn.q_proj.weight", np.transpose)),
    ("llama", "permuted rope halves", "model.layers.0.self_attn.q_proj",
     lambda m: set_(m, "model.layers.0.self_attn.q_proj.weight", in_pairs)),
    ("llama", "wrong eps: the reference has 1e-06", "model.layers.0.input_layernorm",
     lambda m: setattr(m.model.layers[0].input_layernorm, "eps", 1e-2)),
    ("llama", "the reference's is a RMSNorm", "model.norm", centred),
    ("llama", "off by 1 in the index", "model.embed_tokens",
     lambda m: set_(m, "model.embed_tokens.weight", lambda w: np.roll(w, 1, axis=0))),
    ("llama", "missing scale: the reference's is ours times 5.65685 = sqrt(width), width 32", "model.embed_tokens",
     lambda m: set_(m, "model.embed_tokens.weight", lambda w: w / np.float32(32**0.5))),
    ("llama", "rows in another order", "model.layers.0.mlp.up_proj",
     lambda m: set_(m, "model.layers.0.mlp.up_proj.weight", lambda w: w[::-1])),
    ("resnet", "wrong eps: the reference has 1e-05", "resnet.encoder.stages.1.layers.0.layer.1.normalization",
     lambda m: setattr(m.resnet.encoder.stages[1].layers[0].layer[1].normalization, "eps", 1e-2)),
    ("resnet", "off by one in padding: the reference pads 1 before and 1 behind, ours 0 on both sides",
     "resnet.encoder.stages.1.layers.0.layer.1.convolution", pad),
    ("resnet", "transposed kernel", "resnet.embedder.embedder.convolution",
     lambda m: set_(m, "resnet.embedder.embedder.convolution.weight", lambda w: w.transpose(0, 2, 1, 3))),
    ("whisper", "the reference adds another bias", "model.decoder.layers.0.fc2",
     lambda m: set_(m, "model.decoder.layers.0.fc2.bias", lambda b: 0 * b)),
    ("whisper", "off by one in padding: the reference pads 1 before and 1 behind", "model.encoder.conv1",
     lambda m: setattr(m.model.encoder.conv1, "padding", ((0, 2),))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "path", "spoil"), LEAVES, ids=[f"{c[0]} {c[1][:30]}" for c in LEAVES])
def test_a_bug_in_a_layer_is_named(name: str, words: str, path: str, spoil: Callable[[Any], None]) -> None:
    finding = compared(name, spoil).finding
    assert finding is not None
    assert finding.path == path, finding
    assert finding.cause is not None and words in finding.cause


def attention_without_scale(q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
    return ops.attention(q, k, v, *args, **options, scale=1.0)


def attention_without_mask(q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
    return ops.attention(q, k, v, *args, **{**options, "causal": False})


def turned_in_pairs(self: Any, x: Any) -> Any:
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = (t.reshape(1, x.shape[1], 1, -1) for t in (self.cos, self.sin))
    return ops.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


class Ops:
    """zoo.core.ops with one function exchanged."""

    def __init__(self, **changed: Any):
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)


BETWEEN = [
    ("missing scale in attention: the reference has 1/sqrt(head_dim), ours none", "model.layers.0.self_attn",
     (llama, "ops", Ops(attention=attention_without_scale))),
    ("mask: the reference has causal, ours none", "model.layers.0.self_attn",
     (llama, "ops", Ops(attention=attention_without_mask))),
    ("missing residual: the reference adds its input", "model.layers.0", (llama.Layer, "__call__", no_residual)),
    ("activation variant: the reference has silu, ours gelu_tanh", "model.layers.0.mlp",
     (llama, "ops", Ops(swiglu=lambda gate, up: ops.gelu_tanh(gate) * up))),
    ("permuted rope halves: the reference has rotary, halves", "model.layers.0.self_attn",
     (Rope, "__call__", turned_in_pairs)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "path", "patch"), BETWEEN, ids=[case[0][:30] for case in BETWEEN])
def test_a_bug_between_layers_is_named(
    words: str, path: str, patch: tuple[Any, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = compared("llama", lambda model: monkeypatch.setattr(*patch)).finding
    assert finding is not None
    assert finding.path == path, finding
    assert finding.cause is not None and words in finding.cause, finding


def test_an_unknown_bug_is_found_and_no_cause_is_made_up() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((32, 32)).astype(np.float32)
    finding = compared(
        "llama", lambda m: set_(m, "model.layers.1.self_attn.v_proj.weight", lambda w: w + noise[: len(w)])
    ).finding
    assert finding is not None and finding.path == "model.layers.1.self_attn.v_proj"
    assert finding.cause is None


def test_a_small_error_that_stands_out_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of an untrained model are so small that the two kinds of gelu agree within 1e-4; they are two."""

    usual = made

    def small(name: str) -> Any:
        model = usual(name)
        for path, tensor in model.state().items():
            if path.endswith("weight") and len(tensor.shape) == 2:
                set_(model, path, lambda w: w * np.float32(0.05))
        return model

    monkeypatch.setitem(globals(), "made", small)
    exact, other = (Ops(swiglu=lambda gate, up, f=f: f(gate) * up) for f in (ops.gelu, ops.gelu_tanh))
    monkeypatch.setattr(llama, "ops", exact)
    found = compared("llama", lambda model: monkeypatch.setattr(llama, "ops", other))
    worst = max(row.relative or 0 for row in found.rows)
    assert worst < 1e-4 and not found.agrees
    assert found.finding is not None and "activation variant: the reference has gelu" in (found.finding.cause or "")
