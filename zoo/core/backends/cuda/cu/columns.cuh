// What the kernels down columns share: x is (outer, rows, columns), columns next to each other in memory.
//
// layout     a block of 256 threads takes a tile of LANES vectors of 16 bytes of columns (8: a line of 128 bytes of each row) and
//            one of the `parts` of `step` rows each, ROWS = 256 / LANES of them at a time. What threads found in their rows is
//            joined through shared memory by a tree, and blocks that had other rows of the same columns are joined by a second
//            launch: parts depend on the shape only, so every run gives the same bits, without atomics
// shared     K * 128 * N floats for K sums of N columns: 16 KiB for the four moments of halves
//
// Python sets LANES (8, or 1 where the columns are few) and lays out the grid: outer * parts * tiles blocks, tiles first
// (kernels/plan.py: Tiles).

constexpr int ROWS = 256 / LANES;

struct Tile {
    int64_t outer, first, last;  // rows first .. last - 1
    int part, column, row;       // the first of N columns; which of the ROWS
    bool inside;                 // whether there is such a column
    __device__ __forceinline__ Tile(int64_t rows, int columns, int step, int parts) {
        const int tiles = (columns + LANES * N - 1) / (LANES * N);
        const int64_t block = blockIdx.x / tiles;
        outer = block / parts, part = block % parts;
        first = (int64_t)part * step, last = at_most(first + step, rows);
        column = ((int)(blockIdx.x % tiles) * LANES + (int)threadIdx.x % LANES) * N;
        row = threadIdx.x / LANES;
        inside = column < columns;
    }
    // Rows among them that thread `row` has joined when `apart` threads are left.
    __device__ __forceinline__ float count(int row, int apart) const {
        const int64_t all = last - first;
        return row < all ? (float)((all - row + apart - 1) / apart) : 0.0f;
    }
};

// state[k][i] of all rows of a tile, in the threads of row 0. join(a, b, count_a, count_b) adds b into a; the counts are of rows.
template <int K, typename Join> __device__ __forceinline__ void combine(const Tile& tile, float (&state)[K][N], Join join) {
    SHARED(float, others, K * N * 128);
    const int lane = threadIdx.x % LANES;
    for (int upper = ROWS / 2; upper > 0; upper /= 2) {
        __syncthreads();
        if (tile.row >= upper && tile.row < 2 * upper) {
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
                for (int i = 0; i < N; i++) others[(k * N + i) * 128 + (tile.row - upper) * LANES + lane] = state[k][i];
        }
        __syncthreads();
        if (tile.row < upper) {
            float other[K][N];
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
                for (int i = 0; i < N; i++) other[k][i] = others[(k * N + i) * 128 + tile.row * LANES + lane];
            join(state, other, tile.count(tile.row, 2 * upper), tile.count(tile.row + upper, 2 * upper));
        }
    }
}
