// Convolution of float32 pictures with weights in half precision, on tensor cores and as exact as in float32: the product of
// matrices of conv.cuh, its x cut into bfloat16 as it is read.
//
// parts      x = hi + middle + lo exactly: 8 of the 24 bits of a float each, cut from the top. A bfloat16 weight takes 3 products. One in
//            float16 is itself hi + lo and takes 5; lo * lo is below 2^-24 of the product. They are added from the smallest on.
//            An infinity in x comes out as one (as NaN with float16 weights, whose lo may be 0)
// tile       TILE x TILE results (128 or 64), 32 terms at a time, warps as in conv_warps.cuh
// registers  64 sums (32), 12 of a block of x, 8 or 16 of w: ptxas comes to about 170, with float16 weights for sm_100 to 193
//            (128), so one block (four) fits an SM
// shared     2 stages of TILE x 32 x (4 + 2) bytes = 48 KiB (24), x as it is: it travels by cp.async, and is cut on its way into
//            registers. Vector v (4 channels) of row i of x lies at v ^ (2 (i % 4)): 16 lanes that read 8 bytes each, of 4 rows, meet all 32
//            banks once. w as in conv_mma.cu
// split      as in conv_mma.cu
// floor      6 (10) M O K operations on the tensor cores; x, w and y once through memory. An SM cuts a number of x in about 6
//            instructions, WARPS_N times, for 3 (5) x TILE products of it
//
// constants  T: half or bfloat16, of w; TB: of the bias; TILE; ACTIVATION. x, y and residual are float32. C must be a multiple of 8.
//            For sm_80 and later: before, tensor cores have no bfloat16

#include "prelude.cuh"
#include "conv.cuh"
#include "conv_warps.cuh"

constexpr int DEPTH = 32, STAGES = 2, STAGE = TILE * DEPTH * 3 / 2;
constexpr int X_VECTORS = DEPTH / 4, X_PASSES = TILE * X_VECTORS / THREADS, X_APART = TILE / X_PASSES;
constexpr int W_VECTORS = DEPTH / 8, W_PASSES = TILE * W_VECTORS / THREADS, W_APART = TILE / W_PASSES;

__device__ __forceinline__ int x_swizzled(int row, int vector) { return (row * X_VECTORS + (vector ^ (row % 4 * 2))) * 4; }
__device__ __forceinline__ int w_swizzled(int row, int vector) { return (row * W_VECTORS + (vector ^ (row / 2 % 4))) * 8; }

// The upper halves of two numbers, as bfloat16; what is left of them stays. Of infinity nothing is left.
__device__ __forceinline__ uint32_t cut(float &low, float &high) {
    const uint32_t a = __float_as_uint(low) & 0xffff0000, b = __float_as_uint(high) & 0xffff0000;
    low = low == __uint_as_float(a) ? 0.f : low - __uint_as_float(a);
    high = high == __uint_as_float(b) ? 0.f : high - __uint_as_float(b);
    return a >> 16 | b;
}

// w, two of them, as hi and lo.
template <typename Half> __device__ __forceinline__ uint32_t cut_weight(uint32_t &w) {
    float low = float_of_half(uint16_t(w)), high = float_of_half(uint16_t(w >> 16));
    w = cut(low, high);
    return cut(low, high);
}
template <> __device__ __forceinline__ uint32_t cut_weight<bfloat16>(uint32_t &) { return 0; }

template <typename Half> struct Parts {
    static constexpr bool two = true;  // of w
};
template <> struct Parts<bfloat16> {
    static constexpr bool two = false;
};

extern "C" __global__ void __launch_bounds__(THREADS) conv_mixed(
    const float *x, const T *w, float *y, const float *scale, const TB *bias, const float *residual, float *partial, int steps_each,
    GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    SHARED(float, tiles, STAGES * STAGE);

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int across = (g.O + TILE - 1) / TILE;  // tiles of outputs run fastest: their neighbours find x in L2
    const int m0 = int(blockIdx.x) / across * TILE, o0 = int(blockIdx.x) % across * TILE;
    const int split = blockIdx.y, group = blockIdx.z;
    const int steps = (g.R * g.S * g.C + DEPTH - 1) / DEPTH, step0 = split * steps_each;
    const int mine = max(0, min(steps_each, steps - step0));

    const int xv = thread % X_VECTORS, x_row = thread / X_VECTORS, wv = thread % W_VECTORS, w_row = thread / W_VECTORS;
    const Windows<float, X_PASSES> windows(g, x, m0 + x_row, X_APART, group);
    const Filters<T, W_PASSES> filters(g, w, o0 + w_row, W_APART, group);
    Tap x_tap(g, step0 * DEPTH + xv * 4), w_tap(g, step0 * DEPTH + wv * 8);
    auto copy = [&](int stage) {
        float *const a = tiles + stage * STAGE;
        T *const b = reinterpret_cast<T *>(a + TILE * DEPTH);
#pragma unroll
        for (int i = 0; i < X_PASSES; i++) copy16(a + x_swizzled(x_row + i * X_APART, xv), windows.at(g, x_tap, i), x);
#pragma unroll
        for (int i = 0; i < W_PASSES; i++) copy16(b + w_swizzled(w_row + i * W_APART, wv), filters.at(g, w_tap, i), w);
        x_tap.advance(g, DEPTH);
        w_tap.advance(g, DEPTH);
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    const int warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    if (mine > 0) copy(0);
    cp_async_commit();
    for (int step = 0; step < mine; step++) {
        cp_async_wait<0>();
        __syncthreads();  // this stage is here, and nobody reads the other one any more: it is filled next
        if (step + 1 < mine) copy((step + 1) % STAGES);
        cp_async_commit();
        const float *const a = tiles + step % STAGES * STAGE;
        const T *const b = reinterpret_cast<const T *>(a + TILE * DEPTH);
#pragma unroll 1  // two at once would need more registers than there are
        for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t fb[BLOCKS_N][2], fb_lo[BLOCKS_N][2];
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j += 2) {  // two blocks of 8 outputs: terms 0-7 and 8-15 of each
                uint32_t both[4];
                ldmatrix_x4(both, b + w_swizzled(warp_n + j * 8 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    fb_lo[j + e / 2][e % 2] = cut_weight<T>(both[e]);
                    fb[j + e / 2][e % 2] = both[e];
                }
            }
#pragma unroll
            for (int i = 0; i < BLOCKS_M; i++) {
                uint32_t hi[4], middle[4], lo[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {  // rows g and g + 8, terms 2t and 2t + 1, then both with 8 terms more
                    Vec<float, 2> two;
                    const int vector = k * 4 + e / 2 * 2 + lane % 4 / 2;
                    two.load(a + x_swizzled(warp_m + i * 16 + e % 2 * 8 + lane / 4, vector) + lane % 2 * 2);
                    hi[e] = cut(two[0], two[1]);
                    middle[e] = cut(two[0], two[1]);
                    lo[e] = cut(two[0], two[1]);
                }
#pragma unroll
                for (int j = 0; j < BLOCKS_N; j++) {
                    mma_m16n8k16<bfloat16>(sums[i][j], lo, fb[j]);
                    if (Parts<T>::two) mma_m16n8k16<bfloat16>(sums[i][j], middle, fb_lo[j]);
                    mma_m16n8k16<bfloat16>(sums[i][j], middle, fb[j]);
                    if (Parts<T>::two) mma_m16n8k16<bfloat16>(sums[i][j], hi, fb_lo[j]);
                    mma_m16n8k16<bfloat16>(sums[i][j], hi, fb[j]);
                }
            }
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    leave<ACTIVATION>(g, after, residual, y, partial, tiles, sums, m0, o0, split, group);
}
