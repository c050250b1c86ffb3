"""Whisper: speech to text, in a hundred languages. Every checkpoint of transformers' WhisperForConditionalGeneration,
and OpenAI's own files."""

from __future__ import annotations

from zoo.port import Port
from zoo.whisper.config import WhisperConfig
from zoo.whisper.evaluate import evaluate
from zoo.whisper.example import example
from zoo.whisper.finetune import finetune
from zoo.whisper.model import Whisper
from zoo.whisper.run import run
from zoo.whisper.weights import table

PORT = Port(
    name="whisper",
    task="write down what is said",
    config=WhisperConfig,
    model=Whisper,
    weights=table,
    run=run,
    finetune=finetune,
    evaluate=evaluate,
    checkpoints=("whisper",),
    example=example,
    bench="zoo.whisper.bench",
)
