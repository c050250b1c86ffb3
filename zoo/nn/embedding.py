"""Embedding: a table of vectors."""

from __future__ import annotations

from zoo.core import ops
from zoo.core.tensor import Tensor
from zoo.nn import init
from zoo.nn.module import Module
from zoo.nn.param import Param


class Embedding(Module):
    """ids (...) of integers below `count` -> (..., width); weight (count, width)."""

    def __init__(self, count: int, width: int):
        self.weight = Param((count, width), init.normal())

    def __call__(self, ids: Tensor) -> Tensor:
        return ops.embedding(self.weight, ids)

    def describe(self) -> str:
        return " x ".join(map(str, self.weight.shape))


class TiedEmbedding(Embedding):
    """An embedding whose table is the head of the model, too (Press & Wolf 2017)."""

    def head(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., count)."""
        return ops.linear(x, self.weight)
