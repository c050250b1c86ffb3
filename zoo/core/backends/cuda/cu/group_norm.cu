// Normalisation by statistics down the columns of x (samples, rows, columns), in float32:
//   group norm            a group is `width` neighbouring columns of all rows of a sample;
//                         y = act((x - mean) scale weight + bias)
//   batch norm, training  one sample, with a group for each column; batch norm, inference: statistics that are given
//   gradients, with h the normalised x, v = g weight, means over the group:  dx = (v - mean(v) - h mean(v h)) scale,
//   d weight = sum of g h, d bias = sum of g, over all but the columns
// layout     columns.cuh, three launches. `moments`: of each column of each part of the rows, sums about the first row that a
//            thread sees, joined by the formula of Chan, Golub & LeVeque (1979), so that nothing cancels however far the mean is
//            from 0 (a thread adds up 64 rows at most). `statistics`: a block for each group joins its parts and columns, in two
//            passes over what is 1/64 of x or less, and makes two (four) factors for each column. `normalise` (`normalise_grad`):
//            x again, and the result
// floor      bytes: x read twice and y written, 3 sizeof(T) a value, 2 where L2 still has x; gradient: x and g twice, dx, 5
//
// Python sets T, W (how weight and bias are stored), ACTIVATION, LANES.
#include "prelude.cuh"
#include "vectors.cuh"
#include "columns.cuh"
#include "activation.cuh"

enum Moment { MEAN, SQUARES, SLOPES, CROSS };  // mean; sum of (x - mean)^2; sum of g; sum of g (x - mean)

template <int K>
__device__ __forceinline__ void join_moments(float (&a)[K][N], const float (&b)[K][N], float count_a, float count_b) {
    if (count_b == 0) return;
    const float all = count_a + count_b, share_a = count_a / all, share_b = count_b / all;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float d = b[MEAN][i] - a[MEAN][i];
        a[MEAN][i] += d * share_b;
        a[SQUARES][i] += b[SQUARES][i] + d * d * (share_b * count_a);
        if constexpr (K > 2) {
            a[CROSS][i] += b[CROSS][i] + d * (b[SLOPES][i] * share_a - a[SLOPES][i] * share_b);
            a[SLOPES][i] += b[SLOPES][i];
        }
    }
}

// to[sample][part][moment][column]
template <int K>
__device__ __forceinline__ void find_moments(const T* x, const T* g, float* to, int64_t rows, int columns, int step, int parts) {
    const Tile tile(rows, columns, step, parts);
    const bool whole = columns % N == 0 && aligned(x), whole_g = columns % N == 0 && aligned(g);
    const int left = columns - tile.column;
    float shift[N], state[K][N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        shift[i] = 0;
#pragma unroll
        for (int k = 0; k < K; k++) state[k][i] = 0;
    }
    const int64_t start = tile.first + tile.row;
    if (tile.inside && start < tile.last) {
        load(x + (tile.outer * rows + start) * columns + tile.column, left, whole, shift);
        for (int64_t row = start; row < tile.last; row += ROWS) {
            const int64_t at = (tile.outer * rows + row) * columns + tile.column;
            float v[N], s[N];
            load(x + at, left, whole, v);
            if (K > 2) load(g + at, left, whole_g, s);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float d = v[i] - shift[i];
                state[MEAN][i] += d;
                state[SQUARES][i] += d * d;
                if constexpr (K > 2) {
                    state[SLOPES][i] += s[i];
                    state[CROSS][i] += s[i] * d;
                }
            }
        }
        const float share = 1.0f / tile.count(tile.row, ROWS);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float sum = state[MEAN][i], mean = sum * share;
            state[MEAN][i] = shift[i] + mean;
            state[SQUARES][i] = maximum(state[SQUARES][i] - sum * mean, 0.0f);  // not below 0 by rounding; NaN stays
            if constexpr (K > 2) state[CROSS][i] -= mean * state[SLOPES][i];
        }
    }
    combine<K>(tile, state, join_moments<K>);
    if (tile.row || !tile.inside) return;
#pragma unroll
    for (int k = 0; k < K; k++) {
        float* const line = to + ((tile.outer * parts + tile.part) * K + k) * columns + tile.column;
        store(line, left, columns % N == 0, state[k]);
    }
}
extern "C" __global__ void __launch_bounds__(256, 3) moments(
    const T* x, float* to, int64_t rows, int columns, int step, int parts) {
    find_moments<2>(x, nullptr, to, rows, columns, step, parts);
}
extern "C" __global__ void __launch_bounds__(256) moments_grad(
    const T* x, const T* g, float* to, int64_t rows, int columns, int step, int parts) {
    find_moments<4>(x, g, to, rows, columns, step, parts);
}

__device__ __forceinline__ float rows_of(int part, int64_t rows, int step) {
    return (float)at_most((int64_t)step, rows - (int64_t)part * step);
}

// A block of 128 for each group of each sample. means, variances[sample][group]; factors[sample][K][column]: mean, scale weight,
// and for the gradient the factor of x - mean and a constant.
template <int K>
__device__ __forceinline__ void group_statistics(const float* found, const W* weight, float* factors, float* means,
                                                 float* variances, int groups, int64_t rows, int columns, int step, int parts,
                                                 float eps) {
    SHARED(float, scratch, 32);
    const int64_t sample = blockIdx.x / groups;
    const int width = columns / groups, first = blockIdx.x % groups * width;
    const float* const from = found + sample * parts * K * columns + first;
    const float all = (float)rows * width;
    float mean = 0, squares = 0;
    for (int e = threadIdx.x; e < parts * width; e += 128)
        mean += from[(int64_t)(e / width) * K * columns + e % width] * (rows_of(e / width, rows, step) / all);
    mean = block_sum(mean, scratch);
    for (int e = threadIdx.x; e < parts * width; e += 128) {
        const float* const entry = from + (int64_t)(e / width) * K * columns + e % width;
        const float d = entry[MEAN * columns] - mean;
        squares += entry[SQUARES * columns] + d * d * rows_of(e / width, rows, step);
    }
    const float variance = block_sum(squares, scratch) / all, scale = 1.0f / sqrtf(variance + eps);
    if (threadIdx.x == 0) means[blockIdx.x] = mean, variances[blockIdx.x] = variance;
    float plain = 0, turned = 0;  // means of v and of v h
    if constexpr (K > 2) {
        for (int e = threadIdx.x; e < parts * width; e += 128) {
            const float* const entry = from + (int64_t)(e / width) * K * columns + e % width;
            const float w = (weight ? widen(weight[first + e % width]) : 1.0f) / all, slopes = entry[SLOPES * columns];
            plain += slopes * w;
            turned += scale * (entry[CROSS * columns] + (entry[MEAN * columns] - mean) * slopes) * w;
        }
        plain = block_sum(plain, scratch);
        turned = block_sum(turned, scratch);
    }
    float* const to = factors + sample * K * columns + first;
    for (int c = threadIdx.x; c < width; c += 128) {
        to[c] = mean;
        to[columns + c] = scale * (weight ? widen(weight[first + c]) : 1.0f);
        if constexpr (K > 2) to[2 * columns + c] = -scale * scale * turned, to[3 * columns + c] = -scale * plain;
    }
}
extern "C" __global__ void __launch_bounds__(128) statistics(
    const float* found, const W* weight, float* factors, float* means, float* variances, int groups, int64_t rows, int columns,
    int step, int parts, float eps) {
    group_statistics<2>(found, weight, factors, means, variances, groups, rows, columns, step, parts, eps);
}
extern "C" __global__ void __launch_bounds__(128) statistics_grad(
    const float* found, const W* weight, float* factors, float* means, float* variances, int groups, int64_t rows, int columns,
    int step, int parts, float eps) {
    group_statistics<4>(found, weight, factors, means, variances, groups, rows, columns, step, parts, eps);
}

// y = act((x - mean) factor + bias), for rows of a tile.
__device__ __forceinline__ void apply(const Tile& tile, const T* x, const float (&mean)[N], const float (&factor)[N],
                                      const float (&bias)[N], T* y, int64_t rows, int columns) {
    const bool whole = columns % N == 0 && aligned(x), whole_y = columns % N == 0 && aligned(y);
    for (int64_t row = tile.first + tile.row; row < tile.last; row += ROWS) {
        const int64_t at = (tile.outer * rows + row) * columns + tile.column;
        float v[N];
        load(x + at, columns - tile.column, whole, v);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = activate<ACTIVATION>((v[i] - mean[i]) * factor[i] + bias[i]);
        store(y + at, columns - tile.column, whole_y, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) normalise(
    const T* x, const float* factors, const W* bias, T* y, int64_t rows, int columns, int step, int parts) {
    const Tile tile(rows, columns, step, parts);
    if (!tile.inside) return;
    const int left = columns - tile.column;
    const float* const line = factors + tile.outer * 2 * columns + tile.column;
    float mean[N], factor[N], b[N];
    load(line, left, columns % N == 0, mean);
    load(line + columns, left, columns % N == 0, factor);
    load_or(bias, tile.column, left, columns % N == 0 && aligned(bias), 0.0f, b);
    apply(tile, x, mean, factor, b, y, rows, columns);
}

extern "C" __global__ void __launch_bounds__(256) batch_norm(
    const T* x, const W* mean, const W* variance, const W* weight, const W* bias, T* y, int64_t rows, int columns, int step,
    int parts, float eps) {
    const Tile tile(rows, columns, step, parts);
    if (!tile.inside) return;
    const int left = columns - tile.column;
    float m[N], factor[N], w[N], b[N];
    load(mean + tile.column, left, columns % N == 0 && aligned(mean), m);
    load(variance + tile.column, left, columns % N == 0 && aligned(variance), factor);
    load_or(weight, tile.column, left, columns % N == 0 && aligned(weight), 1.0f, w);
    load_or(bias, tile.column, left, columns % N == 0 && aligned(bias), 0.0f, b);
#pragma unroll
    for (int i = 0; i < N; i++) factor[i] = 1.0f / sqrtf(factor[i] + eps) * w[i];
    apply(tile, x, m, factor, b, y, rows, columns);
}

extern "C" __global__ void __launch_bounds__(256) normalise_grad(
    const T* x, const T* g, const float* factors, T* dx, int64_t rows, int columns, int step, int parts) {
    const Tile tile(rows, columns, step, parts);
    if (!tile.inside) return;
    const int left = columns - tile.column;
    const float* const line = factors + tile.outer * 4 * columns + tile.column;
    float f[4][N];
#pragma unroll
    for (int k = 0; k < 4; k++) load(line + k * columns, left, columns % N == 0, f[k]);
    const bool even = columns % N == 0, whole = even && aligned(x), whole_g = even && aligned(g), whole_dx = even && aligned(dx);
    for (int64_t row = tile.first + tile.row; row < tile.last; row += ROWS) {
        const int64_t at = (tile.outer * rows + row) * columns + tile.column;
        float v[N], s[N];
        load(x + at, left, whole, v);
        load(g + at, left, whole_g, s);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = s[i] * f[1][i] + (v[i] - f[0][i]) * f[2][i] + f[3][i];
        store(dx + at, left, whole_dx, v);
    }
}

// A warp for each column: its moments over all samples and parts.
extern "C" __global__ void __launch_bounds__(128) weight_grad(
    const float* found, const float* means, const float* variances, float* d_weight, float* d_bias, int samples, int groups,
    int columns, int parts, float eps) {
    const int column = blockIdx.x * 4 + threadIdx.x / 32;
    if (column >= columns) return;
    const int group = column / (columns / groups);
    float turned = 0, plain = 0;
    for (int64_t e = threadIdx.x % 32; e < (int64_t)samples * parts; e += 32) {
        const int64_t place = e / parts * groups + group;
        const float* const entry = found + e * 4 * columns + column;
        const float slopes = entry[SLOPES * columns], scale = 1.0f / sqrtf(variances[place] + eps);
        turned += scale * (entry[CROSS * columns] + (entry[MEAN * columns] - means[place]) * slopes);
        plain += slopes;
    }
    turned = warp_sum(turned), plain = warp_sum(plain);
    if (threadIdx.x % 32 == 0) d_weight[column] = turned, d_bias[column] = plain;
}

// For rows with statistics of their own (norm.cu): sums over the rows of a part of g h and of g. to[part][2][column]
extern "C" __global__ void __launch_bounds__(256) row_norm_weight_grad(
    const T* x, const T* g, const float* of_rows, float* to, int64_t rows, int columns, int step, int parts) {
    const Tile tile(rows, columns, step, parts);
    const int left = columns - tile.column;
    const bool whole = columns % N == 0 && aligned(x), whole_g = columns % N == 0 && aligned(g);
    float state[2][N] = {};
    if (tile.inside)
        for (int64_t row = tile.first + tile.row; row < tile.last; row += ROWS) {
            const float mean = of_rows[2 * row], scale = of_rows[2 * row + 1];
            float v[N], s[N];
            load(x + row * columns + tile.column, left, whole, v);
            load(g + row * columns + tile.column, left, whole_g, s);
#pragma unroll
            for (int i = 0; i < N; i++) state[0][i] += s[i] * ((v[i] - mean) * scale), state[1][i] += s[i];
        }
    combine<2>(tile, state, [](float(&a)[2][N], const float(&b)[2][N], float, float) {
#pragma unroll
        for (int i = 0; i < N; i++) a[0][i] += b[0][i], a[1][i] += b[1][i];
    });
    if (tile.row || !tile.inside) return;
#pragma unroll
    for (int k = 0; k < 2; k++)
        store(to + ((int64_t)tile.part * 2 + k) * columns + tile.column, left, columns % N == 0, state[k]);
}
