#pragma once
#include "../common.h"
#include "../gemm/table.h"

namespace zoo {

// y[n, p, o] = act(sum over k, c of x[n, p * stride + k * dilation - pad, c] * w[o, k, c] + bias[o] + residual[n, p, o])
// with two spatial axes; x is zero outside its bounds.  `pad` may be negative (it crops).
struct Conv {
    i64 batch, size[2], channels;  // x
    i64 outputs, kernel[2];        // w; takes channels / groups
    i64 out[2];                    // y (batch, out0, out1, outputs), contiguous
    i64 stride[2], dilation[2], pad[2], groups;
    bool flip;     // the kernel is turned round in both spatial axes
    bool k_major;  // x and w are contiguous along batch and outputs, not along channels; then groups == 1 and no flip
    bool winograd;  // then 3x3, stride, dilation and groups 1, x_stride[3] 1
    const float* x;
    i64 x_stride[4];
    int weight;       // what `packed`, or the w to be packed, is stored in; a w that is read by `conv` is float32
    const void* w;    // not read if `packed` is set
    i64 w_stride[4];
    const void* packed;  // [groups][outputs/groups/NR][kernel0 * kernel1 * channels/groups][NR]
    float* y;
    const float *bias, *residual;
    int activation;
};

// y[n, h * spread - k * dilation + pad, o] += x[n, h, c] * w[c, k, o] for all n, h, k, c, from zero; all contiguous.
struct Scatter {
    i64 batch, size[2], channels, outputs, kernel[2], out[2], spread[2], dilation[2], pad[2];
    bool flip;
    const float *x, *w;
    float* y;
};

struct ConvKernels {
    void (*pack)(const Conv&, void* packed);
    void (*conv)(const Conv&);
    void (*scatter)(const Scatter&);
};

}  // namespace zoo
