"""Stable Diffusion: pictures from text. Checkpoints of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from zoo.port import Port
from zoo.stable_diffusion.config import StableDiffusionConfig
from zoo.stable_diffusion.finetune import finetune
from zoo.stable_diffusion.model import StableDiffusion
from zoo.stable_diffusion.run import run
from zoo.stable_diffusion.weights import documents, table

PORT = Port(
    name="stable_diffusion",
    task="draw a picture from a text",
    config=StableDiffusionConfig,
    model=StableDiffusion,
    weights=table,
    run=run,
    finetune=finetune,
    documents=documents,
    checkpoints=("stable_diffusion",),
    bench="zoo.stable_diffusion.bench",
)
