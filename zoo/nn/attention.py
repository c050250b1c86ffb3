"""Multi-head attention with its projections."""

from __future__ import annotations

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn.linear import Linear
from zoo.nn.module import Module


class Attention(Module):
    """Multi-head attention (Vaswani et al. 2017), grouped where kv_heads < heads (Ainslie et al. 2023).

    x (B, L, width) attends to itself, or to `cross` (B, S, cross_width); bias is added to the scores and broadcasts to
    (B, heads, L, S): -inf where a key must not be seen. -> (B, L, width).
    """

    def __init__(
        self, width: int, heads: int, *, kv_heads: int | None = None, head_dim: int | None = None,
        cross_width: int | None = None, bias: bool = True, causal: bool = False,
    ):  # fmt: skip
        kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None and width % heads:
            raise ValueError(f"{width} channels do not divide among {heads} heads")
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads do not divide among {kv_heads} key heads")
        self.head_dim = width // heads if head_dim is None else head_dim
        self.causal = causal
        source = width if cross_width is None else cross_width
        self.q_proj = Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = Linear(source, kv_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(source, kv_heads * self.head_dim, bias=bias)
        self.out_proj = Linear(heads * self.head_dim, width, bias=bias)

    def __call__(self, x: Tensor, cross: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        B, L, _ = x.shape
        source = x if cross is None else cross
        S = source.shape[1]
        q = self.q_proj(x).reshape(B, L, -1, self.head_dim)
        k = self.k_proj(source).reshape(B, S, -1, self.head_dim)
        v = self.v_proj(source).reshape(B, S, -1, self.head_dim)
        y = ops.attention(q, k, v, bias, causal=self.causal)
        return self.out_proj(y.reshape(B, L, -1))

    def describe(self) -> str:
        heads, kv_heads = (p.weight.shape[0] // self.head_dim for p in (self.q_proj, self.k_proj))
        shared = f", {kv_heads} key heads" if kv_heads != heads else ""
        return f"{heads} heads of {self.head_dim}{shared}{', causal' if self.causal else ''}"
