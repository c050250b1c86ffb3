// Sums, maxima and minima of x: of (outer, rows, columns) down its columns, of (rows, columns) along its rows.
//   sum    in float32; divided by `divide` at the end: the mean.       OP 0 sum, 1 maximum, 2 minimum; NaN wins both, as in numpy
//   argmax, argmin   the place of the first maximum, or of the first NaN
//   cumsum           along each row
// layout     along rows: a warp for each row up to 1024 columns, else a block of 256; rows that are few and long are cut into
//            `parts`, whose results a second launch reduces. Down columns: columns.cuh; up to 16 rows one thread each N columns
// floor      bytes: x once, sizeof(T) a value; the parts are less than 1/32 of it
//
// Python sets T, TO (the result's type), OP, TEAM (32 or 256), LANES.
#include "prelude.cuh"
#include "vectors.cuh"
#include "columns.cuh"

constexpr int TEAMS = 256 / TEAM;  // rows of a block

__device__ __forceinline__ float neutral() { return OP == 0 ? 0.0f : OP == 1 ? -INFINITY : INFINITY; }
__device__ __forceinline__ float joined(float a, float b) {
    return OP == 0 ? a + b : OP == 1 ? maximum(a, b) : minimum(a, b);
}

// What `mine` is of all threads of a row, in every one of them.
__device__ __forceinline__ float team_joined(float mine) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) mine = joined(mine, __shfl_xor_sync(FULL, mine, apart));
    if (TEAM == 32) return mine;
    SHARED(float, of_warp, 8);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = of_warp[0];
#pragma unroll
    for (int i = 1; i < 8; i++) mine = joined(mine, of_warp[i]);
    return mine;
}

// y[row][part] of `step` columns each; step is a multiple of N.
extern "C" __global__ void __launch_bounds__(256) reduce_rows(
    const T* x, TO* y, int64_t rows, int64_t columns, int64_t step, int parts, float divide) {
    const int64_t team = TEAM == 32 ? (int64_t)blockIdx.x * TEAMS + threadIdx.x / 32 : (int64_t)blockIdx.x;
    if (team >= rows * parts) return;
    const int64_t row = team / parts, first = team % parts * step, last = at_most(first + step, columns);
    const T* const from = x + row * columns;
    const bool whole = columns % N == 0 && aligned(x);
    float mine = neutral();
    for (int64_t j = first + threadIdx.x % TEAM * N; j < last; j += TEAM * N) {
        float v[N];
        load(from + j, last - j, whole, v);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < last - j) mine = joined(mine, v[i]);
    }
    mine = team_joined(mine);
    if (threadIdx.x % TEAM == 0) y[team] = narrow<TO>(mine / divide);
}

// y[outer][part][columns]
extern "C" __global__ void __launch_bounds__(256) reduce_columns(
    const T* x, TO* y, int64_t rows, int columns, int step, int parts, float divide) {
    const Tile tile(rows, columns, step, parts);
    const bool whole = columns % N == 0 && aligned(x), whole_y = columns % N == 0 && aligned(y);
    float state[1][N];
#pragma unroll
    for (int i = 0; i < N; i++) state[0][i] = neutral();
    if (tile.inside)
        for (int64_t row = tile.first + tile.row; row < tile.last; row += ROWS) {
            float v[N];
            load(x + (tile.outer * rows + row) * columns + tile.column, columns - tile.column, whole, v);
#pragma unroll
            for (int i = 0; i < N; i++) state[0][i] = joined(state[0][i], v[i]);
        }
    combine<1>(tile, state, [](float(&a)[1][N], const float(&b)[1][N], float, float) {
#pragma unroll
        for (int i = 0; i < N; i++) a[0][i] = joined(a[0][i], b[0][i]);
    });
    if (tile.row || !tile.inside) return;
#pragma unroll
    for (int i = 0; i < N; i++) state[0][i] /= divide;
    store(y + (tile.outer * parts + tile.part) * columns + tile.column, columns - tile.column, whole_y, state[0]);
}

// A thread for each vector of columns: few rows.
extern "C" __global__ void __launch_bounds__(256) reduce_few(
    const T* x, TO* y, int64_t outer, int rows, int64_t columns, float divide) {
    const int64_t vectors = (columns + N - 1) / N, at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= outer * vectors) return;
    const int64_t o = at / vectors, column = at % vectors * N;
    const bool whole = columns % N == 0 && aligned(x), whole_y = columns % N == 0 && aligned(y);
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = neutral();
    for (int row = 0; row < rows; row++) {
        float v[N];
        load(x + (o * rows + row) * columns + column, columns - column, whole, v);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = joined(sum[i], v[i]);
    }
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] /= divide;
    store(y + o * columns + column, columns - column, whole_y, sum);
}

struct Place {
    float value;
    int at;
    // NaN comes before every number; of equals the first.
    __device__ __forceinline__ void join(float other, int place) {
        const bool nan = value != value, other_nan = other != other;
        const bool same = nan || other_nan ? nan && other_nan : value == other;
        if (same ? place < at : other_nan || other > value) value = other, at = place;
    }
};

// sign -1: argmin.
extern "C" __global__ void __launch_bounds__(256) arg_rows(const T* x, int32_t* y, int64_t rows, int columns, float sign) {
    const int64_t row = TEAM == 32 ? (int64_t)blockIdx.x * TEAMS + threadIdx.x / 32 : (int64_t)blockIdx.x;
    if (row >= rows) return;
    const T* const from = x + row * columns;
    const bool whole = columns % N == 0 && aligned(x);
    Place best = {-INFINITY, columns};
    for (int j = threadIdx.x % TEAM * N; j < columns; j += TEAM * N) {
        float v[N];
        load(from + j, columns - j, whole, v);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < columns - j) best.join(sign * v[i], j + i);
    }
#pragma unroll
    for (int apart = 16; apart; apart /= 2) {
        const float value = __shfl_xor_sync(FULL, best.value, apart);
        const int at = __shfl_xor_sync(FULL, best.at, apart);
        best.join(value, at);
    }
    if (TEAM > 32) {
        SHARED(Place, of_warp, 8);
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
        __syncthreads();
        for (int i = 0; i < 8; i++) best.join(of_warp[i].value, of_warp[i].at);
    }
    if (threadIdx.x % TEAM == 0) y[row] = best.at;
}

// Each thread adds up N neighbours; the sums before it come from its warp, the warps before that, and what went before.
extern "C" __global__ void __launch_bounds__(256) cumsum_rows(const T* x, T* y, int columns) {
    SHARED(float, of_warp, 8);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t start = (int64_t)blockIdx.x * columns;
    const bool whole = columns % N == 0 && aligned(x), whole_y = columns % N == 0 && aligned(y);
    float before = 0;
    for (int first = 0; first < columns; first += 256 * N) {
        const int j = first + (int)threadIdx.x * N;
        float v[N];
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = 0;
        if (j < columns) load(x + start + j, columns - j, whole, v);
#pragma unroll
        for (int i = 1; i < N; i++) v[i] += v[i - 1];
        float sum = v[N - 1];  // of the lanes up to this one
        for (int apart = 1; apart < 32; apart *= 2) {
            const float other = __shfl_sync(FULL, sum, lane >= apart ? lane - apart : lane);
            if (lane >= apart) sum += other;
        }
        if (lane == 31) of_warp[warp] = sum;
        __syncthreads();
        float left = before;
        for (int i = 0; i < 8; i++) {
            if (i < warp) left += of_warp[i];
            before += of_warp[i];
        }
        __syncthreads();
        const float lanes = __shfl_sync(FULL, sum, lane ? lane - 1 : 0);
        left += lane ? lanes : 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += left;
        if (j < columns) store(y + start + j, columns - j, whole_y, v);
    }
}
