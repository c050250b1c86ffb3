"""The op table: every op of the zoo by name. One file per group, one row per op.

source       full iota uniform normal
elementwise  neg abs sign exp log sqrt rsqrt sin cos tanh erf sigmoid floor round logical_not square relu silu isnan
             add sub mul div remainder pow maximum minimum equal not_equal less less_equal greater greater_equal
             logical_and logical_or where cast
reduce       sum max min argmax argmin cumsum             composites: mean var any all logsumexp
view         reshape permute_dims expand slice pad flip concat
index        take gather scatter_add update_slice topk    composites: update_rows sort
contract     matmul conv window_max window_sum            composites: conv_weight_grad window_max_grad
quant        quantize dequantize qmatmul                  composites: qlinear qlinears qembedding qconv
nn           linear conv_bias_act softmax log_softmax cross_entropy gelu gelu_tanh quick_gelu swiglu geglu
             embedding upsample dropout adamw_step activation_grad swiglu_grad softmax_grad log_softmax_grad
             cross_entropy_grad
attention    attention attention_grad qattention rope
norm         rms_norm layer_norm group_norm batch_norm batch_norm_train rms_norm_grad group_norm_grad
             (nn, attention and norm: all composites)
"""

from __future__ import annotations

from zoo.core.prim import Prim
from zoo.core.prims import attention, contract, elementwise, index, nn, norm, quant, reduce, source, view

GROUPS = (source, elementwise, reduce, view, index, contract, quant, nn, attention, norm)


def _rows() -> dict[str, Prim]:
    table: dict[str, Prim] = {}
    for group in GROUPS:
        for value in vars(group).values():
            for row in value if isinstance(value, list) else [value]:
                if isinstance(row, Prim) and table.setdefault(row.name, row) is not row:
                    raise ValueError(f"two ops are called {row.name}")
    return table


TABLE: dict[str, Prim] = _rows()
