// What the kernels of rounded weights share. Formats: zoo/core/prims/quant.py.
//
// Rows of x are rounded on the way: codes = round(x 127 / largest), scale = largest / 127, as the cpu's kernels do it (csrc/quant/
// activations.h): integers times integers are exact, and what is rounded is the same everywhere. A row of numbers below 1e-36 counts as
// zero. One that holds NaN or infinity has no such scale: its scale is NaN, and its products are computed from x as it is.
//
// layout   codes [M][pitch] int8, zeros from K on; pitch a multiple of 64. For 4 bits, of each 32 the 16 even inputs come before the 16
//          odd ones: a byte of w holds an even input below the odd one after it, so a word of w is 4 even and 4 odd ones in a row
// 4 bits   w ^ 0x88 turns q = 0 .. 15 into the two's complement of q - 8; a half of a byte, moved to its upper end, is then the
//          signed byte 16 (q - 8), and sums of products with it are exact multiples of 16
#include "prelude.cuh"
#include "activation.cuh"

constexpr int GROUP = 32;  // inputs that share a scale of 4 bits

// The 4 even and the 4 odd weights of a word, times 16.
__device__ __forceinline__ uint32_t even_weights(uint32_t word) { return (word ^ 0x88888888u) << 4 & 0xf0f0f0f0u; }
__device__ __forceinline__ uint32_t odd_weights(uint32_t word) { return (word ^ 0x88888888u) & 0xf0f0f0f0u; }

// 16 bytes of a row of `bytes`, zeros beyond its end, where it does not allow to load them at once.
__device__ __forceinline__ void load_bytes(const uint8_t *row, int at, int bytes, uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = 0;
        for (int j = 0; j < 4; j++)
            if (at + 4 * i + j < bytes) words[i] |= (uint32_t)row[at + 4 * i + j] << 8 * j;
    }
}

// What a product adds up, and the scales of w: [N] of 8 bits, [N][K / 32] of 4.
template <int bits> struct Format {
    typedef int Sum;
    typedef float Scale;
};
template <> struct Format<4> {
    typedef float Sum;
    typedef half Scale;
};

// y = act(w-th output + bias) from the sum of codes times weights (of 4 bits: times the scales of w too), or, where the row of x holds
// NaN or infinity, from x and the weight as it stands for.
template <int bits, typename Input, typename Bias, typename Output>
__device__ inline void finish(
    typename Format<bits>::Sum sum, float x_scale, const Input *x, const uint8_t *row, const typename Format<bits>::Scale *scale,
    const Bias *bias, Output *y, int n, int K, int activation) {
    float total = bits == 8 ? sum * (widen(scale[n]) * x_scale) : sum * x_scale;
    if (x_scale != x_scale) {
        total = 0.0f;
        for (int k = 0; k < K; k++) {
            if (bits == 8) total += widen(x[k]) * ((float)(int8_t)row[k] * widen(scale[n]));
            else total += widen(x[k]) * (((float)(row[k / 2] >> k % 2 * 4 & 15) - 8.0f) * widen(scale[(int64_t)n * (K / GROUP) + k / GROUP]));
        }
    }
    *y = narrow<Output>(activate(activation, total + (bias ? widen(bias[n]) : 0.0f)));
}
