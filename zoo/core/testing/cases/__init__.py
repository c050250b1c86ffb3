"""The table of op cases. Elementwise rows are made from the op table; the others are written here, group by group."""

from __future__ import annotations

from zoo.core.testing.case import Case
from zoo.core.testing.cases import arrays, contract, elementwise, gradients, nn, quant

CASES: tuple[Case, ...] = (
    *elementwise.CASES,
    *arrays.CASES,
    *contract.CASES,
    *quant.CASES,
    *nn.CASES,
    *gradients.CASES,
)

# ops without a function of their own name in ops.py, and how they are called
ELSEWHERE = {
    "slice": "x[...]",
    "conv_bias_act": "ops.conv with a bias, a residual or an activation",
    "conv_weight_grad": "no face: the gradient of conv in its weight",
    "window_max": "ops.max_pool",
    "window_sum": "ops.avg_pool",
    "window_max_grad": "no face: the gradient of window_max",
    "activation_grad": "no face: the gradient of relu, sigmoid, tanh, silu, gelu, gelu_tanh and quick_gelu",
    "swiglu_grad": "no face: the gradient of swiglu",
    "softmax_grad": "no face: the gradient of softmax",
    "log_softmax_grad": "no face: the gradient of log_softmax",
    "cross_entropy_grad": "no face: the gradient of cross_entropy",
    "rms_norm_grad": "no face: the gradient of rms_norm",
    "group_norm_grad": "no face: the gradient of group_norm, layer_norm and batch_norm_train",
    "attention_grad": "no face: the gradient of attention",
}
