// What moves values and computes nothing, whatever they are. VALUE is an unsigned integer of their size.
//   take      y[i] = x[indices[i]], lines of `run` values           gather   y[o, j, i] = x[o, indices[o, j, i], i]
//   upsample  y[n, h, w] = x[n, h / s, w / t], lines of C values    pad      y[p] = x[(p - low) / step], or `value` beside
//   place     y[o, at + j] = x[o, j]: one part of a concatenation
// layout     a thread for each 16 bytes of the result, where lines are whole multiples of 16 bytes, else for each value
// floor      bytes: the result written and as much read
// `fault` is set where an index is out of range; nothing is read or written outside the arrays then.
//
// Python sets VALUE, WIDE (values that one thread moves: 16 / size, or 1), INDEX (the integers that indices are).
#include "prelude.cuh"

typedef Vec<VALUE, WIDE> Word;

__device__ __forceinline__ int64_t here() { return (int64_t)blockIdx.x * 256 + threadIdx.x; }

// 16 bytes at once if both lie on 16.
__device__ __forceinline__ void copy(const VALUE* from, VALUE* to) {
    if (((uint64_t)from | (uint64_t)to) % alignof(Word) == 0) {
        Word word;
        word.load(from);
        word.store(to);
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; i++) to[i] = from[i];
    }
}
__device__ __forceinline__ void fill(VALUE value, VALUE* to) {
#pragma unroll
    for (int i = 0; i < WIDE; i++) to[i] = value;
}

extern "C" __global__ void __launch_bounds__(256) take(
    const VALUE* x, const INDEX* indices, VALUE* y, int* fault, int64_t n, int64_t lines, int64_t run) {
    const int64_t words = run / WIDE, at = here();
    if (at >= n * words) return;
    const int64_t line = (int64_t)indices[at / words], j = at % words * WIDE;
    if (line < 0 || line >= lines) {
        *fault = 1;
        return fill(0, y + at * WIDE);
    }
    copy(x + line * run + j, y + at * WIDE);
}

extern "C" __global__ void __launch_bounds__(256) gather(
    const VALUE* x, const INDEX* indices, VALUE* y, int* fault, int64_t n, int64_t size, int64_t taken, int64_t run) {
    const int64_t at = here();
    if (at >= n) return;
    const int64_t place = (int64_t)indices[at];
    const bool there = place >= 0 && place < size;
    if (!there) *fault = 1;
    y[at] = there ? x[(at / run / taken * size + place) * run + at % run] : VALUE(0);
}

extern "C" __global__ void __launch_bounds__(256) place(
    const VALUE* x, VALUE* y, int64_t outer, int64_t run, int64_t whole, int64_t first) {
    const int64_t words = run / WIDE, at = here();
    if (at >= outer * words) return;
    copy(x + at * WIDE, y + at / words * whole + first + at % words * WIDE);
}

// x (samples, height, width, run); one axis is two of which the first has scale 1.
extern "C" __global__ void __launch_bounds__(256) upsample(
    const VALUE* x, VALUE* y, int64_t samples, int height, int width, int64_t run, int by_height, int by_width) {
    const int64_t words = run / WIDE, at = here();
    if (at >= samples * height * by_height * width * by_width * words) return;
    const int64_t column = at / words % ((int64_t)width * by_width), line = at / words / ((int64_t)width * by_width);
    const int64_t row = line % ((int64_t)height * by_height), sample = line / ((int64_t)height * by_height);
    const int64_t from = (sample * height + row / by_height) * width + column / by_width;
    copy(x + from * run + at % words * WIDE, y + at * WIDE);
}

// Where value `at` of a padded axis comes from; -1: from nowhere.
__device__ __forceinline__ int64_t source(int64_t at, int64_t low, int64_t step, int64_t size) {
    at -= low;
    return at < 0 || at % step || at / step >= size ? -1 : at / step;
}

// Four axes (n0, n1, n2, n3), of which y has m0 .. m3, then lines of `run` values. value: its bits.
extern "C" __global__ void __launch_bounds__(256) pad(
    const VALUE* x, VALUE* y, int64_t value, int64_t run, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t m0, int64_t m1,
    int64_t m2, int64_t m3, int64_t low0, int64_t low1, int64_t low2, int64_t low3, int64_t step0, int64_t step1, int64_t step2,
    int64_t step3) {
    const int64_t words = run / WIDE, at = here(), line = at / words;
    if (at >= m0 * m1 * m2 * m3 * words) return;
    const int64_t a = source(line / (m1 * m2 * m3), low0, step0, n0), b = source(line / (m2 * m3) % m1, low1, step1, n1);
    const int64_t c = source(line / m3 % m2, low2, step2, n2), d = source(line % m3, low3, step3, n3);
    if (a < 0 || b < 0 || c < 0 || d < 0) return fill((VALUE)value, y + at * WIDE);
    copy(x + (((a * n1 + b) * n2 + c) * n3 + d) * run + at % words * WIDE, y + at * WIDE);
}
