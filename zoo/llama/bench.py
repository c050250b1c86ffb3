"""Cases of `zoo bench llama`: TinyLlama's shape (1.1 billion weights), reading a prompt and writing the next token;
and a step of training with 10 million weights.

Weights are fresh ones from a seed, the same for every candidate: none of this depends on what they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zoo.bench.case import Case, Run
from zoo.bench.inputs import numbers
from zoo.core.autodiff import Autodiff
from zoo.core.device import device as device_of
from zoo.core.tensor import tensor
from zoo.llama.cache import Cache
from zoo.llama.config import LlamaConfig
from zoo.llama.finetune import loss
from zoo.llama.generate import forward
from zoo.llama.model import Llama
from zoo.nn import quantize
from zoo.train import AdamW, clip_global_norm, gradients, matrices_only

SHAPES = {
    "1.1B": LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, rms_norm_eps=1e-5,
    ),
    "10M": LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=4, rms_norm_eps=1e-5,
    ),
    "tiny": LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5,
    ),
}  # fmt: skip
SPREAD = 0.07  # of numbers between -0.5 and 0.5: a deviation of 0.02, as models of this kind begin
SEEN, WRITTEN = 128, 16
"""Tokens in the cache when more are written, and how many: one alone would find the caches full of the peers."""
RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}  # of a weight


def ids(count: int) -> list[int]:
    return np.random.default_rng(0).integers(3, 500, count).tolist()


def texts(config: LlamaConfig, batch: int, tokens: int) -> np.ndarray:
    """(batch, tokens + 1): a row and what comes after each of its tokens."""
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, tokens + 1), np.int32)


class Weights(Mapping[str, np.ndarray]):
    """Published name -> values, made when they are asked for: all of them are 4.4 GB."""

    def __init__(self, config: LlamaConfig):
        self.shapes = {name: slot.shape for name, slot in Llama(config).spec().items()}
        self.seeds = {name: i for i, name in enumerate(self.shapes)}

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        made = np.ones(shape, np.float32) if len(shape) == 1 else numbers(self.seeds[name], *shape)
        made *= SPREAD if len(shape) > 1 else 1
        made.flags.writeable = False  # nobody else has it, so a model need not copy it
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def fresh(model: str, format: str, device: str) -> Llama:
    """model: one of SHAPES. format: f32, bf16, int8, int4."""
    config = SHAPES[model]
    made = Llama(config).load(Weights(config), device=device, dtype=DTYPES.get(format, "float32")).eval()
    return (made if format in DTYPES else quantize(made, format)).prepare()


def decode(model: str, format: str, device: str = "cpu") -> Run:
    """WRITTEN tokens after SEEN others, one by one; the logits of the last."""
    llama = fresh(model, format, device)
    cache = Cache(llama.config, capacity=SEEN + WRITTEN, dtype=llama.activations, device=llama.device)
    text = ids(SEEN + WRITTEN)
    forward(llama, text[:SEEN], cache)

    def run() -> Any:
        cache.truncate(SEEN)
        for token in text[SEEN:]:
            logits = forward(llama, [token], cache)
        return logits

    return run


def prompt(model: str, format: str, tokens: int, device: str = "cpu") -> Run:
    """The logits of the token after a prompt."""
    llama = fresh(model, format, device)
    cache = Cache(llama.config, capacity=tokens, dtype=llama.activations, device=llama.device)
    text = ids(tokens)

    def run() -> Any:
        cache.truncate(0)
        return forward(llama, text, cache)

    return run


def train_step(model: str, batch: int, tokens: int, device: str = "cpu") -> Run:
    """Forward, backward, gradients clipped, AdamW; returns the loss, as the Learner reads it after every step."""
    config = SHAPES[model]
    llama = Llama(config).load(Weights(config), device=device).to(Autodiff(device_of(device))).train()
    optimizer = AdamW(BETAS, weight_decay=matrices_only(DECAY))
    text = texts(config, batch, tokens)
    texts_of_rows = np.zeros((batch, tokens), np.int32)
    rows = [tensor(np.array(part), device=device) for part in (text[:, :-1], text[:, 1:], texts_of_rows)]

    def run() -> float:
        found = loss(llama, rows)
        value = float(found)
        grads, _ = clip_global_norm(gradients(found, llama), CLIP)
        optimizer.step(llama, grads, RATE)
        return value

    return run


def work(shape: str, format: str, new: int, before: int, logits: int, passes: int) -> dict[str, Any]:
    """A case's flops and floor_bytes for `new` tokens behind `before` others, of which `logits` get theirs: two
    operations for each weight of a product, four for each number of a key that a query sees; the weights read in each
    of the `passes`, the keys and values (float32, as on processors) that each pass finds."""
    c = SHAPES[shape]
    q, kv = c.hidden_size, c.hidden_size * int(c.num_key_value_heads or c.num_attention_heads) // c.num_attention_heads
    layers = c.num_hidden_layers * c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)
    head = c.vocab_size * c.hidden_size
    seen = sum(range(before + 1, before + new + 1))  # keys, over all queries
    found = seen if passes == new else before  # by the passes, which read a key once each
    flops = 2 * (layers * new + head * logits) + 4 * c.num_hidden_layers * q * seen
    moved = passes * (layers + head) * BYTES[format] + 8 * c.num_hidden_layers * kv * found
    return {"flops": flops, "floor_bytes": moved}


PEERS = {"transformers": "zoo.llama.peers:{}_transformers", "llama-cpp-python": "zoo.llama.peers:{}_llama_cpp"}


def _decode(format: str, *peers: str) -> Case:
    named = {name: PEERS[name].format("decode") for name in peers}
    settings = {"model": "1.1B", "format": format}
    # logits of rounded weights: llama.cpp rounds in other groups than we do
    floor = work("1.1B", format, WRITTEN, SEEN, WRITTEN, WRITTEN)
    return Case(f"1.1B {format} decode", "tokens/s", WRITTEN, "zoo.llama.bench:decode", named, settings,
                group="LLaMA, writing", agree=0.05, **floor)  # fmt: skip


def _prompt(format: str, tokens: int = 256) -> Case:
    named = {name: path.format("prompt") for name, path in PEERS.items()}
    settings = {"model": "1.1B", "format": format, "tokens": tokens}
    return Case(f"1.1B {format} prompt of {tokens}", "tokens/s", tokens, "zoo.llama.bench:prompt", named, settings,
                group="LLaMA, reading", agree=0.05, **work("1.1B", format, tokens, 0, 1, 1))  # fmt: skip


CASES = (
    _decode("f32", *PEERS),
    _decode("bf16", *PEERS),
    _decode("int8", "llama-cpp-python"),
    _decode("int4", "llama-cpp-python"),
    _prompt("f32"),
    _prompt("bf16"),
    _prompt("int8"),
    _prompt("int4"),
    Case(
        "10M training, batch 8 of 256 tokens", "tokens/s", 2048, "zoo.llama.bench:train_step",
        {"transformers": "zoo.llama.peers:train_step"}, {"model": "10M", "batch": 8, "tokens": 256},
        group="training LLaMA", memory=True,
    ),
)  # fmt: skip
CUDA_CASES = (*CASES, _prompt("bf16", 2048))
"""A GPU reads 256 tokens in the time that the weights take to come: a long prompt shows its products."""
