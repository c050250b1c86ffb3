"""How the published tensors become ours, and back: a table for each layout. Names are transformers' throughout."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.hub.table import Operation, Table, drop, row
from zoo.llama.config import LlamaConfig

TRANSFORMERS = Table(
    drop("model.layers.{i}.self_attn.rotary_emb.inv_freq", why="recomputed from rope_theta"),
    drop("lm_head.weight", why="the same as model.embed_tokens.weight (tied)", when=lambda c: c.tie_word_embeddings),
)


def halves(heads: str) -> Operation:
    """Rows of each head (config.HEADS of them), whose rotary pairs lie side by side: the first of all pairs, then the
    second of all. `permute` in transformers' convert_llama_weights_to_hf.py."""

    def change(a: np.ndarray, config: Any, between: tuple[int, int]) -> np.ndarray:
        return a.reshape(getattr(config, heads), *between, -1).swapaxes(1, 2).reshape(a.shape)

    return Operation(
        f"halves({heads})",
        lambda a, c: change(a, c, (c.head_dim // 2, 2)),
        lambda a, c: change(a, c, (2, c.head_dim // 2)),
    )


PAIRS = "Meta turns neighbours, transformers the first half of a head with the second"
NAMES = "the names of Meta's code"
LAYER, BLOCK = "model.layers.{i}", "layers.{i}"
META = Table(
    row("model.embed_tokens.weight", "tok_embeddings.weight", why=NAMES),
    row(f"{LAYER}.self_attn.q_proj.weight", f"{BLOCK}.attention.wq.weight", halves("num_attention_heads"), why=PAIRS),
    row(f"{LAYER}.self_attn.k_proj.weight", f"{BLOCK}.attention.wk.weight", halves("num_key_value_heads"), why=PAIRS),
    row(f"{LAYER}.self_attn.v_proj.weight", f"{BLOCK}.attention.wv.weight", why=NAMES),
    row(f"{LAYER}.self_attn.o_proj.weight", f"{BLOCK}.attention.wo.weight", why=NAMES),
    row(f"{LAYER}.mlp.gate_proj.weight", f"{BLOCK}.feed_forward.w1.weight", why=NAMES),
    row(f"{LAYER}.mlp.down_proj.weight", f"{BLOCK}.feed_forward.w2.weight", why=NAMES),
    row(f"{LAYER}.mlp.up_proj.weight", f"{BLOCK}.feed_forward.w3.weight", why=NAMES),
    row(f"{LAYER}.input_layernorm.weight", f"{BLOCK}.attention_norm.weight", why=NAMES),
    row(f"{LAYER}.post_attention_layernorm.weight", f"{BLOCK}.ffn_norm.weight", why=NAMES),
    row("model.norm.weight", "norm.weight", why=NAMES),
    row("lm_head.weight", "output.weight", why=NAMES),
    drop("rope.freqs", why="recomputed from rope_theta"),
)

LAYOUTS = {"transformers": TRANSFORMERS, "meta": META}


def table(config: LlamaConfig) -> Table:
    """That of the layout in which these weights were published."""
    return LAYOUTS[config.layout]
