// What the kernels of convolution share: where pixels, taps and results lie, and what follows a sum.
//
//   y[n, p, q, o] = act(scale[o] * sum over r, s, c of x[n, h, w, c] * w[o, r, s, c] + bias[o] + residual[n, p, q, o])
//   h = p * stride_h + r * dilation_h - pad_h,   w = q * stride_w + s * dilation_w - pad_w;   outside the picture x is 0
//
// x is (N, H, W, groups * C), y (N, P, Q, groups * O), channels last. As a product of matrices: M = N P Q rows (pixels of y),
// O columns, K = R S C terms, tap by tap with the channel running fastest.
//
// A picture with zeros between its pixels (a gradient, a transposed convolution) is never laid out: kernels/conv.py cuts it into
// stride_h * stride_w phases, each of which is a plain convolution with some of the taps, into some of the pixels of y. That is
// what w_first, w_row, w_tap and y_first, y_image, y_row, y_pixel are for. They also turn the kernel round (negative steps).
//
// One image of x and all of the weight have less than 2^31 numbers, and so have rows of results (Python sees to it); whole
// arrays may have more.

#pragma once

#include "activation.cuh"

struct Geometry {
    int N, H, W, C, P, Q, O, R, S;
    int stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
    int groups;
    int w_output, w_first, w_row, w_tap;  // of the weight: from one output to the next, tap (0, 0), from tap to tap
    int64_t y_first, y_image;             // of y, in numbers: pixel (0, 0, 0), from image to image, row to row, pixel to pixel
    int y_row, y_pixel;

    __device__ __forceinline__ int x_pixel() const { return C * groups; }
    __device__ __forceinline__ int64_t x_image() const { return int64_t(H) * W * C * groups; }
    __device__ __forceinline__ bool inside(int h, int w) const { return unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W); }
};

// The parameters of every kernel that make a Geometry, in the order of its members: const Geometry g = GIVEN.
#define GEOMETRY                                                                                                     \
    int g_N, int g_H, int g_W, int g_C, int g_P, int g_Q, int g_O, int g_R, int g_S, int g_stride_h, int g_stride_w, \
    int g_dilation_h, int g_dilation_w, int g_pad_h, int g_pad_w, int g_groups, int g_w_output, int g_w_first,       \
    int g_w_row, int g_w_tap, int64_t g_y_first, int64_t g_y_image, int g_y_row, int g_y_pixel
#define GIVEN                                                                                                  \
    {g_N, g_H, g_W, g_C, g_P, g_Q, g_O, g_R, g_S, g_stride_h, g_stride_w, g_dilation_h, g_dilation_w, g_pad_h, \
    g_pad_w, g_groups, g_w_output, g_w_first, g_w_row, g_w_tap, g_y_first, g_y_image, g_y_row, g_y_pixel}

// A row of the product: a pixel of the result.
struct Pixel {
    int n, p, q;

    __device__ __forceinline__ Pixel() {}
    __device__ __forceinline__ Pixel(const Geometry &g, int m) {
        int line = m / g.Q;
        q = m - line * g.Q;
        n = line / g.P;
        p = line - n * g.P;
    }
    // Some rows further: `by` is that number as a pixel. No division.
    __device__ __forceinline__ void advance(const Geometry &g, const Pixel &by) {
        q += by.q;
        p += by.p;
        n += by.n;
        if (q >= g.Q) q -= g.Q, p++;
        if (p >= g.P) p -= g.P, n++;
    }
    __device__ __forceinline__ int64_t in_y(const Geometry &g) const {
        return g.y_first + n * g.y_image + int64_t(p) * g.y_row + int64_t(q) * g.y_pixel;
    }
};

// A place along K: channel c of tap (r, s). r = R behind the last tap.
struct Tap {
    int r, s, c;

    __device__ __forceinline__ Tap(const Geometry &g, int k) {
        int tap = k / g.C;
        c = k - tap * g.C;
        r = tap / g.S;
        s = tap - r * g.S;
    }
    __device__ __forceinline__ void advance(const Geometry &g, int by) {
        c += by;
        while (c >= g.C) {
            c -= g.C;
            if (++s == g.S) s = 0, r++;
        }
    }
};

// What a thread copies of x in every step: some channels of the windows of `count` pixels of y, `apart` rows of the product apart.
// The pixels are divided into (n, p, q) here, once.
template <typename Stored, int count> struct Windows {
    const Stored *image[count];
    int h[count], w[count];

    __device__ __forceinline__ Windows(const Geometry &g, const Stored *x, int first, int apart, int group) {
        const int M = g.N * g.P * g.Q;
#pragma unroll
        for (int i = 0; i < count; i++) {
            const int m = first + i * apart;
            const Pixel pixel(g, m < M ? m : 0);
            h[i] = m < M ? pixel.p * g.stride_h - g.pad_h : -(1 << 30);  // no such pixel: above every picture
            w[i] = pixel.q * g.stride_w - g.pad_w;
            image[i] = x + pixel.n * g.x_image() + group * g.C;
        }
    }
    // Where window i has this tap; null outside the picture and behind the last tap.
    __device__ __forceinline__ const Stored *at(const Geometry &g, const Tap &tap, int i) const {
        const int y = h[i] + tap.r * g.dilation_h, x = w[i] + tap.s * g.dilation_w;
        return tap.r < g.R && g.inside(y, x) ? image[i] + (y * g.W + x) * g.x_pixel() + tap.c : nullptr;
    }
};

// The same of the weight, for `count` outputs.
template <typename Stored, int count> struct Filters {
    const Stored *filter[count];

    __device__ __forceinline__ Filters(const Geometry &g, const Stored *w, int first, int apart, int group) {
#pragma unroll
        for (int i = 0; i < count; i++) {
            const int o = first + i * apart;
            filter[i] = o < g.O ? w + int64_t(group * g.O + o) * g.w_output + g.w_first : nullptr;
        }
    }
    __device__ __forceinline__ const Stored *at(const Geometry &g, const Tap &tap, int i) const {
        return tap.r < g.R && filter[i] ? filter[i] + tap.r * g.w_row + tap.s * g.w_tap + tap.c : nullptr;
    }
};

// What follows a sum of products; a null pointer stands for nothing.
template <typename Bias> struct After {
    const float *scale;
    const Bias *bias;

    // o counts outputs through all groups.
    template <int code> __device__ __forceinline__ float finish(float sum, int o, float residual) const {
        if (scale) sum *= scale[o];
        if (bias) sum += widen(bias[o]);
        return activate<code>(sum + residual);
    }
};

// `count` neighbouring results of one pixel: finished and stored, together where there are all of them and the group's number
// of outputs is a multiple of `count`.
template <int code, int count, typename Value, typename Bias>
__device__ __forceinline__ void put(const Geometry &g, const After<Bias> &after, const Value *residual, Value *y,
                                    const float *sums, int m, int o, int there, int group) {
    o += group * g.O;
    const int64_t at = Pixel(g, m).in_y(g) + o;
    if (g.O % count == 0) {
        Vec<Value, count> added, out;
        if (residual) added.load(residual + at);
#pragma unroll
        for (int e = 0; e < count; e++)
            out[e] = narrow<Value>(after.template finish<code>(sums[e], o + e, residual ? widen(added[e]) : 0.f));
        out.store(y + at);
    } else {
#pragma unroll
        for (int e = 0; e < count; e++)
            if (e < there)
                y[at + e] = narrow<Value>(after.template finish<code>(sums[e], o + e, residual ? widen(residual[at + e]) : 0.f));
    }
}

// The same for sums that others are still to be added to: partial is (splits, rows, groups * O).
template <int count>
__device__ __forceinline__ void put_part(float *partial, const float *sums, int64_t row, int across, int column, int there) {
    float *const to = partial + row * across + column;
    if (across % 4 == 0 && column % 4 == 0 && there == count) {
#pragma unroll
        for (int e = 0; e < count; e += 4) {
            Vec<float, 4> four;
            for (int i = 0; i < 4; i++) four[i] = sums[e + i];
            four.store(to + e);
        }
    } else {
#pragma unroll
        for (int e = 0; e < count; e++)
            if (e < there) to[e] = sums[e];
    }
}

// Four neighbours in float32; zeros where there is nothing.
template <typename Stored> __device__ __forceinline__ void four(float out[4], const Stored *from) {
    Vec<Stored, 4> read;
    if (from) read.load(from);
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = from ? float(widen(read[i])) : 0.f;
}

// 16 bytes into shared memory; zeros where there is nothing. base: any address in the array.
template <typename Stored> __device__ __forceinline__ void copy16(void *to, const Stored *from, const Stored *base) {
    cp_async16(to, from ? from : base, from != nullptr);
}

// `depth` terms of a thread's `per` x `per` results, four neighbours at a time, 64 apart. a, b: the first term, `line` numbers a term.
template <int per, int depth, int line>
__device__ __forceinline__ void multiply(float (&sums)[per][per], const float *a, const float *b) {
#pragma unroll
    for (int k = 0; k < depth; k++) {
        float fa[per], fb[per];
#pragma unroll
        for (int i = 0; i < per; i += 4) {
            Vec<float, 4> va, vb;
            va.load(a + k * line + i / 4 * 64);
            vb.load(b + k * line + i / 4 * 64);
#pragma unroll
            for (int e = 0; e < 4; e++) fa[i + e] = va[e], fb[i + e] = vb[e];
        }
#pragma unroll
        for (int i = 0; i < per; i++)
#pragma unroll
            for (int j = 0; j < per; j++) sums[i][j] += fa[i] * fb[j];
    }
}
