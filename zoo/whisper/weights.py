"""How the published tensors become ours, and back: a table for each layout. Names are transformers' throughout."""

from __future__ import annotations

from zoo.hub.table import Table, drop, permute, row
from zoo.whisper.config import WhisperConfig

CHANNELS_LAST = permute(0, 2, 1)
KERNELS = "published (outputs, inputs, 3); ours (outputs, 3, inputs), as activations are channels-last"

TRANSFORMERS = Table(
    row("model.encoder.conv{i}.weight", "model.encoder.conv{i}.weight", CHANNELS_LAST, why=KERNELS),
    drop("proj_out.weight", why="the same as model.decoder.embed_tokens.weight (tied)",
         when=lambda c: c.tie_word_embeddings),
)  # fmt: skip

NAMES = "the names of OpenAI's code (whisper/model.py)"
_PARTS = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
OPENAI = Table(
    row("model.encoder.conv{i}.weight", "encoder.conv{i}.weight", CHANNELS_LAST, why=KERNELS),
    row("model.encoder.conv{i}.bias", "encoder.conv{i}.bias", why=NAMES),
    row("model.encoder.embed_positions.weight", "encoder.positional_embedding", why=NAMES),
    row("model.decoder.embed_positions.weight", "decoder.positional_embedding", why=NAMES),
    row("model.decoder.embed_tokens.weight", "decoder.token_embedding.weight", why=NAMES),
    *(row(f"model.{side}.layers.{{i}}.{ours}.{kind}", f"{side}.blocks.{{i}}.{theirs}.{kind}", why=NAMES)
      for side in ("encoder", "decoder") for ours, theirs in _PARTS.items() for kind in ("weight", "bias")),
    *(row(f"model.encoder.layer_norm.{kind}", f"encoder.ln_post.{kind}", why=NAMES) for kind in ("weight", "bias")),
    *(row(f"model.decoder.layer_norm.{kind}", f"decoder.ln.{kind}", why=NAMES) for kind in ("weight", "bias")),
)  # fmt: skip

LAYOUTS = {"transformers": TRANSFORMERS, "openai": OPENAI}


def table(config: WhisperConfig) -> Table:
    """That of the layout in which these weights were published."""
    return LAYOUTS[config.layout]
