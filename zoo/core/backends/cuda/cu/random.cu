// Philox4x32-10 (Salmon et al. 2011), the numbers of zoo/core/philox.py bit by bit: a block is a function of (seed, its number).
//   uniform  the top 24 bits of each word, exact in float32, then rounded to T
//   normal   pairs of words by Box & Muller in float64, rounded to float32, then to T: philox.py says why
//   dropout  x / (1 - p) where the stream's value is at least p, else 0
// layout     a thread makes the four words of one block: 16 bytes in float32
// floor      bytes: sizeof(T) a value (dropout 2). 20 multiplications of 32 bits make four words; float64, of which most GPUs
//            have 1/64 of the rate, is for normal alone: initial noise and initial weights
//
// Python sets T: how results are stored.
#include "prelude.cuh"

struct Words {
    uint32_t word[4];
    __device__ __forceinline__ Words(uint64_t block, uint32_t key0, uint32_t key1) {
        uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = 0, c3 = 0;
#pragma unroll
        for (int round = 0; round < 10; round++) {
            const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0, c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1, c3 = (uint32_t)p0;
            key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
        }
        word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
    }
    __device__ __forceinline__ float uniform(int i) const { return (float)(word[i] >> 8) * 5.9604644775390625e-8f; }  // 2^-24
};

__device__ __forceinline__ void write(T* y, int64_t left, const float (&v)[4]) {
    if (left >= 4 && (uint64_t)y % alignof(Vec<T, 4>) == 0) {
        Vec<T, 4> run;
#pragma unroll
        for (int i = 0; i < 4; i++) run[i] = narrow<T>(v[i]);
        run.store(y);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < left) y[i] = narrow<T>(v[i]);
    }
}

__device__ __forceinline__ int64_t here() { return (int64_t)blockIdx.x * 256 + threadIdx.x; }

// offset: the stream's block of value 0; key: the seed's lower and upper half.
extern "C" __global__ void __launch_bounds__(256) uniform(T* y, int64_t n, int64_t offset, int key0, int key1) {
    const int64_t at = here() * 4;
    if (at >= n) return;
    const Words words((uint64_t)(offset + here()), (uint32_t)key0, (uint32_t)key1);
    const float v[4] = {words.uniform(0), words.uniform(1), words.uniform(2), words.uniform(3)};
    write(y + at, n - at, v);
}

extern "C" __global__ void __launch_bounds__(256) normal(T* y, int64_t n, int64_t offset, int key0, int key1) {
    const int64_t at = here() * 4;
    if (at >= n) return;
    const Words words((uint64_t)(offset + here()), (uint32_t)key0, (uint32_t)key1);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const double radius = sqrt(-2.0 * log(((double)words.word[i] + 1.0) * 2.3283064365386963e-10));     // 2^-32
        const double angle = (double)words.word[i + 1] * (2.0 * 3.14159265358979323846 * 2.3283064365386963e-10);
        v[i] = (float)(radius * cos(angle));
        v[i + 1] = (float)(radius * sin(angle));
    }
    write(y + at, n - at, v);
}

extern "C" __global__ void __launch_bounds__(256) dropout(
    const T* x, T* y, int64_t n, int64_t offset, int key0, int key1, float p, float scale) {
    const int64_t at = here() * 4;
    if (at >= n) return;
    const Words words((uint64_t)(offset + here()), (uint32_t)key0, (uint32_t)key1);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float value = at + i < n ? widen(x[at + i]) : 0.0f;
        v[i] = words.uniform(i) >= p ? value * scale : 0.0f;
    }
    write(y + at, n - at, v);
}
