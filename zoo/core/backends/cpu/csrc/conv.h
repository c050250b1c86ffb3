// Convolution, channels last, as a GEMM over tiles of im2col rows that are never stored whole:
//   y[pixel, o] = sum over k of X[pixel, k] * w[o, k],  k = (kernel row, kernel column, channel), pixel = (image, row, column)
// layout     a tile of TILE pixels is written at once as packed panels of A [panel][KC][mr]: 256 x 512 floats, half of L2
// roof       2 * pixels * outputs * K operations; the im2col writes cost about 20 % of them at 64 outputs, 2 % at 512
// The gradient for the weights is a convolution too, whose "kernel" is a whole picture and whose output is tiny; see below.

constexpr i64 TILE = 256;
constexpr float ZEROS[KC] = {};

struct Pixel {
    i64 at, h, w;  // offset in x of the kernel's first tap, which may lie outside x
};

// k0 .. k1-1 of the im2col rows of r pixels, as a packed panel.
void pack_pixels(const Conv& c, const Pixel* pixels, int r, i64 k0, i64 k1, float* to) {
    const i64 channels = c.channels / c.groups, row = c.kernel[1] * channels;
    bool joined = c.dilation[1] == 1 && c.x_stride[2] == channels;  // one kernel row is one run in x
    for (int i = 0; i < r; i++) joined = joined && pixels[i].w >= 0 && pixels[i].w + c.kernel[1] <= c.size[1];
    const float* rows[MR];
    for (i64 k = k0, length; k < k1; k += length) {
        const i64 kh = k / row, kw = joined ? 0 : k % row / channels, from = k % row - kw * channels;
        length = at_most((joined ? row : channels) - from, k1 - k);
        const i64 dh = kh * c.dilation[0], dw = kw * c.dilation[1];
        const i64 offset = dh * c.x_stride[1] + dw * c.x_stride[2] + from;
        for (int i = 0; i < r; i++) {
            const i64 h = pixels[i].h + dh, w = pixels[i].w + dw;
            const bool inside = h >= 0 && h < c.size[0] && w >= 0 && w < c.size[1];
            rows[i] = inside ? c.x + pixels[i].at + offset : ZEROS;
        }
        pack_rows(rows, r, r, length, to);
        to += length * r;
    }
}

struct ConvJob {
    const Conv* c;
    const float* packed;
    i64 m, n;  // tasks over pixels and over outputs
};

void conv_task(void* context, i64 index) {
    const ConvJob& job = *static_cast<const ConvJob*>(context);
    const Conv& c = *job.c;
    const i64 ni = index % job.n, mi = index / job.n % job.m, group = index / job.n / job.m;
    const i64 channels = c.channels / c.groups, outputs = c.outputs / c.groups, K = c.kernel[0] * c.kernel[1] * channels;
    const i64 area = c.out[0] * c.out[1], all = c.batch * area, panels_n = divide_up(outputs, NR);
    const i64 m0 = all * mi / job.m, rows = all * (mi + 1) / job.m - m0;
    Pixel pixels[TILE];
    for (i64 i = 0; i < rows; i++) {
        const i64 image = (m0 + i) / area, place = (m0 + i) % area;
        const i64 h = place / c.out[1] * c.stride[0] - c.pad[0], w = place % c.out[1] * c.stride[1] - c.pad[1];
        pixels[i] = {image * c.x_stride[0] + h * c.x_stride[1] + w * c.x_stride[2] + group * channels, h, w};
    }
    const Panels panels(rows);
    const i64 blocks = at_least(1, divide_up(K, KC));
    float* const a = scratch(SLOT_A, rows * at_most(K, KC) + W);
    Sweep s{};
    s.a = a;
    s.b_panel = K * NR, s.b_k = NR;
    s.n0 = panels_n * ni / job.n * NR, s.n1 = at_most(outputs, panels_n * (ni + 1) / job.n * NR);
    s.c = c.y + m0 * c.outputs + group * outputs, s.c_m = c.outputs;
    s.bias = c.bias ? c.bias + group * outputs : nullptr;
    s.residual = c.residual ? c.residual + m0 * c.outputs + group * outputs : nullptr, s.residual_m = c.outputs;
    s.activation = c.activation;
    for (i64 block = 0; block < blocks; block++) {
        const i64 k0 = K * block / blocks, k1 = K * (block + 1) / blocks;
        for (i64 p = 0; p < panels.count; p++)
            pack_pixels(c, pixels + panels.start(p), panels.rows(p), k0, k1, a + panels.start(p) * (k1 - k0));
        s.b = job.packed + group * panels_n * K * NR + k0 * NR;
        s.first = block == 0, s.last = block + 1 == blocks;
        sweep(s, panels, k1 - k0);
    }
}

void pack_conv(const Conv& c, float* packed) {
    struct Job {
        const Conv* c;
        float* packed;
    } job{&c, packed};
    const i64 panels = divide_up(c.outputs / c.groups, NR);
    auto panel = [](void* context, i64 index) {
        const Job& j = *static_cast<Job*>(context);
        const Conv& c = *j.c;
        const i64 channels = c.channels / c.groups, outputs = c.outputs / c.groups, taps = c.kernel[0] * c.kernel[1];
        const i64 panels = divide_up(outputs, NR), group = index / panels, first = index % panels * NR;
        const i64 n = at_most(NR, outputs - first), *stride = c.w_stride;
        const float* const w = c.w + (group * outputs + first) * stride[0];
        float* const to = j.packed + index * taps * channels * NR;
        const bool one_run = stride[3] == 1 && stride[2] == channels && stride[1] == c.kernel[1] * channels && !c.flip;
        if (one_run) return pack_panel(w, 1, stride[0], n, taps * channels, to);
        for (i64 tap = 0; tap < taps; tap++) {
            const i64 from = c.flip ? taps - 1 - tap : tap;
            const float* const at = w + from / c.kernel[1] * stride[1] + from % c.kernel[1] * stride[2];
            pack_panel(at, stride[3], stride[0], n, channels, to + tap * channels * NR);
        }
    };
    parallel(panels * c.groups, panel, &job);
}

// A copy of x[outer, H, W, run] with exactly the rows and columns that are read, zero outside x, and its new strides.
float* padded_copy(const Conv& c, i64 outer, i64 outer_stride, i64 run, const i64 need[2], i64 stride[3]) {
    stride[2] = run, stride[1] = need[1] * run, stride[0] = need[0] * stride[1];
    struct Job {
        const Conv* c;
        i64 outer_stride, run, need0, need1;
        float* to;
    } job{&c, outer_stride, run, need[0], need[1], scratch(SLOT_X, outer * stride[0] + W)};
    parallel(outer, [](void* context, i64 index) {
        const Job& j = *static_cast<Job*>(context);
        const Conv& c = *j.c;
        float* to = j.to + index * j.need0 * j.need1 * j.run;
        for (i64 h = -c.pad[0]; h < j.need0 - c.pad[0]; h++) {
            for (i64 w = -c.pad[1]; w < j.need1 - c.pad[1]; w++, to += j.run) {
                const bool inside = h >= 0 && h < c.size[0] && w >= 0 && w < c.size[1];
                const float* const from = inside ? c.x + index * j.outer_stride + h * c.x_stride[1] + w * c.x_stride[2] : nullptr;
                for (i64 i = 0; i < j.run; i += W) store_first(to + i, from ? load_first(from + i, j.run - i) : vf{}, j.run - i);
            }
        }
    }, &job);
    return job.to;
}

// ---- the gradient for the weights
// y[i, p, q, o] = sum over n, h, w of x[n, h*d + p*s, w*d + q*s, i] * g[n, h, w, o]: a product with few rows (p, q, i) and columns
// (o) and a very long K = (n, h, w). Here x arrives as (i, H, W, n) and g as (o, h, w, n), permuted views in which i and o are
// contiguous: both factors are already the [K][row] that packing would make, so packing is copying runs. K is split into parts
// that are summed in the order of the parts.

struct KMajorJob {
    const Conv* c;
    const float* x;
    i64 x_stride[3];  // n, h, w
    i64 rows, parts, m;
    float* sums;
};

void k_major_task(void* context, i64 index) {
    const KMajorJob& job = *static_cast<const KMajorJob*>(context);
    const Conv& c = *job.c;
    constexpr i64 BLOCK = KC / 2;
    const i64 part = index % job.parts, mi = index / job.parts, K = c.channels * c.kernel[0] * c.kernel[1];
    const i64 m0 = job.rows * mi / job.m, m1 = job.rows * (mi + 1) / job.m;
    const i64 k0 = K * part / job.parts, k1 = K * (part + 1) / job.parts, panels_n = divide_up(c.outputs, NR);
    const Panels panels(m1 - m0);
    float* const a = scratch(SLOT_A, (m1 - m0 + panels_n * NR) * BLOCK + W);
    float* const b = a + (m1 - m0) * BLOCK + W;
    i64 kb = k0;
    do {
        const i64 kc = at_most(BLOCK, k1 - kb);
        i64 x_at[BLOCK], g_at[BLOCK];
        for (i64 k = 0; k < kc; k++) {
            const i64 w = (kb + k) % c.kernel[1], h = (kb + k) / c.kernel[1] % c.kernel[0], n = (kb + k) / c.kernel[1] / c.kernel[0];
            x_at[k] = n * job.x_stride[0] + h * c.dilation[0] * job.x_stride[1] + w * c.dilation[1] * job.x_stride[2];
            g_at[k] = h * c.w_stride[1] + w * c.w_stride[2] + n * c.w_stride[3];
        }
        for (i64 p = 0; p < panels_n; p++)
            for (i64 k = 0; k < kc; k++)
                UNROLL for (int j = 0; j < NR; j += W)
                    store(b + (p * kc + k) * NR + j, load_first(c.w + g_at[k] + p * NR + j, at_least(c.outputs - p * NR - j, 0)));
        for (i64 p = 0; p < panels.count; p++) {
            const int r = panels.rows(p);
            float* const to = a + panels.start(p) * kc;
            i64 start[MR], length[MR];  // the runs of the panel's rows in x
            int runs = 0;
            for (int i = 0; i < r; i++) {
                const i64 row = m0 + panels.start(p) + i, pixel = row / c.batch;
                const i64 at = pixel / c.out[1] * c.stride[0] * job.x_stride[1] + pixel % c.out[1] * c.stride[1] * job.x_stride[2] + row % c.batch;
                if (runs && at == start[runs - 1] + length[runs - 1]) {
                    length[runs - 1]++;
                } else {
                    start[runs] = at, length[runs++] = 1;
                }
            }
            for (i64 k = 0; k < kc; k++) {
                float* out = to + k * r;
                for (int run = 0; run < runs; out += length[run++])
                    for (i64 i = 0; i < length[run]; i += W) store(out + i, load_first(job.x + x_at[k] + start[run] + i, length[run] - i));
            }
        }
        Sweep s{};
        s.a = a;
        s.b = b, s.b_panel = kc * NR, s.b_k = NR;
        s.n1 = c.outputs;
        s.c = job.sums + (part * job.rows + m0) * c.outputs, s.c_m = c.outputs;
        s.first = kb == k0;
        sweep(s, panels, kc);
        kb += kc;
    } while (kb < k1);
}

void conv_k_major(const Conv& c, const i64 need[2]) {
    KMajorJob job{&c, c.x, {c.x_stride[3], c.x_stride[1], c.x_stride[2]}, c.out[0] * c.out[1] * c.batch, 1, 1, nullptr};
    if (c.pad[0] || c.pad[1] || need[0] > c.size[0] || need[1] > c.size[1])
        job.x = padded_copy(c, c.channels, c.x_stride[3], c.batch, need, job.x_stride);
    const i64 K = c.channels * c.kernel[0] * c.kernel[1], sum = job.rows * c.outputs;
    job.parts = at_least(1, at_most(at_most(16, K / 1024), (4 << 20) / sum));
    job.m = at_least(1, job.rows / 512);
    job.sums = scratch(SLOT_C, job.parts * sum);
    parallel(job.parts * job.m, k_major_task, &job);
    parallel(divide_up(job.rows, 64), [](void* context, i64 index) {
        const KMajorJob& job = *static_cast<const KMajorJob*>(context);
        const Conv& c = *job.c;
        for (i64 row = index * 64; row < at_most(job.rows, index * 64 + 64); row++) {
            const i64 at = (row % c.batch * c.out[0] * c.out[1] + row / c.batch) * c.outputs;
            add_parts(job.sums + row * c.outputs, job.parts, job.rows * c.outputs, 1, c.outputs, c.y + at, c.outputs, c.bias,
                      c.residual ? c.residual + at : nullptr, c.outputs, c.activation);
        }
    }, &job);
}

// ---- the door

void conv(const Conv& given) {
    Conv c = given;
    const i64 pixels = c.batch * c.out[0] * c.out[1], outputs = c.outputs / c.groups, channels = c.channels / c.groups;
    if (pixels == 0 || c.outputs == 0) return;
    i64 need[2];
    for (int i = 0; i < 2; i++) need[i] = (c.out[i] - 1) * c.stride[i] + (c.kernel[i] - 1) * c.dilation[i] + 1;
    if (c.k_major) return conv_k_major(c, need);

    const bool beyond = c.pad[0] > 0 || c.pad[1] > 0 || need[0] - c.pad[0] > c.size[0] || need[1] - c.pad[1] > c.size[1];
    if (beyond && channels < W) {  // short runs: checking each against the border costs more than a copy without one
        i64 stride[3];
        c.x = padded_copy(c, c.batch, c.x_stride[0], c.channels, need, stride);
        for (int i = 0; i < 3; i++) c.x_stride[i] = stride[i];
        for (int i = 0; i < 2; i++) c.size[i] = need[i], c.pad[i] = 0;
    }
    if (!c.packed) {
        float* const packed = scratch(SLOT_B, c.groups * divide_up(outputs, NR) * NR * c.kernel[0] * c.kernel[1] * channels);
        pack_conv(c, packed);
        c.packed = packed;
    }
    const bool pointwise = c.kernel[0] * c.kernel[1] == 1 && c.stride[0] * c.stride[1] == 1 && c.groups == 1 && !beyond &&
                           c.pad[0] == 0 && c.pad[1] == 0 && need[0] == c.size[0] && need[1] == c.size[1] &&
                           c.x_stride[1] == c.size[1] * c.x_stride[2] && c.x_stride[0] == c.size[0] * c.x_stride[1];
    if (pointwise) {
        Gemm g{};
        g.M = pixels, g.N = c.outputs, g.K = c.channels;
        g.a = c.x, g.a_m = c.x_stride[2], g.a_k = 1, g.packed = c.packed;
        g.c = c.y, g.c_m = c.outputs, g.bias = c.bias, g.residual = c.residual, g.residual_m = c.outputs, g.activation = c.activation;
        return gemm_one(g);
    }
    const i64 T = threads(), worth = at_least(1, 2 * pixels * c.outputs * c.kernel[0] * c.kernel[1] * channels / 1000000);
    ConvJob job{&c, c.packed, 1, 1};
    job.m = at_least(divide_up(pixels, TILE), at_most(at_most(worth, divide_up(divide_up(pixels, TILE), T) * T), pixels / 28));
    if (job.m * c.groups < at_most(T, worth)) job.n = at_most(divide_up(T, job.m * c.groups), at_least(outputs / 64, 1));
    parallel(c.groups * job.m * job.n, conv_task, &job);
}
