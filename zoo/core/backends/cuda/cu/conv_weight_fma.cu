// Gradient of a convolution in its weight, in float32 (and for bfloat16 on sm_75): the product of conv_weight_mma.cu. And the same
// without tiles, for groups too small for one.
//
// conv_weight_fma     tile, registers and step as in conv_fma.cu; 16 pixels a step. Both operands lie with the pixels as rows already:
//                     copies are 16 bytes wide and free of conflicts
// conv_weight_direct  a thread a number of dw and some of the pixels; neighbours have neighbouring outputs, so g is read side by
//                     side, x too (depthwise) or by a broadcast. Any C, O, groups
// split               as in conv_weight_mma.cu: sums in partial (splits, groups * O, J), added up by conv_sum
//
// constants  T: of x and g; TILE. conv_weight_fma: C and O must be multiples of 4.

#include "prelude.cuh"
#include "conv.cuh"

constexpr int DEPTH = 16, VECTORS = TILE / 4, THREADS = 256, LINE = TILE + 4, PER = TILE / 16;
constexpr int PASSES = DEPTH * VECTORS / THREADS, APART = DEPTH / PASSES;

extern "C" __global__ void __launch_bounds__(THREADS) conv_weight_fma(
    const T *x, const T *slope, float *partial, int steps_each, GEOMETRY) {
    const Geometry g = GIVEN;
    SHARED(float, tiles, 2 * 2 * DEPTH * LINE);

    const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
    const int M = g.N * g.P * g.Q, J = g.R * g.S * g.C, across = (J + TILE - 1) / TILE;
    const int o0 = int(blockIdx.x) / across * TILE, j0 = int(blockIdx.x) % across * TILE;
    const int split = blockIdx.y, group = blockIdx.z;
    const int steps = (M + DEPTH - 1) / DEPTH, step0 = split * steps_each;
    const int mine = max(0, min(steps_each, steps - step0));

    const int v = thread % VECTORS, row = thread / VECTORS;
    const int o = o0 + v * 4, j = j0 + v * 4, outputs_all = g.O * g.groups;
    const Tap tap(g, j < J ? j : 0);
    const int down = tap.r * g.dilation_h - g.pad_h, right = tap.s * g.dilation_w - g.pad_w;
    const Pixel by(g, DEPTH);
    Pixel pixel[PASSES];
    int m[PASSES];
    float from_g[PASSES][4], from_x[PASSES][4];
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        m[i] = step0 * DEPTH + row + i * APART;
        pixel[i] = Pixel(g, m[i]);
    }

    auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const bool there = m[i] < M;
            const int h = pixel[i].p * g.stride_h + down, w = pixel[i].q * g.stride_w + right;
            four(from_g[i], there && o < g.O ? slope + int64_t(m[i]) * outputs_all + group * g.O + o : nullptr);
            const T *const at = x + pixel[i].n * g.x_image() + (h * g.W + w) * g.x_pixel() + group * g.C + tap.c;
            four(from_x[i], there && j < J && g.inside(h, w) ? at : nullptr);
            m[i] += DEPTH;
            pixel[i].advance(g, by);
        }
    };
    auto store = [&](int stage) {
        float *const a = tiles + stage * 2 * DEPTH * LINE + v * 4, *const b = a + DEPTH * LINE;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            Vec<float, 4> va, vb;
            for (int e = 0; e < 4; e++) va[e] = from_g[i][e], vb[e] = from_x[i][e];
            va.store(a + (row + i * APART) * LINE);
            vb.store(b + (row + i * APART) * LINE);
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
        for (int n = 0; n < PER; n += 4) {
            const int output = o0 + i / 4 * 64 + ty * 4 + i % 4, column = j0 + n / 4 * 64 + tx * 4;
            if (output < g.O && column < J)
                put_part<4>(partial, sums[i] + n, int64_t(split) * outputs_all + group * g.O + output, J, column, min(4, J - column));
        }
}

extern "C" __global__ void conv_weight_direct(const T *x, const T *slope, float *partial, int pixels_each, GEOMETRY) {
    const Geometry g = GIVEN;
    const int outputs_all = g.O * g.groups, taps = g.R * g.S, M = g.N * g.P * g.Q;
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= int64_t(outputs_all) * taps * g.C) return;
    const int64_t above = i / outputs_all;
    const int o = i - above * outputs_all, c = above % g.C, tap = above / g.C, group = o / g.O;
    const int down = tap / g.S * g.dilation_h - g.pad_h, right = tap % g.S * g.dilation_w - g.pad_w;
    const int first = int(blockIdx.y) * pixels_each, last = first + min(pixels_each, M - first);
    const Pixel one(g, 1);
    Pixel pixel(g, first);
    float sum = 0;
    for (int m = first; m < last; m++) {
        const int h = pixel.p * g.stride_h + down, w = pixel.q * g.stride_w + right;
        if (g.inside(h, w)) {
            const T *const at = x + pixel.n * g.x_image() + (h * g.W + w) * g.x_pixel() + group * g.C + c;
            sum += float(widen(slope[int64_t(m) * outputs_all + o])) * float(widen(*at));
        }
        pixel.advance(g, one);
    }
    partial[((int64_t(blockIdx.y) * outputs_all + o) * taps + tap) * g.C + c] = sum;
}
