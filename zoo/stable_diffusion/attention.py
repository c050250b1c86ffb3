"""The transformers inside the U-Net: pixels attend to each other and to the text (Rombach et al. 2022, section 3.3).

Names are those of diffusers' Transformer2DModel and BasicTransformerBlock. Shapes: B pictures, L pixels, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import GroupNorm, LayerNorm, Linear, Module, Sequential, attend, together
from zoo.nn.recompute import Run

KeysValues = tuple[Tensor, Tensor]
"""Those of the text for one cross-attention, (B, S, heads, head_dim) each."""
NORM_EPS = 1e-6
"""Of the normalisation before the transformers; a constant in the published code, beside the U-Net's own norm_eps."""


def repeated(x: Tensor, batch: int) -> Tensor:
    """x (b, ...), one after the other, as often as makes `batch` of them."""
    return x if x.shape[0] == batch else ops.concat([x] * (batch // x.shape[0]), axis=0)


class Attention(Module):
    """Multi-head attention of x (B, L, channels) to itself, or to the text."""

    def __init__(self, channels: int, heads: int, text_channels: int | None = None):
        source = channels if text_channels is None else text_channels
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(source, channels, bias=False)
        self.to_v = Linear(source, channels, bias=False)
        self.to_out = [Linear(channels, channels)]

    def __call__(self, x: Tensor, text: KeysValues | None = None) -> Tensor:
        if text is None:
            q, k, v = (self._by_head(y) for y in together(x, self.to_q, self.to_k, self.to_v))
        else:
            q, (k, v) = self._by_head(self.to_q(x)), text
        return self.to_out[0](attend(q, k, v, beside=self.to_q).reshape(*x.shape))

    def keys_values(self, text: Tensor) -> KeysValues:
        """text (B, S, text_channels)."""
        k, v = together(text, self.to_k, self.to_v)
        return self._by_head(k), self._by_head(v)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1)


class GEGLU(Module):
    """x W + b, times gelu of the other half (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int):
        self.proj = Linear(channels, 2 * inner)

    def __call__(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))


def _dropped(x: Tensor) -> Tensor:
    """In the place of a dropout that published models have at zero; it counts in the numbering of the names."""
    return x


class FeedForward(Module):
    def __init__(self, channels: int):
        self.net = Sequential(GEGLU(channels, 4 * channels), _dropped, Linear(4 * channels, channels))

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(Module):
    def __init__(self, channels: int, heads: int, text_channels: int):
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, heads, text_channels)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (b, L, channels); keys, values: of the text (B, S, heads, head_dim) -> (B, L, channels)."""
        x = repeated(x + self.attn1(self.norm1(x)), keys.shape[0])
        x = x + self.attn2(self.norm2(x), (keys, values))
        return x + self.ff(self.norm3(x))


class Transformer(Module):
    """x (b, H, W, channels) + what `depth` transformer blocks make of its pixels, with B texts, of which each block
    takes the next -> (B, H, W, channels)."""

    def __init__(self, channels: int, heads: int, text_channels: int, depth: int, groups: int):
        self.norm = GroupNorm(groups, channels, NORM_EPS)
        self.proj_in = Linear(channels, channels)  # a 1x1 convolution over channels-last pixels is a matrix
        self.transformer_blocks = [TransformerBlock(channels, heads, text_channels) for _ in range(depth)]
        self.proj_out = Linear(channels, channels)

    def __call__(self, x: Tensor, texts: Iterator[KeysValues], run: Run) -> Tensor:
        b, H, W, C = x.shape
        h = self.proj_in(self.norm(x).reshape(b, H * W, C))
        for block in self.transformer_blocks:
            h = run(block, h, *next(texts))
        return repeated(x, h.shape[0]) + self.proj_out(h).reshape(-1, H, W, C)
