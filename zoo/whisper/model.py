"""Whisper (Radford et al. 2022). Names are those of transformers' WhisperForConditionalGeneration.

Shapes: B batch, T frames of features, S = T / 2 positions of the encoder, L tokens, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.core import ops
from zoo.core.errors import ShapeError
from zoo.core.tensor import Tensor
from zoo.nn import Conv1d, Embedding, LayerNorm, Linear, Module, TiedEmbedding, activation, recomputed, together
from zoo.whisper.cache import Cache, KeysValues, LayerCache
from zoo.whisper.config import WhisperConfig

if TYPE_CHECKING:
    from zoo.whisper.segment import Segment


class Attention(Module):
    """Multi-head attention; keys have no bias, which would add the same to all scores of a query."""

    def __init__(self, width: int, heads: int):
        self.head_dim = width // heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def __call__(self, x: Tensor, *, causal: bool = False, cache: LayerCache | None = None) -> Tensor:
        """x (B, L, width) looks at itself and, with a cache, at what came before."""
        q, k, v = map(self._heads, together(x, self.q_proj, self.k_proj, self.v_proj))
        lengths = None
        if cache is not None:
            k, v, lengths = cache.append(k, v)
        return self.out_proj(_joined(ops.attention(q, k, v, None, lengths, causal=causal)))

    def keys_values(self, encoded: Tensor) -> KeysValues:
        """Of what was heard (B, S, width)."""
        return KeysValues(*map(self._heads, together(encoded, self.k_proj, self.v_proj)))

    def cross(self, x: Tensor, heard: KeysValues) -> Tensor:
        """x (A n, L, width), n texts for each of the A windows of `heard`: one after the other they read its keys."""
        q = self.q_proj(x).reshape(heard.keys.shape[0], -1, *heard.keys.shape[2:])  # (A, n L, H, D)
        return self.out_proj(ops.attention(q, *heard).reshape(x.shape))

    def weights(self, x: Tensor, heard: KeysValues, head: int, frames: int | None) -> Tensor:
        """Where one head of a text x (1, L, width) looks, (1, L, S)."""
        q, k = self._heads(self.q_proj(x))[:, :, head], heard.keys[:, :frames, head]
        return ops.softmax(ops.matmul(self.leaving(q) * self.head_dim**-0.5, self.leaving(k), transpose_b=True))

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


def _joined(y: Tensor) -> Tensor:
    """(B, L, H, D) -> (B, L, H D)."""
    return y.reshape(*y.shape[:2], -1)


class EncoderLayer(Module):
    def __init__(self, width: int, heads: int, ffn_dim: int, function: str):
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = LayerNorm(width)
        self.fc1 = Linear(width, ffn_dim)
        self.fc2 = Linear(ffn_dim, width)
        self.final_layer_norm = LayerNorm(width)
        self.activation = activation(function).__name__  # the name that ops give it

    def __call__(self, x: Tensor) -> Tensor:
        return self.feed(x + self.self_attn(self.self_attn_layer_norm(x)))

    def feed(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(self.final_layer_norm(x), activation=self.activation))


class DecoderLayer(EncoderLayer):
    def __init__(self, width: int, heads: int, ffn_dim: int, function: str):
        super().__init__(width, heads, ffn_dim, function)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = LayerNorm(width)

    def __call__(self, x: Tensor, encoded: Tensor) -> Tensor:  # type: ignore[override]
        return self.hear(self.write(x), self.encoder_attn.keys_values(encoded))

    def write(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """The first half: tokens look at those before them."""
        return x + self.self_attn(self.self_attn_layer_norm(x), causal=True, cache=cache)

    def hear(self, x: Tensor, heard: KeysValues) -> Tensor:
        """The second: they look at the audio."""
        return self.feed(x + self.encoder_attn.cross(self.encoder_attn_layer_norm(x), heard))


class Encoder(Module):
    def __init__(self, c: WhisperConfig):
        self.conv1 = Conv1d(c.num_mel_bins, c.d_model, 3, padding=1)
        self.conv2 = Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.embed_positions = Embedding(c.max_source_positions, c.d_model)  # sinusoids, as the checkpoint holds them
        shape = (c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim, c.activation_function)
        self.layers = [EncoderLayer(*shape) for _ in range(c.encoder_layers)]
        self.layer_norm = LayerNorm(c.d_model)


class Decoder(Module):
    def __init__(self, c: WhisperConfig):
        self.embed_tokens = (TiedEmbedding if c.tie_word_embeddings else Embedding)(c.vocab_size, c.d_model)
        self.embed_positions = Embedding(c.max_target_positions, c.d_model)
        shape = (c.d_model, c.decoder_attention_heads, c.decoder_ffn_dim, c.activation_function)
        self.layers = [DecoderLayer(*shape) for _ in range(c.decoder_layers)]
        self.layer_norm = LayerNorm(c.d_model)


class EncoderDecoder(Module):
    def __init__(self, c: WhisperConfig):
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)


class Whisper(Module):
    """Log-mel features of a window and the tokens so far -> logits of the token that comes next."""

    def __init__(self, config: WhisperConfig):
        self.config = config
        self.recompute = False
        """In training, layers keep what goes into them only, and work the rest out again for the gradient."""
        self.model = EncoderDecoder(config)
        if not config.tie_word_embeddings:
            self.proj_out = Linear(config.d_model, config.vocab_size, bias=False)

    def __call__(self, features: Tensor, ids: Tensor) -> Tensor:
        """features (B, T, num_mel_bins), ids (B, L), what the decoder reads -> logits (B, L, vocab_size)."""
        return self.read(self.encode(features), ids)

    def read(self, encoded: Tensor, ids: Tensor) -> Tensor:
        """The same from what `encode` gave."""
        x, call = self._whole(ids), recomputed if self.recompute else DecoderLayer.__call__
        for layer in self.model.decoder.layers:
            x = call(layer, x, encoded)
        return self._logits(x)

    def encode(self, features: Tensor) -> Tensor:
        """features (B, T, num_mel_bins) -> (B, T / 2, d_model). T: that of a window, config.frames, or fewer.

        Raises ShapeError for more, or another number of mel bins.
        """
        c, encoder = self.config, self.model.encoder
        if features.ndim != 3 or features.shape[1] > c.frames or features.shape[2] != c.num_mel_bins:
            why = f"features are {features.shape}; (batch, up to {c.frames} frames, {c.num_mel_bins}) was expected"
            raise ShapeError(why, what="Whisper cannot hear this")
        x = encoder.conv1(self.entering(features), activation="gelu")
        x = encoder.conv2(x, activation="gelu")
        x = x + self.entering(encoder.embed_positions.weight[: x.shape[1]])
        call = recomputed if self.recompute else EncoderLayer.__call__
        for layer in encoder.layers:
            x = call(layer, x)
        return encoder.layer_norm(x)

    def decode(self, ids: Tensor, cache: Cache, *, last: int = 0) -> Tensor:
        """ids (B, L) that come after what the cache has seen, and are added to it -> logits (B, L, vocab_size).

        last: logits of so many positions at the end only, (B, last, vocab_size); 0: of all.
        """
        seen, (rows, new) = cache.length, ids.shape
        self.check_room(seen + new)
        cache.begin(rows, new)
        logits = self.run(ids, ops.arange(new, device=cache.device) + seen, cache, last)
        cache.length += new
        return logits

    def run(self, ids: Tensor, positions: Tensor, cache: Cache, last: int) -> Tensor:
        """The pass itself, in tensors alone. positions (L,); the cache knows where they lie."""
        x = self._embedded(ids, ops.take(self.model.decoder.embed_positions.weight, positions))
        for layer, kept in zip(self.model.decoder.layers, cache.layers, strict=True):
            x = layer.hear(layer.write(x, kept), kept.cross)
        return self._logits(x[:, -last:] if last else x)

    def check_room(self, tokens: int) -> None:
        """Raises ShapeError for more tokens than there are positions."""
        if tokens > self.config.max_target_positions:
            why = f"{tokens} tokens; the model has positions for {self.config.max_target_positions}"
            raise ShapeError(why, what="Whisper cannot write this")

    def cross_weights(
        self, ids: Tensor, encoded: Tensor, heads: Sequence[tuple[int, int]], frames: int | None = None
    ) -> Tensor:
        """Where in the audio the decoder looks at each token: attention weights of some heads, (layer, head).

        ids (1, L), encoded (1, S, d_model) -> (len(heads), L, S), each row with sum 1; frames: over the first so many
        of the S positions alone, as OpenAI's word timestamps leave out what is padding (whisper/timing.py).
        """
        x, found = self._whole(ids), {}
        for i, layer in enumerate(self.model.decoder.layers):
            heard = layer.encoder_attn.keys_values(encoded)
            x = layer.write(x)
            h = layer.encoder_attn_layer_norm(x)
            for head in {head for at, head in heads if at == i}:
                found[i, head] = layer.encoder_attn.weights(h, heard, head, frames)
            x = layer.feed(x + layer.encoder_attn.cross(h, heard))
        return ops.concat([found[tuple(one)] for one in heads])  # type: ignore[index]

    def transcribe(self, audio: Any, **options: Any) -> Iterator[Segment]:
        """Segments of a recording (a file, "-", or samples at 16 kHz) as they are found: zoo/whisper/transcribe.py."""
        from zoo.whisper.transcribe import transcribe

        return transcribe(self, audio, **options)

    def _whole(self, ids: Tensor) -> Tensor:
        """Embeddings of texts from their beginning."""
        self.check_room(ids.shape[1])
        return self._embedded(ids, self.model.decoder.embed_positions.weight[: ids.shape[1]])

    def _embedded(self, ids: Tensor, places: Tensor) -> Tensor:
        return self.entering(self.model.decoder.embed_tokens(ids)) + self.entering(places)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.model.decoder.layer_norm(self.leaving(x))
        if self.config.tie_word_embeddings:
            return self.model.decoder.embed_tokens.head(x)  # type: ignore[attr-defined]
        return self.proj_out(x)
