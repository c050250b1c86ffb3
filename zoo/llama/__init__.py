"""LLaMA: text that goes on. Every checkpoint of transformers' LlamaForCausalLM."""

from __future__ import annotations

from zoo.llama.cache import memory
from zoo.llama.config import LlamaConfig
from zoo.llama.evaluate import evaluate
from zoo.llama.example import example
from zoo.llama.finetune import finetune
from zoo.llama.model import Llama
from zoo.llama.run import run
from zoo.llama.weights import table
from zoo.port import Port

PORT = Port(
    name="llama",
    task="continue a text, or chat",
    config=LlamaConfig,
    model=Llama,
    weights=table,
    run=run,
    memory=memory,
    finetune=finetune,
    evaluate=evaluate,
    checkpoints=("llama",),
    example=example,
    bench="zoo.llama.bench",
)
