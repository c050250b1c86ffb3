// Normalisation of rows, in float32, with the statistics of the row: h = (x - mean) scale, scale = 1 / sqrt(variance + eps).
//   layer_norm h weight + bias        rms_norm: no mean is taken off, and, as transformers' LlamaRMSNorm, h is rounded as it is
//   stored before it is multiplied by the weight
//   gradients, with v = g weight:  dx = (v - mean(v) - h mean(v h)) scale,  of rms_norm without mean(v)
//   d weight = sum of g h over the rows, d bias = sum of g: column_sums below
// layout     rows.cuh; the variance by a second pass over the row, about its mean: one pass with x^2 would cancel
// floor      bytes: 2 sizeof(T) columns a row; gradients 3 (x, g, dx), and 2 more for the weight's, which read x and g again (L2
//            has up to some 40 MB of them)
//
// division   by __fdividef and rsqrtf, to 2 units in the last place: exact division calls a subroutine, around which ptxas spills
//
// Python sets T, W (how weight and bias are stored), TEAM, VECTORS.
#include "prelude.cuh"
#include "rows.cuh"

// Mean of (x - mean)^2 over the row.
__device__ __forceinline__ float row_variance(Row<T>& x, float mean) {
    float sum = 0;
    x.each([&](int, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float d = i < n ? v[i] - mean : 0.0f;
            sum += d * d;
        }
    });
    return __fdividef(team_sum(sum), x.columns);
}

__device__ __forceinline__ float row_mean(Row<T>& x) {
    float sum = 0;
    x.each([&](int, int, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[i];
    });
    return __fdividef(team_sum(sum), x.columns);
}

__device__ __forceinline__ float inverse_root(float variance, float eps) { return rsqrtf(variance + eps); }

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm(
    const T* x, const W* weight, const W* bias, T* y, int64_t rows, int columns, float eps) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float mean = row_mean(row), scale = inverse_root(row_variance(row, mean), eps);
    const bool whole = row.whole && aligned(weight) && aligned(bias);
    T* const to = y + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
        float w[N], b[N], out[N];
        load_or(weight, j, n, whole, 1.0f, w);
        load_or(bias, j, n, whole, 0.0f, b);
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = (v[i] - mean) * scale * w[i] + b[i];
        store(to + j, n, row.whole, out);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(
    const T* x, const W* weight, T* y, int64_t rows, int columns, float eps) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float scale = inverse_root(row_variance(row, 0.0f), eps);
    const bool whole = row.whole && aligned(weight);
    T* const to = y + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
        float w[N], out[N];
        load(weight + j, n, whole, w);
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = widen(narrow<T>(v[i] * scale)) * widen(narrow<T>(w[i]));
        store(to + j, n, row.whole, out);
    });
}

// statistics[row] = mean, scale: for the weight's gradient.
template <bool CENTRED>
__device__ __forceinline__ void norm_grad(const T* x, const W* weight, const T* g, T* dx, float* statistics, int64_t rows,
                                          int columns, float eps) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float mean = CENTRED ? row_mean(row) : 0.0f, scale = inverse_root(row_variance(row, mean), eps);
    const T* const slopes = g + team.row * columns;
    const bool whole = row.whole && aligned(g), whole_w = row.whole && aligned(weight);
    float plain = 0, turned = 0;
    row.each([&](int j, int n, float(&v)[N]) {
        float s[N], w[N];
        load(slopes + j, n, whole, s);
        load_or(weight, j, n, whole_w, 1.0f, w);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) {
                const float a = s[i] * w[i];
                plain += a;
                turned += a * ((v[i] - mean) * scale);
            }
    });
    plain = CENTRED ? __fdividef(team_sum(plain), columns) : 0.0f;
    turned = __fdividef(team_sum(turned), columns);
    T* const to = dx + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
        float s[N], w[N], out[N];
        load(slopes + j, n, whole, s);  // the second time, from L1
        load_or(weight, j, n, whole_w, 1.0f, w);
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = (s[i] * w[i] - plain - (v[i] - mean) * scale * turned) * scale;
        store(to + j, n, row.whole, out);
    });
    if (team.thread == 0) statistics[2 * team.row] = mean, statistics[2 * team.row + 1] = scale;
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) layer_norm_grad(
    const T* x, const W* weight, const T* g, T* dx, float* statistics, int64_t rows, int columns, float eps) {
    norm_grad<true>(x, weight, g, dx, statistics, rows, columns, eps);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) rms_norm_grad(
    const T* x, const W* weight, const T* g, T* dx, float* statistics, int64_t rows, int columns, float eps) {
    norm_grad<false>(x, weight, g, dx, statistics, rows, columns, eps);
}
