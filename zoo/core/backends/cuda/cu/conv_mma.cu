// Convolution in half precision on tensor cores, as the product of matrices of conv.cuh (an implicit GEMM: the matrix of all
// windows is addressed, never stored).
//
// tile       TILE x TILE results (128 or 64), 32 terms at a time, shared by warps as in conv_warps.cuh
// registers  64 sums (32), fragments 16 of x and 8 of w (8 and 8) a thread, addresses about 24: ptxas comes to 126 (80
//            for sm_80 and sm_90, 105 at the most), so two blocks (six; four) fit an SM
// shared     3 stages of (TILE + TILE) x 32 x 2 bytes = 48 KiB (24): two are on their way (cp.async) while one is used. A row is 4
//            vectors of 16 bytes; vector v of row i lies at v ^ (i / 2 % 4), so that the 8 rows of an 8x8 matrix lie in 8
//            different groups of 4 banks: no conflict in ldmatrix, none in the copies (8 threads write 128 consecutive bytes)
// addresses  a thread copies the same vector of channels of the same rows in every step: its rows are divided into (n, p, q) once,
//            its place along K is carried from tap to tap by additions
// split      `splits` blocks share the terms of a tile where there are too few tiles for the GPU; they leave sums in float32 in
//            `partial`, which conv_sum adds up in their order: no atomics, the same bits every time
// floor      2 M O K operations on the tensor cores; x, w and y once through memory
//
// constants  T: half or bfloat16 (of x, w, y and residual); TB: of the bias; TILE; ACTIVATION. C must be a multiple of 8.

#include "prelude.cuh"
#include "conv.cuh"
#include "conv_warps.cuh"

constexpr int DEPTH = 32, VECTORS = DEPTH / 8, STAGES = 3;
constexpr int PASSES = TILE * VECTORS / THREADS, APART = TILE / PASSES;

__device__ __forceinline__ int swizzled(int row, int vector) { return (row * VECTORS + (vector ^ (row / 2 % 4))) * 8; }

extern "C" __global__ void __launch_bounds__(THREADS) conv_mma(
    const T *x, const T *w, T *y, const float *scale, const TB *bias, const T *residual, float *partial, int steps_each,
    GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    SHARED(T, tiles, STAGES * 2 * TILE * DEPTH);

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int across = (g.O + TILE - 1) / TILE;  // tiles of outputs run fastest: their neighbours find x in L2
    const int m0 = int(blockIdx.x) / across * TILE, o0 = int(blockIdx.x) % across * TILE;
    const int split = blockIdx.y, group = blockIdx.z;
    const int steps = (g.R * g.S * g.C + DEPTH - 1) / DEPTH, step0 = split * steps_each;
    const int mine = max(0, min(steps_each, steps - step0));

    const int v = thread % VECTORS, row = thread / VECTORS;  // this thread copies vector v of rows row, row + APART, ...
    const Windows<T, PASSES> windows(g, x, m0 + row, APART, group);
    const Filters<T, PASSES> filters(g, w, o0 + row, APART, group);
    Tap tap(g, step0 * DEPTH + v * 8);
    auto copy = [&](int stage) {
        T *const a = tiles + stage * 2 * TILE * DEPTH, *const b = a + TILE * DEPTH;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            copy16(a + swizzled(row + i * APART, v), windows.at(g, tap, i), x);
            copy16(b + swizzled(row + i * APART, v), filters.at(g, tap, i), w);
        }
        tap.advance(g, DEPTH);
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    const int warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < mine) copy(i);
        cp_async_commit();
    }
    for (int step = 0; step < mine; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage is here, and nobody reads the one before it any more: it is filled next
        if (step + STAGES - 1 < mine) copy((step + STAGES - 1) % STAGES);
        cp_async_commit();
        const T *const a = tiles + step % STAGES * 2 * TILE * DEPTH, *const b = a + TILE * DEPTH;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t fa[BLOCKS_M][4], fb[BLOCKS_N][2];
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)
                ldmatrix_x4(fa[i], a + swizzled(warp_m + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j += 2) {  // two blocks of 8 outputs: terms 0-7 and 8-15 of each
                uint32_t both[4];
                ldmatrix_x4(both, b + swizzled(warp_n + j * 8 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
                fb[j][0] = both[0], fb[j][1] = both[1], fb[j + 1][0] = both[2], fb[j + 1][1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
                for (int j = 0; j < BLOCKS_N; j++) mma_m16n8k16<T>(sums[i][j], fa[i], fb[j]);
        }
    }
    cp_async_wait<0>();
    __syncthreads();

    leave<ACTIVATION>(g, after, residual, y, partial, reinterpret_cast<float *>(tiles), sums, m0, o0, split, group);
}
