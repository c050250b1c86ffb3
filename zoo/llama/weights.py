"""How the published tensors become ours: names agree; what is no parameter, or is shared, needs a row."""

from __future__ import annotations

from zoo.hub.table import Table, drop

TABLE = Table(
    drop("model.layers.{i}.self_attn.rotary_emb.inv_freq", why="recomputed from rope_theta"),
    drop("lm_head.weight", why="the same as model.embed_tokens.weight (tied)", when=lambda c: c.tie_word_embeddings),
)
