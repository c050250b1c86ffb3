#pragma once
#include "../attention/table.h"
#include "../common.h"

namespace zoo {

// C = act(A * (scaled integer weights)^T + bias), A quantised by row to 8 bits on the fly.  Strides in elements.
struct QuantLinear {
    i64 M, N, K;
    int bits;        // 8: codes of -128 .. 127, a scale for each output; 4: of -8 .. 7, a scale for each 32 inputs
    const float* a;    // rows of K contiguous numbers
    i64 a_m;           // distance of rows
    i64 line, a_line;  // every `line` rows begin a new line, a_line apart; line 0: there are none
    const uint8_t* w;        // packed by `pack`
    const float* scale8;     // [N]
    const uint16_t* scale4;  // float16, packed as a weight (N, K/32) of a GEMM
    float* c;                // [M][N], contiguous
    const float* bias;       // [N] or null
    const float* residual;   // as C, or null
    int activation;
    int* strange;  // set to 1 if a row of A holds NaN or infinity; its results are then meaningless
};

// Products of the same A: M, K, bits, a, a_m, line and a_line of all are those of the first.
struct QuantLinears {
    const QuantLinear* each;
    i64 count;
};

// y = act(conv(x, w * scale) + bias + residual), channels last, one group, all contiguous; w in 8 bits, packed as a matrix
// (outputs, kernel0 * kernel1 * channels), channels a multiple of 4.
struct QuantConv {
    i64 batch, size[2], channels, outputs, kernel[2], out[2], stride[2], dilation[2], pad[2];
    const float* x;
    const uint8_t* w;
    const float *scale, *bias, *residual;
    float* y;
    int activation;
    int* strange;  // as above, of a tile
};

// Everything float32, no bias, not causal, G = 1, D up to 512.
struct QuantAttention {
    Attention attention;
    int* strange;  // as above, of q, k or v
};

struct QuantKernels {
    int columns;  // of a panel of packed weights
    // int8 (N, K), rows q_n apart -> [N/columns][ceil(K/4)][columns][4], + 128 to be unsigned
    void (*pack8)(const int8_t* q, i64 q_n, i64 N, i64 K, uint8_t* packed);
    // int4 in pairs (N, K/2), rows q_n apart -> [N/columns][K/32][4][columns][4]: inputs 4t .. 4t+3 of the group of 32 in the
    // low halves of chunk t, inputs 4t+16 .. 4t+19 in the high ones
    void (*pack4)(const uint8_t* q, i64 q_n, i64 N, i64 K, uint8_t* packed);
    void (*linear)(const QuantLinears&);
    void (*conv)(const QuantConv&);
    void (*attention)(const QuantAttention&);
};

}  // namespace zoo
