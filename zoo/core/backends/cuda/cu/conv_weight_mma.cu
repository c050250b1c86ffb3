// Gradient of a convolution in its weight, in half precision on tensor cores:
//   dw[o, r, s, c] = sum over n, p, q of  g[n, p, q, o] * x[n, p stride_h + r dilation_h - pad_h, ..., c]
// a product of matrices O x M and M x J with J = R S C columns and the M = N P Q pixels as terms. Both lie with the terms as rows,
// so fragments are read transposed.
//
// tile       TILE x TILE numbers of dw (128 or 64), 32 pixels at a time; warps and registers as in conv_mma.cu (128; 80 to 105)
// shared     3 stages of 32 x (TILE + TILE) x 2 bytes = 48 KiB (24). Vector v (8 outputs or channels) of pixel i lies at
//            v ^ (i % 8): the 8 pixels of an 8x8 matrix lie in 8 different groups of 4 banks, without conflicts in ldmatrix and copies
// addresses  a thread copies the same outputs, and the same channels of the same tap, in every step; its pixels move on by 32, an
//            addition with carries
// split      the pixels are shared by `splits` blocks; every one leaves its sums in `partial` (splits, O, J), which conv_sum adds up in
//            their order and rounds: no atomics, the same bits every time
// floor      2 M O J operations on the tensor cores; x and g once through memory, partial written and read
//
// constants  T: half or bfloat16; TILE. C and O must be multiples of 8.

#include "prelude.cuh"
#include "conv.cuh"
#include "conv_warps.cuh"

constexpr int DEPTH = 32, VECTORS = TILE / 8, STAGES = 3;
constexpr int PASSES = DEPTH * VECTORS / THREADS, APART = DEPTH / PASSES;

__device__ __forceinline__ int swizzled(int pixel, int vector) { return (pixel * VECTORS + (vector ^ (pixel % 8))) * 8; }

extern "C" __global__ void __launch_bounds__(THREADS) conv_weight_mma(
    const T *x, const T *slope, float *partial, int steps_each, GEOMETRY) {
    const Geometry g = GIVEN;
    SHARED(T, tiles, STAGES * 2 * TILE * DEPTH);

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int M = g.N * g.P * g.Q, J = g.R * g.S * g.C, across = (J + TILE - 1) / TILE;
    const int o0 = int(blockIdx.x) / across * TILE, j0 = int(blockIdx.x) % across * TILE;
    const int split = blockIdx.y, group = blockIdx.z;
    const int steps = (M + DEPTH - 1) / DEPTH, step0 = split * steps_each;
    const int mine = max(0, min(steps_each, steps - step0));

    const int v = thread % VECTORS, row = thread / VECTORS;
    const int o = o0 + v * 8, j = j0 + v * 8, outputs_all = g.O * g.groups;
    const Tap tap(g, j < J ? j : 0);
    const int down = tap.r * g.dilation_h - g.pad_h, right = tap.s * g.dilation_w - g.pad_w;
    const Pixel by(g, DEPTH);
    Pixel pixel[PASSES];
    int m[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        m[i] = step0 * DEPTH + row + i * APART;
        pixel[i] = Pixel(g, m[i]);
    }

    auto copy = [&](int stage) {
        T *const a = tiles + stage * 2 * TILE * DEPTH, *const b = a + TILE * DEPTH;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const bool there = m[i] < M;
            const int h = pixel[i].p * g.stride_h + down, w = pixel[i].q * g.stride_w + right;
            const bool used = there && o < g.O, seen = there && j < J && g.inside(h, w);
            copy16(a + swizzled(row + i * APART, v), used ? slope + int64_t(m[i]) * outputs_all + group * g.O + o : nullptr, slope);
            const T *const at = x + pixel[i].n * g.x_image() + (h * g.W + w) * g.x_pixel() + group * g.C + tap.c;
            copy16(b + swizzled(row + i * APART, v), seen ? at : nullptr, x);
            m[i] += DEPTH;
            pixel[i].advance(g, by);
        }
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
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t fa[BLOCKS_M][4], fb[BLOCKS_N][2];
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)  // 16 outputs: pixels 0-7 of both halves of them, then pixels 8-15
                ldmatrix_x4_trans(fa[i], a + swizzled(k + lane % 8 + lane / 16 * 8, (warp_m + i * 16) / 8 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < BLOCKS_N; i += 2) {  // two blocks of 8 columns: pixels 0-7 and 8-15 of each
                uint32_t both[4];
                ldmatrix_x4_trans(both, b + swizzled(k + lane % 16, warp_n / 8 + i + lane / 16));
                fb[i][0] = both[0], fb[i][1] = both[1], fb[i + 1][0] = both[2], fb[i + 1][1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
                for (int n = 0; n < BLOCKS_N; n++) mma_m16n8k16<T>(sums[i][n], fa[i], fb[n]);
        }
    }
    cp_async_wait<0>();

    // Pairs of neighbours leave as they lie: 4 lanes fill a sector of 32 bytes.
#pragma unroll
    for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
        for (int n = 0; n < BLOCKS_N; n++)
            for (int half_row = 0; half_row < 2; half_row++) {
                const int output = o0 + warp_m + i * 16 + half_row * 8 + lane / 4, column = j0 + warp_n + n * 8 + lane % 4 * 2;
                if (output >= g.O || column >= J) continue;
                Vec<float, 2> pair;
                pair[0] = sums[i][n][half_row * 2], pair[1] = sums[i][n][half_row * 2 + 1];
                pair.store(partial + (int64_t(split) * outputs_all + group * g.O + output) * J + column);
            }
}
