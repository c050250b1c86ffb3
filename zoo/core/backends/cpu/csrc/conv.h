// Convolution, channels last, as a GEMM over tiles of im2col rows that are never stored whole:
//   y[pixel, o] = sum over k of X[pixel, k] * w[o, k],  k = (kernel row, kernel column, channel), pixel = (image, row, column)
// layout     rows of im2col are copied, a panel at a time, into L1 (up to 256 outputs) or a tile of TILE pixels x KC, half of L2
// roof       2 * pixels * outputs * K operations; copying costs about 5 % of them at 64 outputs
// The gradient for the weights is a convolution too, whose "kernel" is a whole picture and whose output is tiny; see below.

constexpr i64 TILE = 256;

struct Pixel {
    i64 at, h, w;  // offset in x of the kernel's first tap, which may lie outside x
};

// A part of the im2col columns. Divisions are done here, once, and not for every pixel: they would cost as much as copying.
struct Columns {
    i64 count, kh, kw, channel;  // the first one's place
    Columns(const Conv& c, i64 k0, i64 k1) : count(k1 - k0) {
        const i64 channels = c.channels / c.groups;
        channel = k0 % channels, kw = k0 / channels % c.kernel[1], kh = k0 / channels / c.kernel[1];
    }
};

// Some columns of one pixel's im2col row.  Writes up to W - 1 floats past the end.
INLINE void copy_pixel(const Conv& c, const Pixel& pixel, const Columns& columns, i64 channels, float* to) {
    // one kernel row is one run in x
    const bool joined = c.dilation[1] == 1 && c.x_stride[2] == channels && pixel.w >= 0 && pixel.w + c.kernel[1] <= c.size[1];
    const i64 run = c.kernel[1] * channels;
    if (joined && columns.count == c.kernel[0] * run && pixel.h >= 0 && pixel.h + (c.kernel[0] - 1) * c.dilation[0] < c.size[0]) {
        const float* from = c.x + pixel.at;
        for (i64 kh = 0; kh < c.kernel[0]; kh++, from += c.dilation[0] * c.x_stride[1], to += run) copy_run(from, run, to);
        return;
    }
    i64 kw = columns.kw, channel = columns.channel, h = pixel.h + columns.kh * c.dilation[0];
    for (i64 left = columns.count, length; left > 0; left -= length, to += length) {
        const i64 w = pixel.w + kw * c.dilation[1];
        length = at_most((joined ? c.kernel[1] - kw : 1) * channels - channel, left);
        if (h >= 0 && h < c.size[0] && w >= 0 && w < c.size[1]) {
            copy_run(c.x + pixel.at + (h - pixel.h) * c.x_stride[1] + (w - pixel.w) * c.x_stride[2] + channel, length, to);
        } else {
            for (i64 i = 0; i < length; i += W) store(to + i, vf{});
        }
        channel = 0;
        if (joined || ++kw == c.kernel[1]) kw = 0, h += c.dilation[0];
    }
}

// The rows of a panel as runs of neighbours in memory.
struct Runs {
    int count = 0;
    i64 start[MR], length[MR];
    void add(i64 at) {
        if (count && at == start[count - 1] + length[count - 1]) {
            length[count - 1]++;
        } else {
            start[count] = at, length[count++] = 1;
        }
    }
};

// A packed panel whose rows are COUNT runs in x (0: as many as there are), at an offset of their own for each k.
template <int COUNT>
void pack_runs(const float* x, const i64* offsets, i64 K, const Runs& runs, float* to) {
    const int count = COUNT ? COUNT : runs.count;
    i64 start[MR], length[MR];
    for (int i = 0; i < count; i++) start[i] = runs.start[i], length[i] = runs.length[i];
    for (i64 k = 0; k < K; k++, to += AR) {
        float* out = to;
        UNROLL for (int run = 0; run < (COUNT ? COUNT : count); out += length[run++])
            for (i64 i = 0; i < length[run]; i += W) store(out + i, load_first(x + offsets[k] + start[run] + i, length[run] - i));
    }
}
// Writes up to W - 1 floats past the end.
constexpr void (*PACK_RUNS[])(const float*, const i64*, i64, const Runs&, float*) = {pack_runs<0>, pack_runs<1>, pack_runs<2>, pack_runs<3>};
INLINE void pack_runs(const float* x, const i64* offsets, i64 K, const Runs& runs, float* to) {
    PACK_RUNS[runs.count <= 3 ? runs.count : 0](x, offsets, K, runs, to);
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
    i64 image = m0 / area, out0 = m0 % area / c.out[1], out1 = m0 % c.out[1];
    for (i64 i = 0; i < rows; i++) {
        const i64 h = out0 * c.stride[0] - c.pad[0], w = out1 * c.stride[1] - c.pad[1];
        pixels[i] = {image * c.x_stride[0] + h * c.x_stride[1] + w * c.x_stride[2] + group * channels, h, w};
        if (++out1 == c.out[1]) out1 = 0, out0++;
        if (out0 == c.out[0]) out0 = 0, image++;
    }
    const Panels panels(rows);
    const i64 blocks = at_least(1, divide_up(K, KC));
    const i64 a_m = row_distance(at_most(K, KC));
    float* const a = scratch(SLOT_A, at_least(rows * a_m, panels.count * AR * at_most(K, KC)) + W);
    Sweep s{};
    s.a = a, s.a_m = a_m;
    s.b_panel = K * NR, s.b_k = NR;
    s.n0 = panels_n * ni / job.n * NR, s.n1 = at_most(outputs, panels_n * (ni + 1) / job.n * NR);
    s.bias = c.bias ? c.bias + group * outputs : nullptr;
    s.residual_m = c.outputs;
    s.activation = c.activation;
    // pixels of one channel are neighbours, as columns of im2col are: a panel is packed a column at a time
    const bool neighbours = c.channels == 1 && c.stride[1] == 1 && c.x_stride[2] == 1;
    i64 offsets[KC];
    if (neighbours) s.a_m = 0;
    const i64 at_once = s.n1 - s.n0 <= NC ? 1 : panels.count;  // where each panel is used once, it need not leave L1
    for (i64 block = 0; block < blocks; block++) {
        const i64 k0 = K * block / blocks, k1 = K * (block + 1) / blocks;
        const Columns columns(c, k0, k1);
        for (i64 k = k0; neighbours && k < k1; k++)
            offsets[k - k0] = k / c.kernel[1] * c.dilation[0] * c.x_stride[1] + k % c.kernel[1] * c.dilation[1];
        s.b = job.packed + group * panels_n * K * NR + k0 * NR;
        s.first = block == 0, s.last = block + 1 == blocks;
        for (i64 p = 0; p < panels.count; p += at_once) {
            const i64 first = panels.start(p), end = panels.start(p + at_once);
            for (i64 q = p; neighbours && q < p + at_once; q++) {
                Runs runs;
                for (i64 i = panels.start(q); i < panels.start(q + 1); i++) runs.add(pixels[i].at);
                pack_runs(c.x, offsets, k1 - k0, runs, a + (q - p) * AR * (k1 - k0));
            }
            for (i64 i = first; !neighbours && i < end; i++) copy_pixel(c, pixels[i], columns, channels, a + (i - first) * a_m);
            s.c = c.y + (m0 + first) * c.outputs + group * outputs, s.c_m = c.outputs;
            s.residual = c.residual ? c.residual + (m0 + first) * c.outputs + group * outputs : nullptr;
            sweep(s, Panels(end - first), k1 - k0);
        }
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
    float* const a = scratch(SLOT_A, (AR + panels_n * NR) * BLOCK + W);
    float* const b = a + AR * BLOCK + W;
    i64 kb = k0, w = k0 % c.kernel[1], h = k0 / c.kernel[1] % c.kernel[0], n = k0 / c.kernel[1] / c.kernel[0];
    do {
        const i64 kc = at_most(BLOCK, k1 - kb);
        i64 x_at[BLOCK], g_at[BLOCK];
        for (i64 k = 0; k < kc; k++) {
            x_at[k] = n * job.x_stride[0] + h * c.dilation[0] * job.x_stride[1] + w * c.dilation[1] * job.x_stride[2];
            g_at[k] = n * c.w_stride[3] + h * c.w_stride[1] + w * c.w_stride[2];
            if (++w == c.kernel[1]) w = 0, h++;  // counted, since a division costs as much as a row of the product
            if (h == c.kernel[0]) h = 0, n++;
        }
        for (i64 p = 0; p < panels_n; p++)
            for (i64 k = 0; k < kc; k++)
                UNROLL for (int j = 0; j < NR; j += W)
                    store(b + (p * kc + k) * NR + j, load_first(c.w + g_at[k] + p * NR + j, at_least(c.outputs - p * NR - j, 0)));
        Sweep s{};
        s.a = a;
        s.b = b, s.b_panel = kc * NR, s.b_k = NR;
        s.n1 = c.outputs;
        s.c_m = c.outputs;
        s.first = kb == k0;
        for (i64 p = 0; p < panels.count; p++) {  // a panel is used while it is in L1
            Runs runs;
            for (i64 row = m0 + panels.start(p); row < m0 + panels.start(p + 1); row++) {
                const i64 pixel = row / c.batch;
                runs.add(pixel / c.out[1] * c.stride[0] * job.x_stride[1] + pixel % c.out[1] * c.stride[1] * job.x_stride[2] + row % c.batch);
            }
            pack_runs(job.x, x_at, kc, runs, a);
            s.c = job.sums + (part * job.rows + m0 + panels.start(p)) * c.outputs;
            sweep(s, Panels(panels.rows(p)), kc);
        }
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
