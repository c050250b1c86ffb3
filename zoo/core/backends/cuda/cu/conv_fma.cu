// Convolution in float32, as the product of matrices of conv.cuh: for float32 weights, and for bfloat16 on GPUs whose tensor cores
// have none (sm_75). Stored types may differ; they are widened on their way into shared memory.
//
// tile       TILE x TILE results (128 or 64), 16 terms at a time; 256 threads with 8 x 8 (4 x 4) results each: rows 4 ty and 64 + 4 ty
//            onwards, outputs the same, so that a read of 4 values by 16 threads covers 64 neighbours
// registers  64 sums, 16 operands, 16 on their way from memory (16, 8, 8). ptxas comes to 167 (91), so one block (two) fits
//            an SM; held to 128 for a second one, it would spill
// shared     2 stages of 16 x (132 + 132) x 4 bytes = 33 KiB (17), terms as rows. Reads of 16 bytes have no conflicts; the copies turn
//            4 channels of 8 pixels into 4 rows, two lanes on a bank: 1 store in 16 to 32 multiplications
// step       the next tile is read into registers, this one multiplied, then that one stored: one barrier a step
// split      as in conv_mma.cu
// floor      2 M O K operations of the FMA units; x, w and y once through memory
//
// constants  TX: of x, y and residual; TW: of w (int8_t too); TB: of the bias; TILE; ACTIVATION. C must be a multiple of 4.

#include "prelude.cuh"
#include "conv.cuh"

constexpr int DEPTH = 16, VECTORS = DEPTH / 4, THREADS = 256, LINE = TILE + 4, PER = TILE / 16;
constexpr int PASSES = TILE * VECTORS / THREADS, APART = TILE / PASSES;

extern "C" __global__ void __launch_bounds__(THREADS, TILE == 64 ? 2 : 1) conv_fma(
    const TX *x, const TW *w, TX *y, const float *scale, const TB *bias, const TX *residual, float *partial, int steps_each,
    GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    SHARED(float, tiles, 2 * 2 * DEPTH * LINE);

    const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
    const int across = (g.O + TILE - 1) / TILE;
    const int m0 = int(blockIdx.x) / across * TILE, o0 = int(blockIdx.x) % across * TILE;
    const int split = blockIdx.y, group = blockIdx.z;
    const int M = g.N * g.P * g.Q;
    const int steps = (g.R * g.S * g.C + DEPTH - 1) / DEPTH, step0 = split * steps_each;
    const int mine = max(0, min(steps_each, steps - step0));

    const int v = thread % VECTORS, row = thread / VECTORS;  // this thread reads vector v of rows row, row + APART, ...
    const Windows<TX, PASSES> windows(g, x, m0 + row, APART, group);
    const Filters<TW, PASSES> filters(g, w, o0 + row, APART, group);
    Tap tap(g, step0 * DEPTH + v * 4);
    float from_x[PASSES][4], from_w[PASSES][4];
    auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            four(from_x[i], windows.at(g, tap, i));
            four(from_w[i], filters.at(g, tap, i));
        }
        tap.advance(g, DEPTH);
    };
    auto store = [&](int stage) {
        float *const a = tiles + stage * 2 * DEPTH * LINE + v * 4 * LINE + row, *const b = a + DEPTH * LINE;
#pragma unroll
        for (int i = 0; i < PASSES; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                a[c * LINE + i * APART] = from_x[i][c];
                b[c * LINE + i * APART] = from_w[i][c];
            }
    };

    float sums[PER][PER] = {};
    if (mine > 0) {
        fetch();
        store(0);
    }
    __syncthreads();
    for (int step = 0; step < mine; step++) {
        if (step + 1 < mine) fetch();
        const float *const a = tiles + step % 2 * 2 * DEPTH * LINE + ty * 4, *const b = a - ty * 4 + DEPTH * LINE + tx * 4;
        multiply<PER, DEPTH, LINE>(sums, a, b);
        if (step + 1 < mine) store((step + 1) % 2);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < PER; i++)
#pragma unroll
        for (int j = 0; j < PER; j += 4) {
            const int m = m0 + i / 4 * 64 + ty * 4 + i % 4, o = o0 + j / 4 * 64 + tx * 4;
            const int there = m < M ? min(4, g.O - o) : 0;
            if (there > 0 && partial)
                put_part<4>(partial, sums[i] + j, int64_t(split) * M + m, g.O * g.groups, group * g.O + o, there);
            else if (there > 0)
                put<ACTIVATION, 4>(g, after, residual, y, sums[i] + j, m, o, there, group);
        }
}
