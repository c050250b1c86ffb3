// Pooling: the maximum or the sum under each window, x (samples, height, width, C) -> y (samples, rows, columns, C), and the
// gradient of the maximum. One spatial axis is two of which the first has window 1. What lies in the padding counts as nothing.
// layout     channels are neighbours: a thread has N of them, of one place. The gradient is gathered, not scattered: each place
//            of x asks the windows over it, in their order, whether it is the first that holds their maximum. No atomics, every
//            run the same bits; only a place that equals its maximum looks at those before it
// floor      bytes: x once (windows that overlap find it in L1) and y; the gradient x, y, g and dx once
// NaN wins a maximum, as in numpy, and then nothing equals it: its gradient is 0.
//
// Python sets T and MAXIMUM.
#include "prelude.cuh"
#include "vectors.cuh"

// The part of an axis under the window at `out`.
struct Span {
    int first, last;
    __device__ __forceinline__ Span(int out, int window, int stride, int padding, int size) {
        const int start = out * stride - padding;
        first = start > 0 ? start : 0, last = at_most(start + window, size);
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) pool(
    const T* x, T* y, int64_t samples, int height, int width, int channels, int rows, int columns, int window_h, int window_w,
    int stride_h, int stride_w, int padding_h, int padding_w) {
    const int vectors = (channels + N - 1) / N;
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x, pixel = at / vectors;
    if (pixel >= samples * rows * columns) return;
    const int c = (int)(at % vectors) * N, left = channels - c;
    const bool whole = channels % N == 0 && aligned(x), whole_y = channels % N == 0 && aligned(y);
    const Span h((int)(pixel / columns % rows), window_h, stride_h, padding_h, height);
    const Span w((int)(pixel % columns), window_w, stride_w, padding_w, width);
    const int64_t sample = pixel / columns / rows;
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = MAXIMUM ? -INFINITY : 0.0f;
    for (int p = h.first; p < h.last; p++)
        for (int q = w.first; q < w.last; q++) {
            float v[N];
            load(x + ((sample * height + p) * width + q) * channels + c, left, whole, v);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = MAXIMUM ? maximum(v[i], sum[i]) : sum[i] + v[i];
        }
    store(y + pixel * channels + c, left, whole_y, sum);
}

extern "C" __global__ void __launch_bounds__(256, 2) pool_max_grad(
    const T* x, const T* y, const T* g, T* dx, int64_t samples, int height, int width, int channels, int rows, int columns,
    int window_h, int window_w, int stride_h, int stride_w, int padding_h, int padding_w) {
    const int vectors = (channels + N - 1) / N;
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x, pixel = at / vectors;
    if (pixel >= samples * height * width) return;
    const int c = (int)(at % vectors) * N, left = channels - c;
    const bool even = channels % N == 0, whole = even && aligned(x), whole_g = even && aligned(y) && aligned(g);
    const int p = (int)(pixel / width % height), q = (int)(pixel % width);
    const int64_t sample = pixel / width / height;
    const T* const picture = x + sample * height * width * channels + c;
    float here[N], sum[N] = {};
    load(x + pixel * channels + c, left, whole, here);
    // windows over (p, q): out * stride - padding <= p < out * stride - padding + window
    const int first_h = p + padding_h < window_h ? 0 : (p + padding_h - window_h) / stride_h + 1;
    const int first_w = q + padding_w < window_w ? 0 : (q + padding_w - window_w) / stride_w + 1;
    for (int oh = first_h; oh < rows && oh * stride_h - padding_h <= p; oh++)
        for (int ow = first_w; ow < columns && ow * stride_w - padding_w <= q; ow++) {
            const int64_t out = ((sample * rows + oh) * columns + ow) * channels + c;
            float most[N], slope[N];
            bool hit[N], any = false;
            load(y + out, left, whole_g, most);
#pragma unroll
            for (int i = 0; i < N; i++) {
                hit[i] = i < left && here[i] == most[i];
                any |= hit[i];
            }
            if (!any) continue;
            load(g + out, left, whole_g, slope);
            const Span h(oh, window_h, stride_h, padding_h, height), w(ow, window_w, stride_w, padding_w, width);
            for (int i = h.first; i <= p; i++)
                for (int j = w.first; j < w.last && (i < p || j < q); j++) {
                    float before[N];
                    load(picture + ((int64_t)i * width + j) * channels, left, whole, before);
#pragma unroll
                    for (int k = 0; k < N; k++) hit[k] &= before[k] != most[k];
                }
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += hit[i] ? slope[i] : 0.0f;
        }
    store(dx + pixel * channels + c, left, even && aligned(dx), sum);
}
