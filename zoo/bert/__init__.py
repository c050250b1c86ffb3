"""BERT and RoBERTa: vectors of texts. Every checkpoint of transformers' BertModel and RobertaModel."""

from __future__ import annotations

from zoo.bert.config import BertConfig
from zoo.bert.example import example
from zoo.bert.model import Bert
from zoo.bert.run import run
from zoo.bert.weights import table
from zoo.port import Port

PORT = Port(
    name="bert",
    task="turn texts into vectors, and say how alike they are",
    config=BertConfig,
    model=Bert,
    weights=table,
    run=run,
    example=example,
    model_types=("roberta", "xlm-roberta"),
)
