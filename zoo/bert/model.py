"""BERT (Devlin et al. 2018, arXiv 1810.04805) and RoBERTa (Liu et al. 2019): encoders of text.

Names are those of transformers' BertModel. Shapes: B texts, L tokens, D hidden_size.
"""

from __future__ import annotations

from zoo.bert.config import BertConfig
from zoo.core import ops
from zoo.core.dtype import float32
from zoo.core.tensor import Tensor
from zoo.nn import Embedding, LayerNorm, Linear, Module, activation


class Embeddings(Module):
    """ids (B, L) -> (B, L, D): the sum of a token's, its position's and its sentence's vector, normalised."""

    def __init__(self, c: BertConfig):
        self.word_embeddings = Embedding(c.vocab_size, c.hidden_size)
        self.position_embeddings = Embedding(c.max_position_embeddings, c.hidden_size)
        self.token_type_embeddings = Embedding(c.type_vocab_size, c.hidden_size)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.first_position = c.first_position

    def __call__(self, ids: Tensor, types: Tensor | None) -> Tensor:
        first = self.first_position
        positions = self.position_embeddings.weight[first : first + ids.shape[1]]
        sentence = self.token_type_embeddings.weight[0] if types is None else self.token_type_embeddings(types)
        x = self.entering(self.word_embeddings(ids)) + sentence + positions
        return self.LayerNorm(x)


class SelfAttention(Module):
    def __init__(self, c: BertConfig):
        self.query = Linear(c.hidden_size, c.hidden_size)
        self.key = Linear(c.hidden_size, c.hidden_size)
        self.value = Linear(c.hidden_size, c.hidden_size)
        self.heads = c.num_attention_heads

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        B, L, D = x.shape
        q, k, v = (layer(x).reshape(B, L, self.heads, -1) for layer in (self.query, self.key, self.value))
        return ops.attention(q, k, v, bias).reshape(B, L, D)


class Output(Module):
    """norm(dense(x) + residual)."""

    def __init__(self, c: BertConfig, inputs: int):
        self.dense = Linear(inputs, c.hidden_size)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(Module):
    def __init__(self, c: BertConfig):
        self.self = SelfAttention(c)
        self.output = Output(c, c.hidden_size)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.output(self.self(x, bias), x)


class Intermediate(Module):
    def __init__(self, c: BertConfig):
        self.dense = Linear(c.hidden_size, c.intermediate_size)
        self.act = activation(c.hidden_act)

    def __call__(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class Layer(Module):
    def __init__(self, c: BertConfig):
        self.attention = Attention(c)
        self.intermediate = Intermediate(c)
        self.output = Output(c, c.intermediate_size)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class Encoder(Module):
    def __init__(self, c: BertConfig):
        self.layer = [Layer(c) for _ in range(c.num_hidden_layers)]

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, bias)
        return x


class Pooler(Module):
    """tanh(dense(the first token)) (B, D)."""

    def __init__(self, c: BertConfig):
        self.dense = Linear(c.hidden_size, c.hidden_size)

    def __call__(self, x: Tensor) -> Tensor:
        return ops.tanh(self.dense(x[:, 0]))


class Bert(Module):
    """Token ids (B, L) -> a vector for each token (B, L, D)."""

    def __init__(self, config: BertConfig):
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if config.pooler else None

    def __call__(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """mask: (B, L), 1 for tokens and 0 for padding, which nothing looks at. types: (B, L), 0 or 1: which of two
        sentences a token is of; None: the first."""
        bias = None
        if mask is not None:
            B, L = mask.shape
            bias = ops.log(mask.astype(float32)).reshape(B, 1, 1, L)  # 0 where there is a token, else -inf
        return self.leaving(self.encoder(self.embeddings(ids, types), bias))
