#pragma once
#include "../gemm/table.h"

namespace zoo {

// q, k or v: number d of head h at position s of batch b is data[b * batch + s * position + h * head + d]. Strides in elements.
struct Heads {
    const void* data;
    int storage;  // F32, BF16 or F16
    i64 batch, position, head;
};

// y = softmax(scale * q k^T + bias) v, by head.
struct Attention {
    i64 B, L, S, H, G;  // batch, queries, keys, query heads, query heads that share a key head
    i64 D, Dv;
    Heads q, k, v;      // k and v of one storage
    void* y;            // (B, L, H, Dv), contiguous, stored as q
    const float* bias;  // null: none
    i64 bias_stride[4];  // over (B, H, L, S); 0 where it is the same along an axis
    const int32_t* lengths;  // [B]: keys there are, at most S; null: S
    bool causal;         // query l sees the keys up to l + S - L, or l + length - L
    float scale;
};

// Gradients in q, k and v; everything float32. forward.y is not used.
struct AttentionGradient {
    Attention forward;
    Heads g;              // what flows in, (B, L, H, Dv)
    float *dq, *dk, *dv;  // contiguous, shaped as q, k and v
};

struct AttentionKernels {
    void (*attention)(const Attention&);
    void (*gradient)(const AttentionGradient&);
};

}  // namespace zoo
