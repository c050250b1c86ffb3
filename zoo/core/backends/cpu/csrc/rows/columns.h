// Sums and moments down the columns, and what is normalised by them: group norm; batch norm in training, which is group norm of
// one sample with as many groups as channels.
// layout     blocks of at most 128 rows, read once: sums of x and x^2 about a row of the block. Blocks are merged by the formula of
//            Chan, Golub & LeVeque (1979), so nothing cancels however far the mean is from 0
// registers  up to 4 vectors of columns, or 4 rows of one, with up to 3 sums each
// roof       memory: group norm reads x twice and writes once, its gradient reads x and g twice and writes once
// Blocks depend on the shape only, and so does every bit.

// to[k][c] = sum over the rows of what f(row, column, n, sums) adds to sums[k].
template <int K, int V, class F>
INLINE void down_vectors(i64 rows, i64 c, i64 columns, float* const* to, const F& f) {
    constexpr int U = V == 1 ? 4 : V == 2 ? 2 : 1;
    vf sums[U][V][K] = {};
    i64 row = 0;
    for (; row + U <= rows; row += U)
        UNROLL for (int u = 0; u < U; u++)
            UNROLL for (int v = 0; v < V; v++) f(row + u, c + v * W, v + 1 < V ? (i64)W : columns - c - v * W, sums[u][v]);
    for (; row < rows; row++)
        UNROLL for (int v = 0; v < V; v++) f(row, c + v * W, v + 1 < V ? (i64)W : columns - c - v * W, sums[0][v]);
    UNROLL for (int v = 0; v < V; v++)
        UNROLL for (int k = 0; k < K; k++) {
            vf s = sums[0][v][k];
            UNROLL for (int u = 1; u < U; u++) s += sums[u][v][k];
            store_first(to[k] + c + v * W, s, columns - c - v * W);
        }
}
template <int K, class F>
void down(i64 rows, i64 columns, float* const* to, const F& f) {
    for (i64 c = 0; c < columns; c += 4 * W) {
        const i64 left = divide_up(columns - c, W);
        if (left >= 4) down_vectors<K, 4>(rows, c, columns, to, f);
        else if (left == 3) down_vectors<K, 3>(rows, c, columns, to, f);
        else if (left == 2) down_vectors<K, 2>(rows, c, columns, to, f);
        else down_vectors<K, 1>(rows, c, columns, to, f);
    }
}

INLINE i64 column_blocks(i64 rows, i64 columns) { return at_least(1, at_most(at_most(64, rows), rows * columns / GRAIN)); }

void column_sums(const Rows& r) {
    const i64 outer = r.k[0], rows = r.rows / outer, C = r.columns, blocks = column_blocks(rows, C);
    const float* const x = floats(r, 0);
    float *const y = floats_out(r, 0), *const parts = blocks > 1 ? scratch(SLOT_A, outer * blocks * C) : y;
    in_blocks(outer * blocks, GRAIN / at_least(rows * C / blocks, 1), [&](i64 part, i64 end) {
        for (; part < end; part++) {
            const i64 block = part % blocks, first = rows * block / blocks, last = rows * (block + 1) / blocks;
            const float* const from = x + (part / blocks * rows + first) * C;
            float* const to[1] = {parts + part * C};
            down<1>(last - first, C, to, [&](i64 row, i64 c, i64 n, vf (&s)[1]) INLINE_LAMBDA { s[0] += load_first(from + row * C + c, n); });
        }
    });
    for (i64 o = 0; o < outer && blocks > 1; o++)
        each_vector(0, C, [&](i64 j, i64 n, int) INLINE_LAMBDA {
            vf s = {};
            for (i64 block = 0; block < blocks; block++) s += load_first(parts + (o * blocks + block) * C + j, n);
            store_first(y + o * C + j, s, n);
        });
}

// Of `count` rows, by column: mean; sum of (x - mean)^2; with a gradient g also sum of g and of g (x - mean).
enum Moment : int { MEAN, SQUARES, SLOPES, CROSS };

// Joins the moments of b into those of a; both are MOMENTS lines of C columns.
template <int MOMENTS>
void merge(float* a, i64 count_a, const float* b, i64 count_b, i64 C) {
    const float all = (float)(count_a + count_b), share_a = (float)count_a / all, share_b = (float)count_b / all;
    const float product = share_b * (float)count_a;
    each_vector(0, C, [&](i64 j, i64 n, int) INLINE_LAMBDA {
        vf one[MOMENTS], other[MOMENTS];
        UNROLL for (int k = 0; k < MOMENTS; k++) one[k] = load_first(a + k * C + j, n), other[k] = load_first(b + k * C + j, n);
        const vf d = other[MEAN] - one[MEAN];
        store_first(a + MEAN * C + j, one[MEAN] + d * share_b, n);
        store_first(a + SQUARES * C + j, one[SQUARES] + other[SQUARES] + d * d * product, n);
        if constexpr (MOMENTS > 2) {
            store_first(a + SLOPES * C + j, one[SLOPES] + other[SLOPES], n);
            store_first(a + CROSS * C + j, one[CROSS] + other[CROSS] + d * (other[SLOPES] * share_a - one[SLOPES] * share_b), n);
        }
    });
}

// Moments of `rows` rows of x (and g), by blocks, about the first row of the block: of n rows, the squares that then cancel are at most
// n times those that are left.
template <class S, int MOMENTS>
void block_moments(const typename S::T* x, const float* g, i64 rows, i64 C, float* to) {
    constexpr i64 step = 128;
    float* const fresh = scratch(SLOT_X, MOMENTS * C);
    for (i64 first = 0; first < rows; first += step) {
        const i64 count = at_most(step, rows - first);
        const auto from = x + first * C;
        float* const line = first ? fresh : to;
        float* const sums[4] = {line, line + SQUARES * C, line + SLOPES * C, line + CROSS * C};
        down<MOMENTS>(count, C, sums, [&](i64 row, i64 c, i64 n, vf (&s)[MOMENTS]) INLINE_LAMBDA {
            __builtin_prefetch(from + row * C + c + 4 * W);  // the next columns of this row: the processor expects whole rows
            const vf d = S::load_first(from + row * C + c, n) - S::load_first(from + c, n);
            s[MEAN] += d;
            s[SQUARES] += d * d;
            if constexpr (MOMENTS > 2) {
                const float* const slopes = g + (first + row) * C + c;
                __builtin_prefetch(slopes + 4 * W);
                const vf slope = load_first(slopes, n);
                s[SLOPES] += slope;
                s[CROSS] += slope * d;
            }
        });
        const float share = 1.0f / (float)count;
        each_vector(0, C, [&](i64 j, i64 n, int) INLINE_LAMBDA {
            const vf sum = load_first(line + j, n), mean = sum * share;
            store_first(line + j, S::load_first(from + j, n) + mean, n);
            store_first(line + SQUARES * C + j, load_first(line + SQUARES * C + j, n) - sum * mean, n);
            if constexpr (MOMENTS > 2)
                store_first(line + CROSS * C + j, load_first(line + CROSS * C + j, n) - mean * load_first(line + SLOPES * C + j, n), n);
        });
        if (first) merge<MOMENTS>(to, first, fresh, count, C);
    }
}

// Moments of each of `samples` blocks of rows. -> samples lines, `apart` floats from each other
template <class S, int MOMENTS>
float* sample_moments(const Rows& r, i64 samples, const float* g, i64& apart) {
    const i64 rows = r.rows / samples, C = r.columns, blocks = column_blocks(rows, C), line = MOMENTS * C;
    const auto x = input<S>(r, 0);
    float* const lines = scratch(SLOT_A, samples * blocks * line);
    const auto start = [&](i64 block) { return rows * block / blocks; };
    in_parallel(samples * blocks, [&](i64 part) {
        const i64 block = part % blocks, at = (part / blocks * rows + start(block)) * C;
        block_moments<S, MOMENTS>(x + at, g ? g + at : nullptr, start(block + 1) - start(block), C, lines + part * line);
    });
    apart = blocks * line;
    for (i64 part = 0; part < samples * blocks; part++) {
        const i64 block = part % blocks;
        if (block) merge<MOMENTS>(lines + part / blocks * apart, start(block), lines + part * line, start(block + 1) - start(block), C);
    }
    return lines;
}

// Mean and sum of squares of a group: its channels, of `rows` values each, joined.
struct Group {
    float mean = 0, variance = 0;
    Group(const float* moments, i64 C, i64 first, i64 width, i64 rows) {
        for (i64 c = first; c < first + width; c++) mean += moments[MEAN * C + c] / (float)width;
        for (i64 c = first; c < first + width; c++) {
            const float d = moments[MEAN * C + c] - mean;
            variance += (moments[SQUARES * C + c] / (float)rows + d * d) / (float)width;
        }
    }
};

void group_norm(const Rows& r) {
    const i64 samples = r.k[0], groups = r.k[1], C = r.columns, rows = r.rows / samples, width = C / groups;
    const float *const w = floats(r, 1), *const b = floats(r, 2);
    float *const means = floats_out(r, 1), *const variances = floats_out(r, 2);
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        i64 apart;
        const float* const moments = sample_moments<S, 2>(r, samples, nullptr, apart);
        float* const factors = scratch(SLOT_B, samples * 2 * C);  // [sample][mean, scale][C]
        for (i64 i = 0; i < samples * groups; i++) {
            const i64 sample = i / groups, first = i % groups * width;
            const Group group(moments + sample * apart, C, first, width, rows);
            if (means) means[i] = group.mean;
            if (variances) variances[i] = group.variance;
            const float scale = inverse_root(group.variance, r.x[0]);
            float* const to = factors + sample * 2 * C;
            for (i64 c = first; c < first + width; c++) to[c] = group.mean, to[C + c] = scale * (w ? w[c] : 1.0f);
        }
        const auto finish = [&](auto act) {
            each_row(r, [&](i64 row) {
                const float* const factor = factors + row / rows * 2 * C;
                const auto x = input<S>(r, 0) + row * C;
                fill(output<S>(r, 0).from(row * C), 0, C, [&](i64 j, i64 n) INLINE_LAMBDA {
                    const vf h = (S::load_first(ahead(x + j), n) - load_first(factor + j, n)) * load_first(factor + C + j, n);
                    return act(h + weights(b, j, n, 0.0f));
                });
            });
        };
        const int activation = (int)r.k[2];
        if (activation == NONE) finish([](vf v) INLINE_LAMBDA { return v; });
        else if (activation == SILU) finish([](vf v) INLINE_LAMBDA { return activate(v, SILU); });
        else finish([&](vf v) INLINE_LAMBDA { return activate(v, activation); });
    });
}

// With h the normalised x, v = g weight, and means over the group:  d x = (v - mean(v) - h mean(v h)) scale
void group_norm_grad(const Rows& r) {
    const i64 samples = r.k[0], groups = r.k[1], C = r.columns, rows = r.rows / samples, width = C / groups;
    const float *const x = floats(r, 0), *const w = floats(r, 1), *const g = floats(r, 2);
    float *const d_weight = floats_out(r, 1), *const d_bias = floats_out(r, 2);
    i64 apart;
    const float* const moments = sample_moments<F32, 4>(r, samples, g, apart);
    float* const factors = scratch(SLOT_B, samples * 4 * C);  // [sample][mean, of g, of x - mean, constant][C]
    float* const both[] = {d_weight, d_bias};
    for (float* sums : both)
        if (sums) __builtin_memset(sums, 0, (size_t)C * sizeof(float));
    for (i64 i = 0; i < samples * groups; i++) {
        const i64 sample = i / groups, first = i % groups * width;
        const float* const m = moments + sample * apart;
        float* const to = factors + sample * 4 * C;
        const Group group(m, C, first, width, rows);
        const float scale = inverse_root(group.variance, r.x[0]), share = 1.0f / (float)(rows * width);
        float plain = 0, turned = 0;
        for (i64 c = first; c < first + width; c++) {
            const float slopes = m[SLOPES * C + c], h = scale * (m[CROSS * C + c] + (m[MEAN * C + c] - group.mean) * slopes);
            if (d_weight) d_weight[c] += h;
            if (d_bias) d_bias[c] += slopes;
            plain += slopes * (w ? w[c] : 1.0f) * share;
            turned += h * (w ? w[c] : 1.0f) * share;
        }
        for (i64 c = first; c < first + width; c++) {
            to[c] = group.mean, to[C + c] = scale * (w ? w[c] : 1.0f);
            to[2 * C + c] = -scale * scale * turned, to[3 * C + c] = -scale * plain;
        }
    }
    each_row(r, [&](i64 row) {
        const float *const f = factors + row / rows * 4 * C, *const from = x + row * C, *const slope = g + row * C;
        fill(output<F32>(r, 0).from(row * C), 0, C, [&](i64 j, i64 n) INLINE_LAMBDA {
            const vf d = load_first(ahead(from + j), n) - load_first(f + j, n);
            return load_first(ahead(slope + j), n) * load_first(f + C + j, n) + d * load_first(f + 2 * C + j, n) + load_first(f + 3 * C + j, n);
        });
    });
}
