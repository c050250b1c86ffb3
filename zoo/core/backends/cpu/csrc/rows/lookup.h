// Rotary positions, the largest of a row, and sums into the lines that indices name.

// Each pair (a, b) of the first 2 * half channels becomes (a cos - b sin, b cos + a sin); pairs are (i, i + half), or neighbours.
// x is (batch * length, heads) rows; angles have one line of `half` for each position, or for each position of each sample.
void rope(const Rows& r) {
    const i64 heads = r.k[1], half = r.k[2], lines = r.k[0] / half, D = r.columns;
    const bool neighbours = r.k[3];
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * D;
            const auto y = static_cast<typename S::T*>(r.out[0]) + row * D;
            const i64 at = row / heads % lines * half;
            const float *const cos = floats(r, 1) + at, *const sin = floats(r, 2) + at;
            if (!neighbours) {
                each_vector(0, half, [&](i64 j, i64 n, int) INLINE_LAMBDA {
                    const vf a = S::load_first(x + j, n), b = S::load_first(x + half + j, n);
                    const vf c = load_first(cos + j, n), t = load_first(sin + j, n);
                    S::store_first(y + j, a * c - b * t, n);
                    S::store_first(y + half + j, b * c + a * t, n);
                });
            } else {
                float* __restrict const wide = scratch(SLOT_X, 4 * half + W);
                float* __restrict const turned = wide + 2 * half;
                each_vector(0, 2 * half, [&](i64 j, i64 n, int) INLINE_LAMBDA { store_first(wide + j, S::load_first(x + j, n), n); });
                for (i64 i = 0; i < half; i++) {
                    const float a = wide[2 * i], b = wide[2 * i + 1];
                    turned[2 * i] = a * cos[i] - b * sin[i], turned[2 * i + 1] = b * cos[i] + a * sin[i];
                }
                each_vector(0, 2 * half, [&](i64 j, i64 n, int) INLINE_LAMBDA { S::store_first(y + j, load_first(turned + j, n), n); });
            }
            for (i64 j = 2 * half; j < D; j++) y[j] = x[j];
        });
    });
}

// The k largest of each row, falling; of equals the first; NaN last, as numpy sorts. Numbers become unsigned keys that rise as the
// numbers fall; a histogram of the upper 11 bits tells which keys can be among the k, and a radix sort (11 + 11 + 10 bits, stable)
// puts those in order.
INLINE uint32_t falling_key(float v) {
    if (v != v) return 0xffffffffu;
    uint32_t bits;
    v += 0.0f;  // -0 equals 0
    __builtin_memcpy(&bits, &v, 4);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

void topk(const Rows& r) {
    struct Entry {
        uint32_t key;
        int32_t place;
    };
    const i64 n = r.columns, k = r.k[0];
    constexpr int BINS = 2048, SHIFT[3] = {0, 11, 22};
    in_blocks(r.rows, GRAIN / at_least(n, 1), [&](i64 row, i64 end) {
        Entry* from = reinterpret_cast<Entry*>(scratch(SLOT_A, 2 * n));
        Entry* to = reinterpret_cast<Entry*>(scratch(SLOT_B, 2 * n));
        int32_t* const start = reinterpret_cast<int32_t*>(scratch(SLOT_X, 3 * BINS));
        for (; row < end; row++) {
            const float* const x = floats(r, 0) + row * n;
            __builtin_memset(start, 0, 3 * BINS * sizeof *start);
            for (i64 i = 0; i < n; i++) start[falling_key(x[i]) >> 21]++;
            uint32_t last = 0;  // the last bin that is needed
            for (i64 seen = start[0]; seen < k; seen += start[last]) last++;
            i64 count = 0;
            __builtin_memset(start, 0, BINS * sizeof *start);
            for (i64 i = 0; i < n; i++) {
                const uint32_t key = falling_key(x[i]);
                if (key >> 21 > last) continue;
                from[count++] = {key, (int32_t)i};
                for (int d = 0; d < 3; d++) start[d * BINS + (key >> SHIFT[d] & (BINS - 1))]++;
            }
            for (int d = 0; d < 3; d++) {
                int32_t sum = 0, *const bins = start + d * BINS;
                for (int i = 0; i < BINS; i++) {
                    const int32_t here = bins[i];
                    bins[i] = sum, sum += here;
                }
                for (i64 i = 0; i < count; i++) to[bins[from[i].key >> SHIFT[d] & (BINS - 1)]++] = from[i];
                Entry* const turned = from;
                from = to, to = turned;
            }
            for (i64 i = 0; i < k; i++) {
                floats_out(r, 0)[row * k + i] = x[from[i].place];
                static_cast<int32_t*>(r.out[1])[row * k + i] = from[i].place;
            }
        }
    });
}

// y = x, and each row of updates added to the line of y that it names. Every task has some of the columns of all lines, so no two
// meet, and what falls on one line is added up in the order of the rows.
void scatter_add(const Rows& r) {
    const i64 C = r.columns;
    const float *const x = floats(r, 0), *const updates = floats(r, 2);
    const int32_t* const place = static_cast<const int32_t*>(r.in[1]);
    float* const y = floats_out(r, 0);
    in_blocks(r.k[0] * C, 4 * GRAIN, [&](i64 i, i64 end) { __builtin_memcpy(y + i, x + i, (size_t)(end - i) * sizeof(float)); });
    in_blocks(C, at_least(64, GRAIN / at_least(r.rows, 1)), [&](i64 first, i64 end) {
        for (i64 row = 0; row < r.rows; row++)
            each_vector(first, end, [&](i64 j, i64 n, int) INLINE_LAMBDA {
                float* const to = y + place[row] * C + j;
                store_first(to, load_first(to, n) + load_first(updates + row * C + j, n), n);
            });
    });
}
