// Rows of float32 as sums of halves, so that tensor cores multiply them with weights in halves, summed in float32 from the smallest
// part on: as exact as a product in float32.
// split3     x = hi + middle + lo exactly, bfloat16 each: 8 of the 24 bits of a float, cut from the top (no rounding: nothing overflows).
//            Three times the flops, at more than ten times the rate of float32
// split2     x s = hi + lo / 2048, float16 each, s the power of two that brings the largest number of the row to 2^14 .. 2^15: 22 bits
//            of each number, fewer of those below 2^-29 of the largest
//   floor    4 bytes read and 6 or 4 written for each number

#include "prelude.cuh"

// parts[3][count], from hi to lo. Infinity and NaN are in hi alone.
extern "C" __global__ void __launch_bounds__(256) split3(const float *x, bfloat16 *parts, int64_t count) {
    for (int64_t i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) {
        const uint32_t bits = __float_as_uint(x[i]);
        const bool finite = (bits & 0x7fffffff) < 0x7f800000;
        const uint32_t high = !finite && (bits & 0x7fffff) ? 0x7fc00000 : bits & 0xffff0000;
        const float rest = finite ? x[i] - __uint_as_float(high) : 0.0f;
        const uint32_t middle = __float_as_uint(rest) & 0xffff0000;
        parts[i] = bfloat16{uint16_t(high >> 16)};
        parts[i + count] = bfloat16{uint16_t(middle >> 16)};
        parts[i + 2 * count] = narrow<bfloat16>(rest - __uint_as_float(middle));
    }
}

// A block for each row: parts[2][M][K], inverse[m] = 1 / s.
extern "C" __global__ void __launch_bounds__(256) split2(const float *x, half *parts, float *inverse, int M, int K) {
    SHARED(int, scratch, 32);
    const int64_t row = (int64_t)blockIdx.x * K, count = (int64_t)M * K;
    int largest = 0;  // as bits, which order positive numbers as their values do; infinity and NaN do not count
    for (int k = threadIdx.x; k < K; k += 256) {
        const int bits = __float_as_uint(x[row + k]) & 0x7fffffff;
        largest = max(largest, bits < 0x7f800000 ? bits : 0);
    }
    // 2^e <= largest < 2^(e + 1); s = 2^(14 - e), kept where s and 1 / s are normal numbers
    const int e = max(block_max(largest, scratch) >> 23, 1 + 15) - 127;
    const float s = __uint_as_float((uint32_t)(127 + 14 - e) << 23);
    if (threadIdx.x == 0) inverse[blockIdx.x] = __uint_as_float((uint32_t)(127 - 14 + e) << 23);
    for (int k = threadIdx.x; k < K; k += 256) {
        const float v = x[row + k] * s;
        const half high = narrow<half>(v);
        const float rest = v - widen(high);
        parts[row + k] = high;
        parts[row + k + count] = narrow<half>(rest == rest ? rest * 2048.0f : 0.0f);
    }
}
