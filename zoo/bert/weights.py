"""How the published tensors become ours, and back. Names are transformers'; files differ in what stands before them,
and the oldest call a norm's parts gamma and beta."""

from __future__ import annotations

from zoo.bert.config import BertConfig
from zoo.hub.table import Drop, Row, Table, drop, row

LAYER = "encoder.layer.{i}"
NORMS = ("embeddings.LayerNorm", f"{LAYER}.attention.output.LayerNorm", f"{LAYER}.output.LayerNorm")
LINEARS = (*(f"{LAYER}.attention.self.{part}" for part in ("query", "key", "value")), f"{LAYER}.attention.output.dense",
           f"{LAYER}.intermediate.dense", f"{LAYER}.output.dense", "pooler.dense")  # fmt: skip
EMBEDDINGS = ("word", "position", "token_type")
HEADS = ("cls.**", "lm_head.**", "classifier.**", "qa_outputs.**")


def table(config: BertConfig) -> Table:
    """That of a file whose names are like these."""
    rows: list[Row | Drop] = []
    if config.prefix or config.gamma:
        why = f"names begin with {config.prefix}: a head is in the file too" if config.prefix else "TensorFlow's names"
        weight, bias = ("gamma", "beta") if config.gamma else ("weight", "bias")
        names = {f"embeddings.{kind}_embeddings.weight": f"embeddings.{kind}_embeddings.weight" for kind in EMBEDDINGS}
        names |= {f"{place}.{part}": f"{place}.{part}" for place in LINEARS for part in ("weight", "bias")}
        names |= {f"{norm}.weight": f"{norm}.{weight}" for norm in NORMS}
        names |= {f"{norm}.bias": f"{norm}.{bias}" for norm in NORMS}
        rows += [row(ours, f"{config.prefix}{theirs}", why=why) for ours, theirs in names.items()]
    rows += [drop(name, why="a head: what was guessed in training; not part of a text's vector") for name in HEADS]
    rows.append(drop(f"{config.prefix}embeddings.position_ids", why="0, 1, 2, ...: worked out"))
    return Table(*rows)
