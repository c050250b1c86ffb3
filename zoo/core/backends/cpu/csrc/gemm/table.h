#pragma once
#include "../common.h"

namespace zoo {

constexpr int MAX_BATCH_AXES = 6;

// BF16_PAIRS: bfloat16 too, for dot products of two numbers; the other operand is then rounded to bfloat16. The numbers of a pair
// follow each other along K, and what holds pairs has strides and K in pairs: K is even.
enum Weight : int { F32 = 0, BF16, F16, BF16_PAIRS, WEIGHTS };

// C = act(A * B + bias + residual).  All strides in elements.
struct Gemm {
    i64 M, N, K;     // K in numbers, or in pairs
    int weight;  // what b and packed are stored in
    const float* a;  // number (m, k) at a + m * a_m + k * a_k
    i64 a_m, a_k;
    const void* b;   // element (k, n) at b + k * b_k + n * b_n; not read if `packed` is set
    i64 b_k, b_n;
    const void* packed;   // [N/NR][K][NR], made by `pack`; columns beyond N are zero
    float* c;             // rows of N contiguous elements
    i64 c_m;
    const float* bias;      // [N] or null
    const float* residual;  // laid out as c, or null
    int activation;
    // batch axes, outermost first; the strides of a and b may be 0 (broadcast); c is contiguous over them
    int axes;
    i64 batch[MAX_BATCH_AXES], a_batch[MAX_BATCH_AXES], b_batch[MAX_BATCH_AXES];
};

struct GemmKernels {
    int mr, nr;  // rows and columns of the micro-kernel's tile
    bool pairs;  // are there kernels for BF16_PAIRS?
    // packs element (k, n) at b + k * b_k + n * b_n into [N/NR][K][NR]
    void (*pack)(int weight, const void* b, i64 b_k, i64 b_n, i64 N, i64 K, void* packed);
    void (*gemm)(const Gemm&);
};

}  // namespace zoo
