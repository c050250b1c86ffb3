// A convolution of each channel with a kernel of its own:  y[n, p, c] = act(sum over k of x[n, p * stride + k * dilation - pad, c] * w[c, k])
// layout     W channels of up to DP neighbouring pixels of a row at once; w turned to [tap][channel]. What lies outside x is read
//            from a line of zeros, so that 0 * infinity is NaN there as everywhere
// registers  DP accumulators + 1 of w; each FMA reads its x from memory, mostly from L1
// roof       two loads a cycle: two FMA of W channels

constexpr int DP = 8;
constexpr i64 DEPTHWISE_KERNEL = 32;  // largest

struct DepthwiseJob {
    const Conv* c;
    const float* w;
    i64 tasks;
};

// Where the values under each kernel row begin; a line of zeros has a pixel distance of 0.
struct Lines {
    const float* at[DEPTHWISE_KERNEL];
    i64 pixel[DEPTHWISE_KERNEL];
};

// Pixels q .. q + P - 1 of the line, all of which find x under the whole kernel (P > 1), or one that may not.
template <int P>
INLINE void depthwise_pixels(const Conv& c, const Lines& lines, const float* w, const float* zeros, i64 k, i64 q, float* y, const float* residual) {
    const i64 lanes = c.channels - k, left = q * c.stride[1] - c.pad[1];
    vf acc[P];
    const vf bias = c.bias ? load_first(c.bias + k, lanes) : vf{};
    UNROLL for (int i = 0; i < P; i++) acc[i] = bias;
    for (i64 k0 = 0; k0 < c.kernel[0]; k0++) {
        for (i64 k1 = 0; k1 < c.kernel[1]; k1++, w += c.channels) {
            const i64 column = left + k1 * c.dilation[1], step = c.stride[1] * lines.pixel[k0];
            const float* x = lines.at[k0] + column * lines.pixel[k0] + k;
            if (P == 1 && (column < 0 || column >= c.size[1])) x = zeros + k;
            const vf tap = load_first(w + k, lanes);
            if (lanes >= W) {
                UNROLL for (int i = 0; i < P; i++) acc[i] += load(x + i * step) * tap;
            } else {
                UNROLL for (int i = 0; i < P; i++) acc[i] += load_first(x + i * step, lanes) * tap;
            }
        }
    }
    UNROLL for (int i = 0; i < P; i++) {
        const i64 at = (q + i) * c.channels + k;
        if (residual) acc[i] += load_first(residual + at, lanes);
        store_first(y + at, activate(acc[i], c.activation), lanes);
    }
}

void depthwise_task(void* context, i64 index) {
    const DepthwiseJob& job = *static_cast<const DepthwiseJob*>(context);
    const Conv& c = *job.c;
    const i64 rows = c.batch * c.out[0], reach = (c.kernel[1] - 1) * c.dilation[1];
    float* const zeros = scratch(SLOT_A, c.channels + W);
    for (i64 i = 0; i < c.channels; i++) zeros[i] = 0;
    // pixels q0 .. q1 find all of x
    const i64 q0 = at_most(c.out[1], at_least(0, divide_up(c.pad[1], c.stride[1])));
    const i64 last = c.size[1] - 1 - reach + c.pad[1], q1 = at_least(q0, at_most(c.out[1], last < 0 ? 0 : last / c.stride[1] + 1));
    for (i64 row = rows * index / job.tasks; row < rows * (index + 1) / job.tasks; row++) {
        const i64 image = row / c.out[0], top = row % c.out[0] * c.stride[0] - c.pad[0], at = row * c.out[1] * c.outputs;
        Lines lines;
        for (i64 k0 = 0; k0 < c.kernel[0]; k0++) {
            const i64 h = top + k0 * c.dilation[0];
            const bool inside = h >= 0 && h < c.size[0];
            lines.at[k0] = inside ? c.x + image * c.x_stride[0] + h * c.x_stride[1] : zeros;
            lines.pixel[k0] = inside ? c.x_stride[2] : 0;
        }
        float* const y = c.y + at;
        const float* const residual = c.residual ? c.residual + at : nullptr;
        for (i64 k = 0; k < c.channels; k += W) {
            i64 q = 0;
            for (; q < q0; q++) depthwise_pixels<1>(c, lines, job.w, zeros, k, q, y, residual);
            for (; q + DP <= q1; q += DP) depthwise_pixels<DP>(c, lines, job.w, zeros, k, q, y, residual);
            if (q < q1 && q1 - q0 >= DP) {  // some once more: as fast as a single pixel, whose FMA wait for each other
                depthwise_pixels<DP>(c, lines, job.w, zeros, k, q1 - DP, y, residual);
                q = q1;
            }
            for (; q < c.out[1]; q++) depthwise_pixels<1>(c, lines, job.w, zeros, k, q, y, residual);
        }
    }
}

bool is_depthwise(const Conv& c) {
    return c.groups > 1 && c.groups == c.channels && c.groups == c.outputs && !c.packed && c.x_stride[3] == 1 &&
           c.kernel[0] <= DEPTHWISE_KERNEL && c.kernel[1] <= DEPTHWISE_KERNEL;
}

void depthwise(const Conv& c) {
    const i64 taps = c.kernel[0] * c.kernel[1], rows = c.batch * c.out[0];
    float* const w = scratch(SLOT_B, taps * c.channels);
    for (i64 tap = 0; tap < taps; tap++) {
        const i64 from = c.flip ? taps - 1 - tap : tap;
        const float* const at = static_cast<const float*>(c.w) + from / c.kernel[1] * c.w_stride[1] + from % c.kernel[1] * c.w_stride[2];
        for (i64 k = 0; k < c.channels; k++) w[tap * c.channels + k] = at[k * c.w_stride[0]];
    }
    DepthwiseJob job{&c, w, at_least(1, at_most(rows, rows * c.out[1] * c.channels * taps / 250000))};
    parallel(job.tasks, depthwise_task, &job);
}
