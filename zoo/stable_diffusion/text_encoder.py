"""CLIP's text encoder (Radford et al. 2021). Names are those of transformers' CLIPTextModel(WithProjection).

SD 1.x uses OpenAI's ViT-L/14 (12 layers, quick_gelu), SD 2.x OpenCLIP's ViT-H/14 (gelu; the checkpoints hold 23 of its
24 layers, since the last one is not used), SDXL both ViT-L/14 and OpenCLIP's ViT-bigG/14 with its projection.
Shapes: B texts, L tokens (77), D hidden_size.
"""

from __future__ import annotations

from typing import NamedTuple

from zoo.core import ops
from zoo.core.dtype import int32
from zoo.core.tensor import Tensor
from zoo.nn import Embedding, LayerNorm, Linear, Module, Param, activation, init
from zoo.stable_diffusion.config import TextConfig

LEGACY_EOS = 2
"""What the configs of OpenAI's CLIP say its end token is. It is 49407, the largest of all."""


class Encoded(NamedTuple):
    """What the networks behind a text encoder may want of it."""

    hidden: Tensor
    """(B, L, D), after the last layer and its normalisation: SD 1.x and 2.x."""
    penultimate: Tensor
    """(B, L, D), what goes into the last layer: SDXL."""
    pooled: Tensor
    """(B, P): `hidden` at the end token, projected where there is a projection."""


class Attention(Module):
    """Causal self-attention."""

    def __init__(self, c: TextConfig):
        self.heads = c.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(c.hidden_size, c.hidden_size) for _ in range(4))

    def __call__(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = (proj(x).reshape(B, L, self.heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(ops.attention(q, k, v, causal=True).reshape(B, L, D))


class MLP(Module):
    def __init__(self, c: TextConfig):
        self.fc1 = Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = Linear(c.intermediate_size, c.hidden_size)
        self._act = activation(c.hidden_act)

    def __call__(self, x: Tensor) -> Tensor:
        return self.fc2(self._act(self.fc1(x)))


class Layer(Module):
    def __init__(self, c: TextConfig):
        self.self_attn = Attention(c)
        self.layer_norm1 = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.mlp = MLP(c)
        self.layer_norm2 = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(Module):
    def __init__(self, c: TextConfig):
        self.token_embedding = Embedding(c.vocab_size, c.hidden_size)
        self.position_embedding = Embedding(c.max_position_embeddings, c.hidden_size)
        for table in (self.token_embedding, self.position_embedding):
            table.weight = Param(table.weight.shape, init.normal(0.02))

    def __call__(self, ids: Tensor) -> Tensor:
        return self.entering(self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]])


class Encoder(Module):
    def __init__(self, c: TextConfig):
        self.layers = [Layer(c) for _ in range(c.num_hidden_layers)]


class TextModel(Module):
    def __init__(self, c: TextConfig):
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        self.final_layer_norm = LayerNorm(c.hidden_size, c.layer_norm_eps)


class TextEncoder(Module):
    """Token ids (B, L) -> hidden states (B, L, D). Every text has its end token, and L is at most
    max_position_embeddings."""

    def __init__(self, config: TextConfig):
        self.config = config
        self.text_model = TextModel(config)
        if config.with_projection:
            self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.encode(ids).hidden

    def encode(self, ids: Tensor, skip: int = 0) -> Encoded:
        """All that the encoder has to say of the texts. skip: so many of the last layers are left out ("clip skip")."""
        x = penultimate = self.text_model.embeddings(ids)
        layers = self.text_model.encoder.layers
        for layer in layers[: len(layers) - skip]:
            penultimate, x = x, layer(x)
        hidden = self.text_model.final_layer_norm(x)
        return Encoded(*map(self.leaving, (hidden, penultimate, self._pooled(hidden, ids))))

    def _pooled(self, hidden: Tensor, ids: Tensor) -> Tensor:
        B, L, D = hidden.shape
        eos = self.config.eos_token_id
        is_end = ids if eos == LEGACY_EOS else ops.equal(ids, eos).astype(int32)
        rows = ops.argmax(is_end, axis=-1) + ops.arange(B, device=ids.device) * L
        pooled = ops.take(hidden.reshape(B * L, D), rows)
        return self.text_projection(pooled) if self.config.with_projection else pooled
