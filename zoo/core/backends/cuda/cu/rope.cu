// Rotary positions: among the first 2 * pairs channels of each head every pair (a, b) becomes (a cos - b sin, b cos + a sin), in
// float32; the rest stays. A pair is (i, i + pairs), or two neighbours where INTERLEAVED.
// layout     x (samples * length, heads, size); angles (lines, pairs), a line for each position, or for each of each sample: row
//            r of x has line r / heads modulo lines. A thread turns N pairs (N / 2 where they are neighbours) or copies N of the
//            rest
// floor      bytes: x read and written, 2 sizeof(T) a value; the angles are read by all heads and stay in the caches
//
// Python sets T, A (how angles are stored), INTERLEAVED.
#include "prelude.cuh"
#include "vectors.cuh"

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

extern "C" __global__ void __launch_bounds__(256) rope(
    const T* x, const A* cosines, const A* sines, T* y, int64_t rows, int heads, int size, int pairs, int64_t lines) {
    const int turned = INTERLEAVED ? divide_up(2 * pairs, N) : divide_up(pairs, N), rest = divide_up(size - 2 * pairs, N);
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x, row = at / (turned + rest);
    if (row >= rows) return;
    const int item = (int)(at % (turned + rest));
    const T* const from = x + row * size;
    T* const to = y + row * size;
    const bool even = size % N == 0 && aligned(x) && aligned(y);
    float a[N], b[N];
    if (item >= turned) {
        const int j = 2 * pairs + (item - turned) * N, left = size - j;
        const bool whole = even && 2 * pairs % N == 0;
        load(from + j, left, whole, a);
        store(to + j, left, whole, a);
        return;
    }
    const int64_t line = row / heads % lines * pairs;
    const A *const cosine = cosines + line, *const sine = sines + line;
    float c[N], s[N];
    if (INTERLEAVED) {
        const int j = item * N, left = 2 * pairs - j;
        load(from + j, left, even && left >= N, a);
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const bool there = i < left;
            c[i] = there ? widen(cosine[j / 2 + i / 2]) : 0.0f, s[i] = there ? widen(sine[j / 2 + i / 2]) : 0.0f;
            b[i] = a[i] * c[i] - a[i + 1] * s[i];
            b[i + 1] = a[i + 1] * c[i] + a[i] * s[i];
        }
        store(to + j, left, even && left >= N, b);
    } else {
        const int j = item * N, left = pairs - j;
        const bool whole = even && pairs % N == 0, whole_angles = pairs % N == 0 && aligned(cosines) && aligned(sines);
        load(from + j, left, whole, a);
        load(from + pairs + j, left, whole, b);
        load(cosine + j, left, whole_angles, c);
        load(sine + j, left, whole_angles, s);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float first = a[i];
            a[i] = first * c[i] - b[i] * s[i];
            b[i] = b[i] * c[i] + first * s[i];
        }
        store(to + j, left, whole, a);
        store(to + pairs + j, left, whole, b);
    }
}
