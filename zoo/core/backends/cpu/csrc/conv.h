// Convolution, channels last, as a product in which A is the picture itself:
//   y[pixel, o] = sum over k, c of X[pixel * stride + k * dilation - pad, c] * w[o, k, c]
// layout     neighbouring output pixels of one row are the rows of A, `stride` pixels of x apart; for each kernel row, the
//            values under it are one run in x. So nothing is rearranged (im2col would write every value once for each tap: 15 %
//            of the time at 64 outputs). The part of x that some output rows need is copied, with its border of zeros, into L2
//            first, unless it can be read in place. W as for a product, K = (kernel row, kernel column, channel)
// cache      a tile of about TILE output pixels, its copy of x at most TILE_FLOATS, and KC x NC of W, in L2
// roof       2 * pixels * outputs * K operations

constexpr i64 TILE = 256, TILE_FLOATS = 256 << 10;
constexpr i64 TAPS = 256;  // segments of one pass over K

struct ConvJob {
    const Conv* c;
    const float* packed;
    i64 m, n;  // tasks over rows of output pixels (of all images) and over outputs
};

// x[image, h0 .. h0 + rows, -pad .. , channels of the group] -> to[rows][columns][pixel], zero outside x.
void copy_window(const Conv& c, i64 image, i64 group, i64 h0, i64 rows, i64 columns, i64 pixel, float* to) {
    const i64 channels = c.channels / c.groups, *stride = c.x_stride;
    const float* const x = c.x + image * stride[0] + group * channels * stride[3];
    const i64 first = at_least(0, at_most(columns, c.pad[1])), end = at_least(first, at_most(columns, c.size[1] + c.pad[1]));
    for (i64 h = h0; h < h0 + rows; h++, to += columns * pixel) {
        const bool inside = h >= 0 && h < c.size[0];
        for (i64 i = 0; i < (inside ? first : columns) * pixel; i++) to[i] = 0;
        if (!inside) continue;
        const float* from = x + h * stride[1] + (first - c.pad[1]) * stride[2];
        if (stride[3] == 1 && stride[2] == pixel) {
            copy_run(from, (end - first) * pixel, to + first * pixel);
        } else {
            for (i64 w = first; w < end; w++, from += stride[2]) {
                if (stride[3] == 1) {
                    copy_run(from, channels, to + w * pixel);
                } else {
                    for (i64 i = 0; i < channels; i++) to[w * pixel + i] = from[i * stride[3]];
                }
            }
        }
        for (i64 i = end * pixel; i < columns * pixel; i++) to[i] = 0;
    }
}

void conv_task(void* context, i64 index) {
    const ConvJob& job = *static_cast<const ConvJob*>(context);
    const Conv& c = *job.c;
    const i64 ni = index % job.n, mi = index / job.n % job.m, group = index / job.n / job.m;
    const i64 channels = c.channels / c.groups, outputs = c.outputs / c.groups, K = c.kernel[0] * c.kernel[1] * channels;
    const i64 row0 = c.batch * c.out[0] * mi / job.m, row1 = c.batch * c.out[0] * (mi + 1) / job.m, panels_n = divide_up(outputs, NR);
    const i64 high = (c.kernel[0] - 1) * c.dilation[0] + 1, wide = (c.out[1] - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;

    // in place if every tap lies inside x, and the rows of A do not fall into the same sets of L1.
    const bool inside = c.pad[0] <= 0 && c.pad[1] <= 0 && wide - c.pad[1] <= c.size[1] &&
                        (c.out[0] - 1) * c.stride[0] + high - c.pad[0] <= c.size[0];
    const bool in_place = inside && c.x_stride[3] == 1 && c.x_stride[2] > 0 && c.x_stride[2] * c.stride[1] * 4 % 2048 != 0;
    const i64 pixel = in_place ? c.x_stride[2] : channels + (c.stride[1] * channels * 4 % 2048 == 0 ? 16 : 0), line = in_place ? c.x_stride[1] : wide * pixel;
    const i64 step = c.stride[1] * pixel;  // between the rows of A
    float* const window = in_place ? nullptr : scratch(SLOT_A, at_least(TILE_FLOATS, high * line) + W);

    // K in blocks of whole segments of equal length: a kernel row where it is one run, else a tap, else a part of it.
    const bool joined = pixel == channels && c.dilation[1] == 1;
    const i64 run = (joined ? c.kernel[1] : 1) * channels, pieces = divide_up(run, KC);
    const i64 segments = K / at_least(run, 1) * pieces, per_block = at_least(1, at_most(TAPS, (KC + KC / 4) / at_least(run, 1)));
    const i64 blocks = pieces > 1 ? segments : divide_up(segments, per_block);
    Sweep s{};
    s.b_panel = K * NR, s.b_k = NR;
    s.n0 = panels_n * ni / job.n * NR, s.n1 = at_most(outputs, panels_n * (ni + 1) / job.n * NR);
    s.c_m = c.outputs;
    s.bias = c.bias ? c.bias + group * outputs : nullptr;
    s.activation = c.activation;
    const Panels panels(c.out[1]);
    const bool gather = 2 * c.out[1] < MR;  // too few neighbours to fill a panel: then im2col does pay

    for (i64 row = row0, end; row < row1; row = end) {
        const float* base[TILE];  // of each output row
        i64 used = 0;
        for (end = row; end < row1 && (end == row || (end - row + 1) * c.out[1] <= TILE);) {
            const i64 image = end / c.out[0], out = end % c.out[0], h = out * c.stride[0] - c.pad[0];
            i64 count = at_most(at_most(row1 - end, c.out[0] - out), at_least(1, TILE / c.out[1] - (end - row)));
            if (in_place) {
                for (i64 i = 0; i < count; i++)
                    base[end - row + i] = c.x + image * c.x_stride[0] + (h + i * c.stride[0]) * line - c.pad[1] * pixel + group * channels;
            } else {
                const i64 fit = (TILE_FLOATS - used) / line;  // lines of x for which there is room
                if (fit < (count - 1) * c.stride[0] + high) count = fit < high ? 0 : (fit - high) / c.stride[0] + 1;
                if (count == 0 && end > row) break;
                count = at_least(count, 1);
                const i64 lines = (count - 1) * c.stride[0] + high;
                copy_window(c, image, group, h, lines, wide, pixel, window + used);
                for (i64 i = 0; i < count; i++) base[end - row + i] = window + used + i * c.stride[0] * line;
                used += lines * line;
            }
            end += count;
        }
        for (i64 block = 0, k = 0; block < blocks; block++) {
            i64 offsets[TAPS];
            const i64 first = segments * block / blocks, count = segments * (block + 1) / blocks - first;
            for (i64 i = 0; i < count; i++) {
                const i64 tap = (first + i) / pieces, kw = joined ? 0 : tap % c.kernel[1], kh = joined ? tap : tap / c.kernel[1];
                offsets[i] = kh * c.dilation[0] * line + kw * c.dilation[1] * pixel + run * (first % pieces) / pieces;
            }
            const i64 piece = first % pieces;
            const Depth depth{count, run * (piece + 1) / pieces - run * piece / pieces, offsets};
            s.b = job.packed + (group * panels_n * K + k) * NR;
            s.first = block == 0, s.last = block + 1 == blocks;
            const auto rows_at = [&](i64 pixel, int count, const float* a, i64 a_m) {
                const i64 at = (row * c.out[1] + pixel) * c.outputs + group * outputs;
                return Rows{count, true, a, a_m, c.y + at, c.residual ? c.residual + at : nullptr};
            };
            if (gather) {
                const i64 pixels = (end - row) * c.out[1], a_m = row_distance(depth.total());
                float* const a = scratch(SLOT_X, pixels * a_m + W);
                for (i64 i = 0; i < pixels; i++)
                    for (i64 q = 0; q < count; q++)
                        copy_run(base[i / c.out[1]] + i % c.out[1] * step + offsets[q], depth.length, a + i * a_m + q * depth.length);
                const Panels all(pixels);
                sweep(s, {1, depth.total(), NO_OFFSET}, all.count,
                      [&](i64 p) { return rows_at(all.start(p), all.rows(p), a + all.start(p) * a_m, a_m); });
            } else {
                sweep(s, depth, (end - row) * panels.count, [&](i64 p) {
                    const i64 line = p / panels.count, q = p % panels.count, from = panels.start(q);
                    return rows_at(line * c.out[1] + from, panels.rows(q), base[line] + from * step, step);
                });
            }
            k += depth.total();
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

// ---- the gradient for the weights
// y[i, p, q, o] = sum over n, h, w of x[n, h*d + p*s, w*d + q*s, i] * g[n, h, w, o]: a product with few rows (p, q, i) and columns
// (o) and a very long K = (n, h, w). Here x arrives as (i, H, W, n) and g as (o, h, w, n), permuted views in which i and o are
// contiguous: columns of A are neighbours in x. They are read in place where a panel's rows are one run in x, else packed.
// K is split into parts, which are summed in their order.

constexpr i64 BLOCK = 256;

struct KMajorJob {
    const Conv* c;
    const float* x;
    i64 x_stride[3];  // n, h, w
    i64 rows, run;    // rows of A, and how many of them are neighbours in x
    i64 parts, m;
    float* sums;
    i64 at(i64 row) const {
        const i64 pixel = row / c->batch, p = pixel / c->out[1], q = pixel % c->out[1];
        return p * c->stride[0] * x_stride[1] + q * c->stride[1] * x_stride[2] + row % c->batch;
    }
};

// A packed panel of rows that are some runs in x, at an offset of their own for each k.  Writes up to W - 1 floats past the end.
void pack_runs(const float* x, const i64* offsets, i64 K, const i64* start, const i64* length, int runs, float* to) {
    for (i64 k = 0; k < K; k++, to += AR) {
        float* out = to;
        for (int run = 0; run < runs; out += length[run++])
            for (i64 i = 0; i < length[run]; i += W) store(out + i, load_first(x + offsets[k] + start[run] + i, length[run] - i));
    }
}

void k_major_task(void* context, i64 index) {
    const KMajorJob& job = *static_cast<const KMajorJob*>(context);
    const Conv& c = *job.c;
    const i64 part = index % job.parts, mi = index / job.parts, line = c.kernel[1], lines = c.channels * c.kernel[0];
    const bool in_place = 2 * job.run >= MR && line <= BLOCK;
    const Panels panels(in_place ? job.run : job.rows);  // of each run, or of all
    const i64 all = in_place ? panels.count * (job.rows / job.run) : panels.count;
    const i64 p0 = all * mi / job.m, p1 = all * (mi + 1) / job.m, panels_n = divide_up(c.outputs, NR);
    const bool plain_g = c.outputs % NR == 0 && c.w_stride[2] == c.outputs && c.w_stride[1] == line * c.outputs &&
                         c.w_stride[3] == c.kernel[0] * line * c.outputs;
    float* const a = scratch(SLOT_A, (AR + panels_n * NR) * BLOCK + W);
    float* const b = a + AR * BLOCK + W;
    const i64 k0 = lines * part / job.parts * line, k1 = lines * (part + 1) / job.parts * line;
    i64 kb = k0, w = 0, h = k0 / line % c.kernel[0], n = k0 / line / c.kernel[0];
    do {
        const i64 kc = at_most(in_place ? BLOCK / line * line : BLOCK, k1 - kb);
        i64 x_at[BLOCK], g_at[BLOCK];
        for (i64 k = 0; k < kc; k++) {
            x_at[k] = n * job.x_stride[0] + h * c.dilation[0] * job.x_stride[1] + w * c.dilation[1] * job.x_stride[2];
            g_at[k] = n * c.w_stride[3] + h * c.w_stride[1] + w * c.w_stride[2];
            if (++w == line) w = 0, h++;  // counted, since a division costs as much as a row of the product
            if (h == c.kernel[0]) h = 0, n++;
        }
        for (i64 p = 0; p < panels_n && !plain_g; p++)
            for (i64 k = 0; k < kc; k++)
                UNROLL for (int j = 0; j < NR; j += W)
                    store(b + (p * kc + k) * NR + j, load_first(c.w + g_at[k] + p * NR + j, at_least(c.outputs - p * NR - j, 0)));
        Sweep s{};
        s.b = plain_g ? c.w + kb * c.outputs : b, s.b_panel = plain_g ? NR : kc * NR, s.b_k = plain_g ? c.outputs : NR;
        s.n1 = c.outputs;
        s.c_m = c.outputs;
        s.first = kb == k0;
        i64 segments[BLOCK];
        for (i64 i = 0; in_place && i < kc / line; i++) segments[i] = x_at[i * line];
        for (i64 p = p0; p < p1; p++) {
            const i64 row = in_place ? p / panels.count * job.run + panels.start(p % panels.count) : panels.start(p);
            const int r = panels.rows(in_place ? p % panels.count : p);
            float* const sum = job.sums + (part * job.rows + row) * c.outputs;
            if (in_place) {
                const i64 apart = c.dilation[1] * job.x_stride[2];
                sweep(s, {kc / line, line, segments}, 1, [&](i64) { return Rows{r, false, job.x + job.at(row), apart, sum, nullptr}; });
            } else {
                i64 start[MR], length[MR];
                int runs = 0;
                for (int i = 0; i < r; i++) {
                    const i64 at = job.at(row + i);
                    if (runs && at == start[runs - 1] + length[runs - 1]) {
                        length[runs - 1]++;
                    } else {
                        start[runs] = at, length[runs++] = 1;
                    }
                }
                pack_runs(job.x, x_at, kc, start, length, runs, a);
                sweep(s, {1, kc, NO_OFFSET}, 1, [&](i64) { return Rows{r, false, a, AR, sum, nullptr}; });
            }
        }
        kb += kc;
    } while (kb < k1);
}

void conv_k_major(const Conv& c, const i64 need[2]) {
    KMajorJob job{&c, c.x, {c.x_stride[3], c.x_stride[1], c.x_stride[2]}, c.out[0] * c.out[1] * c.batch, c.batch, 1, 1, nullptr};
    if (c.pad[0] || c.pad[1] || need[0] > c.size[0] || need[1] > c.size[1]) {
        // a copy with the border of zeros; c with channels and batch exchanged describes it
        struct Copy {
            Conv c;
            i64 need[2];
            float* to;
        } copy{c, {need[0], need[1]}, scratch(SLOT_X, c.channels * need[0] * need[1] * c.batch + W)};
        copy.c.channels = c.batch, copy.c.x_stride[0] = c.x_stride[3], copy.c.x_stride[3] = 1;
        parallel(c.channels, [](void* context, i64 n) {
            const Copy& j = *static_cast<Copy*>(context);
            const i64 pixel = j.c.channels;
            copy_window(j.c, n, 0, -j.c.pad[0], j.need[0], j.need[1], pixel, j.to + n * j.need[0] * j.need[1] * pixel);
        }, &copy);
        job.x = copy.to;
        job.x_stride[2] = c.batch, job.x_stride[1] = need[1] * c.batch, job.x_stride[0] = need[0] * job.x_stride[1];
    }
    if (c.stride[1] * job.x_stride[2] == c.batch) job.run = c.out[1] * c.batch;
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
    const i64 K = c.kernel[0] * c.kernel[1] * channels;
    if (pixels == 0 || c.outputs == 0) return;
    i64 need[2];
    for (int i = 0; i < 2; i++) need[i] = (c.out[i] - 1) * c.stride[i] + (c.kernel[i] - 1) * c.dilation[i] + 1;
    if (c.k_major) return conv_k_major(c, need);

    if (!c.packed) {
        float* const packed = scratch(SLOT_B, c.groups * divide_up(outputs, NR) * NR * K);
        pack_conv(c, packed);
        c.packed = packed;
    }
    const bool pointwise = c.kernel[0] * c.kernel[1] == 1 && c.stride[0] * c.stride[1] == 1 && c.groups == 1 && c.pad[0] == 0 &&
                           c.pad[1] == 0 && need[0] == c.size[0] && need[1] == c.size[1] &&
                           c.x_stride[1] == c.size[1] * c.x_stride[2] && c.x_stride[0] == c.size[0] * c.x_stride[1];
    if (pointwise) {
        Gemm g{};
        g.M = pixels, g.N = c.outputs, g.K = c.channels;
        g.a = c.x, g.a_m = c.x_stride[2], g.a_k = c.x_stride[3], g.packed = c.packed;
        g.c = c.y, g.c_m = c.outputs, g.bias = c.bias, g.residual = c.residual, g.activation = c.activation;
        return gemm_one(g);
    }
    const i64 T = threads(), worth = at_least(1, 2 * pixels * c.outputs * K / 1000000), tiles = divide_up(pixels, TILE);
    ConvJob job{&c, c.packed, 1, 1};
    job.m = at_least(1, at_most(at_most(worth, divide_up(tiles, T) * T), at_most(pixels / 28, c.batch * c.out[0])));
    if (job.m * c.groups < at_most(T, worth)) job.n = at_most(divide_up(T, job.m * c.groups), at_least(outputs / 64, 1));
    parallel(c.groups * job.m * job.n, conv_task, &job);
}
