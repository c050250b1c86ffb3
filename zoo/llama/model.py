"""LLaMA (Touvron et al. 2023; Llama 3: Dubey et al. 2024). Names are those of transformers' LlamaForCausalLM.

Shapes: B batch, L new tokens, S cached and new tokens, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.core import ops
from zoo.core.device import root
from zoo.core.tensor import Tensor
from zoo.llama.cache import Cache, LayerCache
from zoo.llama.config import LlamaConfig
from zoo.llama.rope import Rope, angles
from zoo.nn import Embedding, Linear, Module, RMSNorm, TiedEmbedding, activation, recomputed, together


class Attention(Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, c: LlamaConfig):
        self.head_dim: int = c.head_dim  # type: ignore[assignment]
        width = c.num_attention_heads * self.head_dim
        kv_width = c.num_key_value_heads * self.head_dim  # type: ignore[operator]
        self.q_proj = Linear(c.hidden_size, width, bias=c.attention_bias)
        self.k_proj = Linear(c.hidden_size, kv_width, bias=c.attention_bias)
        self.v_proj = Linear(c.hidden_size, kv_width, bias=c.attention_bias)
        self.o_proj = Linear(width, c.hidden_size, bias=c.attention_bias)

    def __call__(self, x: Tensor, rope: Rope, cache: LayerCache | None, bias: Tensor | None) -> Tensor:
        B, L, _ = x.shape
        q, k, v = (y.reshape(B, L, -1, self.head_dim) for y in together(x, self.q_proj, self.k_proj, self.v_proj))
        q, k = rope(q), rope(k)
        lengths = None
        if cache is not None:
            k, v, lengths = cache.append(k, v)  # (B, S, H_kv, D)
        y = ops.attention(q, k, v, bias, lengths, causal=True)
        return self.o_proj(y.reshape(B, L, -1))


class MLP(Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, c: LlamaConfig):
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)
        self.hidden_act = c.hidden_act

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = together(x, self.gate_proj, self.up_proj)
        if self.hidden_act == "silu":
            return self.down_proj(ops.swiglu(gate, up))
        return self.down_proj(activation(self.hidden_act)(gate) * up)


class Layer(Module):
    def __init__(self, c: LlamaConfig):
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def __call__(self, x: Tensor, rope: Rope, cache: LayerCache | None, bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Module):
    def __init__(self, c: LlamaConfig):
        self.embed_tokens = (TiedEmbedding if c.tie_word_embeddings else Embedding)(c.vocab_size, c.hidden_size)
        self.layers = [Layer(c) for _ in range(c.num_hidden_layers)]
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Llama(Module):
    """Token ids (B, L) -> logits (B, L, vocab_size), each of the token that comes next."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.recompute = False
        """In training, layers keep what goes into them only, and work the rest out again for the gradient."""
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        *,
        last: int = 0,
        starts: Sequence[int] | None = None,
        texts: Any = None,
    ) -> Tensor:
        """With a cache, `ids` come after what it has seen, and are added to it.

        last: logits of so many positions at the end only, (B, last, vocab_size); 0: of all.
        starts: where each of the B texts begins: what is left of it is padding, which nothing looks at.
        texts: (B, L), the number of the text in its row that each token belongs to, without a cache: tokens look at
            their own text only, and positions begin anew with each.
        """
        L = ids.shape[1]
        seen = 0 if cache is None else cache.length
        positions = np.arange(seen, seen + L)
        bias = None
        if starts is not None:
            positions = np.maximum(positions - np.array(starts)[:, None], 0)
            bias = self.padding(starts, seen + L)
        if texts is not None and (numbers := np.asarray(texts)).any():
            same = numbers[:, :, None] == numbers[:, None]  # (B, L, L)
            positions = positions - same.argmax(axis=2)  # less where its text begins
            bias = self._constant(np.where(same, 0, -np.inf)[:, None])
        rope = Rope(*map(self._constant, angles(self.config, positions)))
        if cache is not None:
            cache.begin(L)
        logits = self.run(ids, rope, cache, bias, last)
        if cache is not None:
            cache.length += L
        return logits

    def run(self, ids: Tensor, rope: Rope, cache: Cache | None, bias: Tensor | None, last: int) -> Tensor:
        """The pass itself, in tensors alone: `rope` turns to the tokens' positions, the cache knows their place."""
        x = self.entering(self.model.embed_tokens(ids))
        call = recomputed if self.recompute else Layer.__call__
        for i, layer in enumerate(self.model.layers):
            x = call(layer, x, rope, None if cache is None else cache.layers[i], bias)
        x = self.model.norm(self.leaving(x[:, -last:] if last else x))
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.head(x)  # type: ignore[attr-defined]
        return self.lm_head(x)

    def padding(self, starts: Sequence[int], length: int) -> Tensor:
        """What hides positions before `starts` from attention, (B, 1, 1, length)."""
        before = np.arange(length) < np.array(starts)[:, None]
        return self._constant(np.where(before, -np.inf, 0)[:, None, None])

    def _constant(self, array: np.ndarray) -> Tensor:
        device = root(self.device)
        return Tensor(device.from_host(np.ascontiguousarray(array, np.float32)), device)
