// Convolution of groups too small for a product of matrices: depthwise, and everything odd.
//
// conv_direct     a thread a result; neighbours have neighbouring outputs, so x is read by a broadcast or side by side. Any C, O, groups
// conv_depthwise  C = O = 1: a thread has 4 channels of 4 pixels, a block 128 channels of 32 pixels, the weight turned round in shared
//                 memory (R S x 128 in float32), read without conflicts
// floor           x, w and y once through memory: 2 R S operations a number are few. The taps' other reads of x come from the caches
//
// constants  TX: of x, y and residual; TW: of w (int8_t too); TB: of the bias; ACTIVATION

#include "prelude.cuh"
#include "conv.cuh"

extern "C" __global__ void __launch_bounds__(256) conv_direct(
    const TX *x, const TW *w, TX *y, const float *scale, const TB *bias, const TX *residual, GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    const int across = g.O * g.groups;
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= int64_t(g.N) * g.P * g.Q * across) return;
    const int m = i / across, o = i - int64_t(m) * across, group = o / g.O;
    const Pixel pixel(g, m);
    const TX *const image = x + pixel.n * g.x_image() + group * g.C;
    const TW *const filter = w + int64_t(o) * g.w_output + g.w_first;
    float sum = 0;
    for (int r = 0; r < g.R; r++) {
        const int h = pixel.p * g.stride_h + r * g.dilation_h - g.pad_h;
        for (int s = 0; s < g.S; s++) {
            const int ww = pixel.q * g.stride_w + s * g.dilation_w - g.pad_w;
            if (!g.inside(h, ww)) continue;
            const TX *const px = image + (h * g.W + ww) * g.x_pixel();
            const TW *const pw = filter + r * g.w_row + s * g.w_tap;
            for (int c = 0; c < g.C; c++) sum += float(widen(px[c])) * float(widen(pw[c]));
        }
    }
    const int64_t at = pixel.in_y(g) + o;
    y[at] = narrow<TX>(after.finish<ACTIVATION>(sum, o, residual ? widen(residual[at]) : 0.f));
}

constexpr int PIXELS = 4, LANES = 32, LINES = 8;

extern "C" __global__ void __launch_bounds__(LANES *LINES, 4) conv_depthwise(
    const TX *x, const TW *w, TX *y, const float *scale, const TB *bias, const TX *residual, GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    DYNAMIC_SHARED(float, weights);  // [tap][channel]
    const int lane = threadIdx.x % LANES, line = threadIdx.x / LANES;
    const int first = int(blockIdx.y) * LANES * 4, M = g.N * g.P * g.Q, taps = g.R * g.S;
    const int channels = min(LANES * 4, g.groups - first);
    for (int i = threadIdx.x; i < taps * channels; i += LANES * LINES) {
        const int channel = i % channels, tap = i / channels;
        weights[tap * LANES * 4 + channel] = widen(w[(first + channel) * g.w_output + g.w_first + tap / g.S * g.w_row + tap % g.S * g.w_tap]);
    }
    __syncthreads();
    const int o = first + lane * 4;
    if (o >= g.groups) return;
    for (int i = 0; i < PIXELS; i++) {
        const int64_t far = (int64_t(blockIdx.x) * PIXELS + i) * LINES + line;
        if (far >= M) return;
        const Pixel pixel(g, far);
        const TX *const image = x + pixel.n * g.x_image() + o;
        float sums[4] = {};
        for (int r = 0; r < g.R; r++) {
            const int h = pixel.p * g.stride_h + r * g.dilation_h - g.pad_h;
            for (int s = 0; s < g.S; s++) {
                const int ww = pixel.q * g.stride_w + s * g.dilation_w - g.pad_w;
                if (!g.inside(h, ww)) continue;
                float values[4];
                Vec<float, 4> tap;
                four(values, image + (h * g.W + ww) * g.groups);
                tap.load(weights + (r * g.S + s) * LANES * 4 + lane * 4);
                for (int c = 0; c < 4; c++) sums[c] += values[c] * tap[c];
            }
        }
        const int64_t at = pixel.in_y(g) + o;
        Vec<TX, 4> out, added;
        if (residual) added.load(residual + at);
        for (int c = 0; c < 4; c++)
            out[c] = narrow<TX>(after.finish<ACTIVATION>(sums[c], o + c, residual ? widen(added[c]) : 0.f));
        out.store(y + at);
    }
}
