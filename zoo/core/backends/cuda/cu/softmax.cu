// Along each row, with the maximum m taken out so that nothing overflows:
//   softmax e^(x - m) / sum        log_softmax x - logsumexp        logsumexp m + log(sum e^(x - m))
//   their gradients from the result y:  y (g - sum(g y))   and   g - e^y sum(g)
//   cross_entropy logsumexp - x[target]        its gradient (softmax - 1 at the target) g
// layout     rows.cuh; three passes over a row (maximum, sum, result), which is read from memory once while it is held
// floor      bytes: a row read once and written once, 2 sizeof(T) columns; gradients read two rows and write one, 3 sizeof(T)
//            columns; logsumexp and cross_entropy read one. About 25 instructions a value, of which e^x is 10: below what memory
//            takes
// A NaN makes the whole row NaN, through the sum; so does +inf in softmax, or a row of -inf, as in numpy.
//
// Python sets T, TEAM, VECTORS, and INDEX, the integers that targets are.
#include "prelude.cuh"
#include "rows.cuh"

__device__ __forceinline__ float row_maximum(Row<T>& x) {
    float m = -INFINITY;
    x.each([&](int, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) m = fmaxf(m, v[i]);
    });
    return team_max(m);
}

// Sum of e^(x - peak) over the row; a held row holds the powers afterwards.
__device__ __forceinline__ float row_powers(Row<T>& x, float peak) {
    float sum = 0;
    x.each([&](int, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = i < n ? expf(v[i] - peak) : 0.0f;
            sum += v[i];
        }
    });
    return team_sum(sum);
}

// -inf for a row of -inf, inf where the largest is.
__device__ __forceinline__ float row_logsumexp(Row<T>& x) {
    float peak = row_maximum(x);
    if (fabsf(peak) == INFINITY) peak = 0;
    return logf(row_powers(x, peak)) + peak;
}

extern "C" __global__ void __launch_bounds__(THREADS) softmax(const T* x, T* y, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float peak = row_maximum(row), share = 1.0f / row_powers(row, peak);
    T* const to = y + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = (HELD ? v[i] : expf(v[i] - peak)) * share;
        store(to + j, n, row.whole, v);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) log_softmax(const T* x, T* y, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float peak = row_maximum(row), shift = fabsf(peak) == INFINITY ? 0.0f : peak;
    float sum = 0;
    row.each([&](int, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) sum += expf(v[i] - shift);
    });
    const float all = logf(team_sum(sum)) + shift;
    T* const to = y + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
        float out[N];
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = v[i] - all;
        store(to + j, n, row.whole, out);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) logsumexp(const T* x, T* y, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float all = row_logsumexp(row);
    if (team.thread == 0) y[team.row] = narrow<T>(all);
}

template <bool LOG>
__device__ __forceinline__ void normalised_grad(const T* y, const T* g, T* dx, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> slopes(g, team, columns);
    const T* const result = y + team.row * columns;
    const bool whole = slopes.whole && aligned(y);
    float sum = 0;
    slopes.each([&](int j, int n, float(&v)[N]) {
        float a[N];
        if (!LOG) load(result + j, n, whole, a);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) sum += LOG ? v[i] : v[i] * a[i];
    });
    sum = team_sum(sum);
    T* const to = dx + team.row * columns;
    slopes.each([&](int j, int n, float(&v)[N]) {
        float a[N], out[N];
        load(result + j, n, whole, a);  // softmax_grad: the second time, from L1
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = LOG ? v[i] - expf(a[i]) * sum : a[i] * (v[i] - sum);
        store(to + j, n, slopes.whole, out);
    });
}
extern "C" __global__ void __launch_bounds__(THREADS) softmax_grad(const T* y, const T* g, T* dx, int64_t rows, int columns) {
    normalised_grad<false>(y, g, dx, rows, columns);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) log_softmax_grad(const T* y, const T* g, T* dx, int64_t rows, int columns) {
    normalised_grad<true>(y, g, dx, rows, columns);
}

// `fault` is set where a target is no column; that row's result is NaN.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(
    const T* x, const INDEX* targets, float* y, int* fault, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float all = row_logsumexp(row);
    if (team.thread == 0) {
        const int64_t target = (int64_t)targets[team.row];
        const bool there = target >= 0 && target < columns;
        if (!there) *fault = 1;
        y[team.row] = there ? all - widen(x[team.row * columns + target]) : NAN;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_grad(
    const T* x, const INDEX* targets, const float* g, T* dx, int* fault, int64_t rows, int columns) {
    const Team team;
    if (team.row >= rows) return;
    Row<T> row(x, team, columns);
    const float peak = row_maximum(row), share = 1.0f / row_powers(row, peak), slope = g[team.row];
    const int64_t target = (int64_t)targets[team.row];
    const int hit = target >= 0 && target < columns ? (int)target : -1;
    if (team.thread == 0 && hit < 0) *fault = 1;
    T* const to = dx + team.row * columns;
    row.each([&](int j, int n, float(&v)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = ((HELD ? v[i] : expf(v[i] - peak)) * share - (j + i == hit ? 1.0f : 0.0f)) * slope;
        store(to + j, n, row.whole, v);
    });
}
