// Convolution, channels last, as a product in which A is the picture itself:
//   y[pixel, o] = sum over k, c of X[pixel * stride + k * dilation - pad, c] * w[o, k, c]
// layout     neighbouring output pixels of one row are the rows of A, `stride` pixels of x apart; for each kernel row, the
//            values under it are one run in x. So nothing is rearranged (im2col would write every value once for each tap: 15 %
//            of the time at 64 outputs). The part of x that some output rows need is first copied, with its border of zeros,
//            unless it can be read in place. W as for a product, K = (kernel row, kernel column, channel)
// cache      a tile of about TILE output pixels, its copy of x of at most TILE_FLOATS, and KC x NC of W
// roof       2 * pixels * outputs * K operations; reaches 0.9 of it on one core where K is 256 or more

constexpr i64 TILE = 256, TILE_FLOATS = 256 << 10;
constexpr i64 TAPS = 256;  // segments of one pass over K

// T: what the packed weights are stored in. Of pairs of bf16 (gemm/table.h) two channels are one step along K; the copied part of x is
// rounded to them, and channels, distances and runs in what is read are counted in steps.

// What a task computes: rows row0 .. row1 of output pixels (counted through all images), columns w0 .. w1 of each.
template <class T>
struct ConvJob {
    const Conv* c;
    const T* packed;
    i64 m, chunks, n;  // tasks over rows, columns, outputs
};

// How x is read, and how K is cut into blocks of whole segments of equal length: a kernel row where it is one run in what is
// read, else a tap, else a part of a tap.
struct Reading {
    i64 numbers;  // in a step
    i64 channels, width, first;  // columns of output; the column of x where they begin, maybe negative
    i64 high, wide;              // lines under one output row; columns under all its pixels
    bool in_place;
    i64 pixel, line, step;  // distances in what is read: of pixels, of lines, of rows of A
    bool joined;
    i64 run, pieces, segments, blocks;

    Reading(const Conv& c, i64 w0, i64 w1, i64 numbers = 1) : numbers(numbers), channels(c.channels / c.groups / numbers), width(w1 - w0), first(w0 * c.stride[1] - c.pad[1]) {
        high = (c.kernel[0] - 1) * c.dilation[0] + 1;
        wide = (width - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;
        const bool inside = first >= 0 && first + wide <= c.size[1] && c.pad[0] <= 0 &&
                            (c.out[0] - 1) * c.stride[0] + high - c.pad[0] <= c.size[0];
        // rows of A that fall into the same sets of L1 must be moved apart (gemm.h)
        in_place = numbers == 1 && inside && c.x_stride[3] == 1 && c.x_stride[2] > 0 && c.stride[1] * c.x_stride[2] * 4 % 2048 != 0;
        pixel = in_place ? c.x_stride[2] : channels + (c.stride[1] * channels * 4 % 2048 == 0 ? 16 : 0);
        line = in_place ? c.x_stride[1] : wide * pixel;
        step = c.stride[1] * pixel;
        joined = pixel == channels && c.dilation[1] == 1;
        run = (joined ? c.kernel[1] : 1) * channels;
        pieces = divide_up(run, KC);
        segments = c.kernel[0] * (joined ? 1 : c.kernel[1]) * pieces;
        blocks = pieces > 1 ? segments : divide_up(segments, at_least(1, at_most(TAPS, (KC + KC / 4) / run)));
    }

    Depth depth(const Conv& c, i64 block, i64* offsets) const {
        const i64 begin = segments * block / blocks, count = segments * (block + 1) / blocks - begin;
        const i64 piece = begin % pieces, from = run * piece / pieces;  // more than one piece: one segment per block
        for (i64 i = 0; i < count; i++) {
            const i64 tap = (begin + i) / pieces, kh = joined ? tap : tap / c.kernel[1], kw = joined ? 0 : tap % c.kernel[1];
            offsets[i] = kh * c.dilation[0] * line + kw * c.dilation[1] * pixel + from;
        }
        return {count, run * (piece + 1) / pieces - from, offsets};
    }
};

// `rows` lines of x from (image, h0) on, the columns and channels that are read, to [rows][wide][pixel]; zero outside x.
template <class T>
void copy_window(const Conv& c, const Reading& r, i64 image, i64 group, i64 h0, i64 rows, float* to) {
    const i64* const stride = c.x_stride;
    const i64 first = at_least(0, at_most(r.wide, -r.first)), end = at_least(first, at_most(r.wide, c.size[1] - r.first));
    for (i64 h = h0; h < h0 + rows; h++, to += r.line) {
        const bool inside = h >= 0 && h < c.size[0];
        for (i64 i = 0; i < (inside ? first * r.pixel : r.line); i++) to[i] = 0;
        if (!inside) continue;
        const float* from = c.x + image * stride[0] + h * stride[1] + (r.first + first) * stride[2] + group * r.channels * r.numbers * stride[3];
        if (stride[3] == 1 && stride[2] == r.pixel * r.numbers) {
            copy_steps<T>(from, 1, (end - first) * r.pixel, to + first * r.pixel);
        } else {
            for (i64 w = first; w < end; w++, from += stride[2]) {
                if (stride[3] == 1 || NUMBERS<T> > 1) {
                    copy_steps<T>(from, stride[3], r.channels, to + w * r.pixel);
                } else {
                    for (i64 i = 0; i < r.channels; i++) to[w * r.pixel + i] = from[i * stride[3]];
                }
            }
        }
        for (i64 i = end * r.pixel; i < r.line; i++) to[i] = 0;
    }
}

// Finds, or copies into `window`, what output rows row .. row1 read, as many as fit a tile. Returns their end; `base` gets where
// the first pixel of each begins.
template <class T>
i64 open_tile(const Conv& c, const Reading& r, i64 group, i64 row, i64 row1, float* window, const float** base) {
    const i64 room = at_least(1, TILE / r.width);
    i64 end = row;
    for (i64 used = 0, count; end < row1 && end - row < room; end += count) {
        const i64 image = end / c.out[0], out = end % c.out[0], h = out * c.stride[0] - c.pad[0];
        count = at_most(at_most(row1 - end, c.out[0] - out), room - (end - row));
        const float* at = c.x + image * c.x_stride[0] + h * c.x_stride[1] + r.first * c.x_stride[2] + group * r.channels;
        if (!r.in_place) {
            const i64 lines = (TILE_FLOATS - used) / r.line;  // for which there is room
            if (lines < (count - 1) * c.stride[0] + r.high) count = lines < r.high ? 0 : (lines - r.high) / c.stride[0] + 1;
            if (count == 0 && end > row) break;
            count = at_least(count, 1);
            copy_window<T>(c, r, image, group, h, (count - 1) * c.stride[0] + r.high, window + used);
            at = window + used;
            used += ((count - 1) * c.stride[0] + r.high) * r.line;
        }
        for (i64 i = 0; i < count; i++) base[end - row + i] = at + i * c.stride[0] * r.line;
    }
    return end;
}

template <class T>
void conv_task(void* context, i64 index) {
    const ConvJob<T>& job = *static_cast<const ConvJob<T>*>(context);
    const Conv& c = *job.c;
    const i64 ni = index % job.n, chunk = index / job.n % job.chunks, mi = index / job.n / job.chunks % job.m;
    const i64 group = index / job.n / job.chunks / job.m, outputs = c.outputs / c.groups, panels_n = divide_up(outputs, NR);
    const i64 row0 = c.batch * c.out[0] * mi / job.m, row1 = c.batch * c.out[0] * (mi + 1) / job.m;
    const i64 w0 = c.out[1] * chunk / job.chunks, w1 = c.out[1] * (chunk + 1) / job.chunks;
    const Reading r(c, w0, w1, NUMBERS<T>);
    const i64 K = c.kernel[0] * c.kernel[1] * r.channels;
    float* const window = r.in_place ? nullptr : scratch(SLOT_A, at_least(TILE_FLOATS, r.high * r.line) + W);
    const Panels panels(r.width);
    const bool gather = 2 * r.width <= MR;  // too few neighbours to fill a panel: there im2col does pay

    SweepOf<T> s{};
    s.b_panel = K * NR, s.b_k = NR;
    s.n0 = panels_n * ni / job.n * NR, s.n1 = at_most(outputs, panels_n * (ni + 1) / job.n * NR);
    s.c_m = c.outputs;
    s.bias = c.bias ? c.bias + group * outputs : nullptr;
    s.activation = c.activation;
    for (i64 row = row0, end; row < row1; row = end) {
        const float* base[TILE];
        end = open_tile<T>(c, r, group, row, row1, window, base);
        i64 k = 0;
        for (i64 block = 0; block < r.blocks; block++) {
            i64 offsets[TAPS];
            const Depth depth = r.depth(c, block, offsets);
            s.b = job.packed + (group * panels_n * K + k) * NR;
            s.first = block == 0, s.last = block + 1 == r.blocks;
            k += depth.total();
            const auto rows_at = [&](i64 pixel, int count, const float* a, i64 apart) {
                const i64 at = (row * c.out[1] + w0 + pixel) * c.outputs + group * outputs;
                return Rows{count, true, a, apart, c.y + at, c.residual ? c.residual + at : nullptr};
            };
            if (gather) {  // then all columns are here: w0 is 0
                const i64 pixels = (end - row) * r.width, apart = row_distance(depth.total());
                float* const a = scratch(SLOT_X, pixels * apart + W);
                for (i64 i = 0; i < pixels; i++)
                    for (i64 q = 0; q < depth.count; q++)
                        copy_run(base[i / r.width] + i % r.width * r.step + offsets[q], depth.length, a + i * apart + q * depth.length);
                const Panels all(pixels);
                sweep(s, {1, depth.total(), NO_OFFSET}, all.count,
                      [&](i64 p) { return rows_at(all.start(p), all.rows(p), a + all.start(p) * apart, apart); });
            } else {
                sweep(s, depth, (end - row) * panels.count, [&](i64 p) {
                    const i64 line = p / panels.count, q = p % panels.count, from = panels.start(q);
                    return rows_at(line * c.out[1] + from, panels.rows(q), base[line] + from * r.step, r.step);
                });
            }
        }
    }
}

// Panel `index` (of all groups) of the weights: [tap][channel][NR].
template <class T>
void pack_conv_panel(const Conv& c, i64 index, T* to) {
    const i64 channels = c.channels / c.groups, outputs = c.outputs / c.groups, taps = c.kernel[0] * c.kernel[1];
    const i64 panels = divide_up(outputs, NR), group = index / panels, first = index % panels * NR;
    const i64 n = at_most(NR, outputs - first), *stride = c.w_stride;
    const T* const w = static_cast<const T*>(c.w) + (group * outputs + first) * stride[0];
    const bool one_run = stride[3] == 1 && stride[2] == channels && stride[1] == c.kernel[1] * channels && !c.flip;
    if (one_run) return pack_panel(w, 1, stride[0], n, taps * channels, to);
    for (i64 tap = 0; tap < taps; tap++) {
        const i64 from = c.flip ? taps - 1 - tap : tap;
        const T* const at = w + from / c.kernel[1] * stride[1] + from % c.kernel[1] * stride[2];
        pack_panel(at, stride[3], stride[0], n, channels, to + tap * channels * NR);
    }
}

template <class T>
void pack_direct(const Conv& c, T* packed) {
    struct Job {
        const Conv* c;
        T* packed;
    } job{&c, packed};
    parallel(divide_up(c.outputs / c.groups, NR) * c.groups, [](void* context, i64 index) {
        const Job& j = *static_cast<Job*>(context);
        const Conv& c = *j.c;
        pack_conv_panel(c, index, j.packed + index * c.kernel[0] * c.kernel[1] * (c.channels / c.groups) * NR);
    }, &job);
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
    const bool in_place = 3 * job.run >= MR && line <= BLOCK;
    const float* const g = static_cast<const float*>(c.w);
    const Panels panels(in_place ? job.run : job.rows);  // of each run, or of all
    const i64 all = in_place ? panels.count * (job.rows / job.run) : panels.count;
    const i64 p0 = all * mi / job.m, p1 = all * (mi + 1) / job.m, panels_n = divide_up(c.outputs, NR);
    const bool plain_g = c.w_stride[2] == c.outputs && c.w_stride[1] == line * c.outputs &&
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
        // g as it is, though a panel reads past its outputs: from the next row, which is there but for the last rows
        const bool whole = plain_g && (c.outputs % NR == 0 || (kb + kc - 1) * c.outputs + panels_n * NR <= lines * line * c.outputs);
        for (i64 p = 0; p < panels_n && !whole; p++)
            for (i64 k = 0; k < kc; k++)
                UNROLL for (int j = 0; j < NR; j += W)
                    store(b + (p * kc + k) * NR + j, load_first(g + g_at[k] + p * NR + j, at_least(c.outputs - p * NR - j, 0)));
        Sweep s{};
        s.b = whole ? g + kb * c.outputs : b, s.b_panel = whole ? NR : kc * NR, s.b_k = whole ? c.outputs : NR;
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
        Conv& t = copy.c;
        t.channels = c.batch, t.x_stride[0] = c.x_stride[3], t.x_stride[3] = 1;
        parallel(c.channels, [](void* context, i64 n) {
            const Copy& j = *static_cast<Copy*>(context);
            Reading r(j.c, 0, j.c.out[1]);
            r.wide = j.need[1], r.pixel = j.c.channels, r.line = r.wide * r.pixel;
            copy_window<float>(j.c, r, n, 0, -j.c.pad[0], j.need[0], j.to + n * j.need[0] * r.line);
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
